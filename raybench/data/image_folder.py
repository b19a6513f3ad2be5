"""Folders of images: `class/image`, optionally with a level of splits above or below the classes.

    cat/1.png              wrapper/train/cat/1.png       cat/train/1.png
    dog/2.png              wrapper/test/dog/2.png        dog/test/2.png

Classes are numbered by sorted name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raybench.data.contents import Contents, Encoded, Listed, checked
from raybench.data.split_names import require_one_name, require_splits, split_of

Place = tuple[str, ...]  # the folders of an image, relative to that of the data set


def contents(folder: Path, files: list[Path], remarks: tuple[str, ...]) -> Contents:
    """The images of a folder by split and class.

    Raises:
        ValueError: the class or split of some image is ambiguous.
    """
    places = [file.relative_to(folder).parts[:-1] for file in files]
    layout = layout_of(folder, {*places})
    names = sorted({name for _, name in layout.values()})
    number = {name: index for index, name in enumerate(names)}
    by_split: dict[str, list[tuple[Path, int]]] = {}
    for file, place in zip(files, places, strict=True):
        split, name = layout[place]
        by_split.setdefault(split, []).append((file, number[name]))
    splits = {split: _listed(entries) for split, entries in by_split.items()}
    return checked(folder, Contents(class_names=tuple(names), splits=splits, remarks=remarks))


def _listed(entries: list[tuple[Path, int]]) -> Listed:
    def images() -> Iterator[Encoded]:
        for file, _ in entries:
            yield Encoded(str(file), file)

    return Listed(labels=np.array([label for _, label in entries], np.int64), images=images)


def layout_of(folder: Path, places: set[Place]) -> dict[Place, tuple[str, str]]:
    """Split and class of the images in each place. Raises ValueError as for `contents`."""
    level = _split_level(places)
    if level is None:
        classes = _only_level(folder, {place: place for place in places})
        return {place: ("train", name) for place, name in classes.items()}
    require_splits(folder, {p[min(level, len(p) - 1)]: _split_at(p, level) for p in places if p})
    splits = {place: str(_split_at(place, level)) for place in places if place}
    last = all(len(place) == level + 1 for place in splits)
    if last and level:  # each class has folders of splits
        above = {place: place[:level] for place in places}
        require_one_name(folder, {(split, place[level]) for place, split in splits.items()})
    else:
        above = {place: _below(place, level) for place in places}
        named = {(split, "/".join(place[: level + 1])) for place, split in splits.items()}
        require_one_name(folder, named)
    classes = _only_level(folder, above)
    return {place: (splits[place], name) for place, name in classes.items()}


def _split_level(places: set[Place]) -> int | None:
    """The outermost level with the name of a split; None if there is none.

    A single folder that contains only folders of splits is a wrapper, whatever its name:
    `my_test_data/train`, `my_test_data/test`.
    """
    levels = []
    for level in range(max(map(len, places))):
        splits = {place[level]: split_of(place[level]) for place in places if len(place) > level}
        if any(splits.values()):
            levels.append((level, splits, any(len(place) > level + 1 for place in places)))
    while len(levels) > 1:
        (_, outer, _), (_, inner, is_above_classes) = levels[:2]
        if len(outer) > 1 or not is_above_classes or not all(inner.values()):
            break
        del levels[0]
    return levels[0][0] if levels else None


def _split_at(place: Place, level: int) -> str | None:
    return split_of(place[level]) if len(place) > level else None


def _below(place: Place, level: int) -> Place:
    """The folders below the split's, which may be repeated as in `seg_train/seg_train/sea`."""
    below = place[level + 1 :]
    while len(below) > 1 and split_of(below[0]) == split_of(place[level]):
        below = below[1:]
    return below


def _only_level(folder: Path, places: dict[Place, Place]) -> dict[Place, str]:
    """The class of each place, from its folders except those of the splits.

    Raises:
        ValueError: there is no level of folders, or more than one.
    """
    levels = {*places.values()}
    while all(len(level) > 1 for level in levels) and len({level[0] for level in levels}) == 1:
        levels = {level[1:] for level in levels}
        places = {place: level[1:] for place, level in places.items()}
    for place, level in sorted(places.items()):
        where = "/".join(place) or "the folder itself"
        if not level:
            raise ValueError(
                f"--data {folder}: images lie in {where}, not in the folder of a class; make one "
                "subfolder per class, or move them away"
            )
        if len(level) > 1:
            raise ValueError(
                f"--data {folder}: images lie in {where}: is the class {level[0]} or {level[-1]}? "
                "Use one level of folders, one folder per class; splits are named train, "
                "validation and test"
            )
    return {place: level[0] for place, level in places.items()}
