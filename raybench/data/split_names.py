"""The split that a name means: `Training`, `val2017`, `cifar_test`, `test-00000-of-00001`."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLITS = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}


def split_of(name: str) -> str | None:
    """The split whose word is in the name; None if there is no word, or words of two splits."""
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    stems = [re.sub("(dataset|data|set|images)$", "", word) for word in words]  # `testset`
    splits = {SPLITS[stem] for stem in stems if stem in SPLITS}
    return splits.pop() if len(splits) == 1 else None


def require_splits(where: object, splits: dict[str, str | None]) -> None:
    """Raises ValueError if some of the names are splits and others are not."""
    unknown = sorted(name for name, split in splits.items() if split is None)
    if not unknown:
        return
    named = sorted(name for name, split in splits.items() if split is not None)
    spellings = "; ".join(", ".join(names) for names in SPELLINGS.values())
    raise ValueError(
        f"--data {where}: {some(unknown)} beside {some(named)}: which split is that? Rename to one "
        f"of {spellings}; or, if these are classes, move all of them into one folder named train"
    )


def require_one_name(where: object, names: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError if two names mean the same split; the input is (split, name) pairs."""
    by_split: dict[str, set[str]] = {}
    for split, name in names:
        by_split.setdefault(split, set()).add(name)
    for split, same in by_split.items():
        if len(same) > 1:
            raise ValueError(
                f"--data {where}: {some(sorted(same))} all mean {split}. Use the folder of one of "
                "them, or move the others away"
            )


def some(names: Iterable[str]) -> str:
    """The first five of the names, and how many more there are."""
    listed = list(names)
    shown = ", ".join(listed[:5])
    return f"{shown} and {len(listed) - 5} more" if len(listed) > 5 else shown
