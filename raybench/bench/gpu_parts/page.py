"""The page of a GPU's tables, `docs/gpu.md`, from the Parquet files that came back."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median

from raybench.bench.gpu_parts.rows import read
from raybench.bench.gpu_parts.subjects import PARTS

TITLES = {
    "a": "Training steps, memory and energy",
    "b": "Time to a target accuracy",
    "c": "The references' tables, shortened",
    "d": "Techniques against the plain model, same seeds",
    "e": "Two processes on one GPU",
}


def write(page: Path, folder: Path) -> None:
    """Prints the page from all files in the folder."""
    page.write_text(markdown(read(folder)))


def markdown(rows: list[dict[str, object]]) -> str:
    """The page: a table for each part, the last round or the median of all, and what is missing."""
    on_gpu = [row for row in rows if row["gpu"]]
    lines = [
        "# On a GPU",
        "",
        "Printed by `make gpu` from the Parquet files of `python -m raybench.bench gpu --part K`.",
        "Runs are shorter than the references'; their learning rate decays to the end of the run.",
    ]
    for part, title in TITLES.items():
        lines += ["", f"## {title}", "", *_table([r for r in on_gpu if r["part"] == part])]
    missing = [part for part in PARTS if not any(row["part"] == part for row in on_gpu)]
    lines += ["", "## Missing", ""]
    for part in missing:
        title = TITLES[part][0].lower() + TITLES[part][1:]
        lines.append(f"- Part {part}, {title}: run `make gpu PART={part}` on a GPU.")
    lines.append(
        "- int8 on the GPU: the shipped graph is measured in ONNX Runtime on the CPU only."
    )
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, object]]) -> list[str]:
    if not rows:
        return ["Not measured yet."]
    values: dict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        key = tuple(str(row[name]) for name in ("subject", "side", "figure"))
        values[key].append((int(str(row["round"])), float(str(row["value"]))))
    lines = ["| subject | side | figure | value | n |", "|---|---|---|---|---|"]
    for (subject, side, figure), points in values.items():
        if rows[0]["part"] in ("b", "c", "d"):  # rounds are epochs: the end of each run
            last = max(number for number, _ in points)
            points = [point for point in points if point[0] == last]
        told = median(value for _, value in points)
        lines.append(f"| {subject} | {side} | {figure} | {told:,.4g} | {len(points)} |")
    about = rows[0]
    return [
        *lines,
        "",
        f"{about['gpu']}, torch {about['torch']}, commit {str(about['commit'])[:7]}",
    ]
