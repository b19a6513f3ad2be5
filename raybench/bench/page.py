"""A page of figures: each bench replaces the block below its command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from raybench.training import measure


def lines(figures: Mapping[str, Any], claims: Mapping[str, str]) -> list[str]:
    """One line per figure: its name, its value and the target."""
    return [
        f"{name:32} {value}"
        if isinstance(value, list)
        else f"{name:32} {value:>14,.4g}   {claims.get(name, '')}".rstrip()
        for name, value in figures.items()
    ]


def benches(page: Path) -> list[str]:
    """The benches with a block on the page, in its order, with their scenario or part."""
    named = r"^```\n\$ python -m raybench\.bench (\w+(?: --(?:scenario|part) \w+)?)"
    return re.findall(named, page.read_text(), re.MULTILINE)


def printed(page: Path, name: str, told: list[str], load: float) -> None:
    """Replaces a bench's lines below its command, with the machine, the commit and the date.

    Args:
        name: name of the bench, followed by ` --scenario NAME` or ` --part NAME` if it has one.
        load: load of the machine before the bench, per core.

    Raises:
        ValueError: the page has no block of this bench.
    """
    text = page.read_text()
    command = rf"\$ python -m raybench\.bench {name}\b(?! --(?:scenario|part)).*\n"
    block = re.compile(rf"^```\n({command})(?:.*\n)*?```$", re.M)
    if not block.search(text):
        raise ValueError(
            f"{page} has no block that begins with `$ python -m raybench.bench {name}`"
        )
    machine, commit = measure.machine(), str(measure.provenance()["commit"])[:7]
    about = f"# {date.today()}, commit {commit}, {machine['cpu']}, {machine['cpu_count']} cores"
    body = "\n".join([*told, f"{about}, load {load:.1f} a core before"])
    page.write_text(block.sub(lambda match: f"```\n{match[1]}{body}\n```", text, count=1))
