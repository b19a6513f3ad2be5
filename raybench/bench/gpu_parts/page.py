"""The page of a GPU's tables, `docs/gpu.md`, from the Parquet files of the parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from scipy.special import stdtrit

from raybench.bench.gpu_parts.references import LISTED
from raybench.bench.gpu_parts.rows import FAILED, SECONDS, read
from raybench.bench.gpu_parts.subjects import PARTS, subjects
from raybench.bench.speed import BELOW, Point, seconds_to

TITLES = {
    "a": "Training steps, memory and energy",
    "b": "Time to a target accuracy",
    "c": "The references' tables, shortened",
    "d": "Techniques against the plain model, same seeds",
    "e": "Two processes on one GPU",
}

ABOUT = """# On a GPU

Printed by `make gpu` from the Parquet files of `python -m raybench.bench gpu --part K`. Runs are
shorter than the references'; their learning rate decays to the end of the run.

Every part takes less than nine minutes and continues where its file ends, so call it again while
subjects are missing; remove a file to measure its part again. A subject that fails or takes too
long is listed below; the others still run.

## To a machine without a network

A part needs neither Ray nor Optuna. It needs torch 2.11 or newer, torchvision, timm, numpy, pandas,
pyarrow, scipy, scikit-learn, pillow, safetensors, onnx, onnxscript, onnxruntime, filelock and
threadpoolctl, which a machine for training has, and tyro, constriction and zstandard, which can
be copied:

    git archive HEAD | gzip > raybench.tar.gz    # below 1 MB, without history
    pip download --no-deps --only-binary=:all: -d wheels \\
        tyro docstring-parser constriction zstandard
    mkdir images && cp -r "$RAYBENCH_DATA"/cifar10 images/    # 18 MB as JPEG; else digits stand in

and there, with the copied files (below 30 MB in all; 64 MB is plenty):

    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:. RAYBENCH_DATA=images RAYBENCH_COMMIT=… \\
        python -m raybench.bench gpu --part a --minutes 9

`results/gpu/gpu-a.parquet` must be copied back. This page is printed from all such files:

    python -m raybench.bench gpu --part page --page docs/gpu.md

## How a step runs there

- Precision (`precision_used`): bf16 autocast. `recipe.precision fp32` is fp32 without TF32, as in
  every score, so that a score is that of the exported graph.
- Optimizers: fused SGD and AdamW, one kernel for all parameters; Muon by batched products.
- Layout: channels last, from the crop to the last convolution.
- Images: on the GPU as bytes, once per process; crop, flip, cutout and mixup run there.
- Compiling (`compile_s`): `recipe.compile auto`, if all of the run's techniques have static shapes.
- CUDA graphs: with compiling, for models below 20 million parameters.
- The host waits for the GPU every 50 steps and at an epoch's end, to see that the loss is finite.
- Energy (`energy_j`): NVML's counter, with `pip install nvidia-ml-py`.
"""

Rows = list[dict[str, Any]]
Key = tuple[str, str, str]
"""Subject, side and figure."""


def write(page: Path, folder: Path) -> None:
    """Prints the page from all files in the folder."""
    page.write_text(markdown(read(folder)))


def markdown(rows: Rows) -> str:
    """The page: a table for each part, and what is missing."""
    on_gpu = [row for row in rows if row["gpu"]]
    lines = [ABOUT.rstrip()]
    for part, title in TITLES.items():
        of_part = [row for row in on_gpu if row["part"] == part]
        lines += ["", f"## {title}", "", *(_PRINTED[part](of_part) if of_part else [NOT_YET])]
        lines += _machine(of_part)
    return "\n".join([*lines, "", "## Missing", "", *_missing(on_gpu)]) + "\n"


NOT_YET = "Not measured yet."


def _ends(rows: Rows) -> dict[Key, dict[int, float]]:
    """The last value of every figure, by seed; here rounds are epochs."""
    last: dict[Key, dict[int, tuple[int, float]]] = defaultdict(dict)
    for row in _measured(rows):
        key, seed = (row["subject"], row["side"], row["figure"]), row["seed"]
        if seed not in last[key] or row["round"] >= last[key][seed][0]:
            last[key][seed] = (row["round"], row["value"])
    return {key: {seed: v for seed, (_, v) in seeds.items()} for key, seeds in last.items()}


def _measured(rows: Rows) -> Rows:
    return [row for row in rows if row["figure"] not in (SECONDS, FAILED)]


def _rounds(rows: Rows) -> list[str]:
    """Medians over rounds or processes."""
    values: dict[Key, list[float]] = defaultdict(list)
    for row in _measured(rows):
        values[row["subject"], row["side"], row["figure"]].append(row["value"])
    return _table(
        ("subject", "side", "figure", "median", "least", "most", "n"),
        (
            (*key, *(f"{v:,.4g}" for v in (median(of), min(of), max(of))), str(len(of)))
            for key, of in values.items()
        ),
    )


def _targets(rows: Rows) -> list[str]:
    """Seconds of training to the plain recipe's final accuracy minus one point."""
    curves: dict[tuple[str, str], list[Point]] = defaultdict(list)
    values = {(r["subject"], r["side"], r["figure"], r["round"]): r["value"] for r in rows}
    for (subject, side, figure, number), accuracy in sorted(values.items(), key=lambda v: v[0][3]):
        if figure == "accuracy":
            seconds = values[subject, side, "train_s", number]
            curves[subject, side].append(Point(seconds, accuracy))
    lines = []
    for (subject, side), curve in curves.items():
        plain = curves.get((subject, "plain"))
        target = plain[-1].accuracy - BELOW if plain else None
        reached = seconds_to(curve, target) if target is not None else None
        of_epochs = {f: values.get((subject, side, f, len(curve))) for f in ("compile_s", "wall_s")}
        lines.append(
            (
                subject,
                side,
                str(len(curve)),
                f"{100 * curve[-1].accuracy:.2f}",
                "" if target is None else f"{100 * target:.2f}",
                "" if reached is None else f"{reached:.1f}",
                *("" if value is None else f"{value:.1f}" for value in of_epochs.values()),
            )
        )
    head = ("model", "recipe", "epochs", "accuracy, %", "target, %", "to it, s", "compiling, s")
    return _table((*head, "whole run, s"), lines)


def _references(rows: Rows) -> list[str]:
    """Final figures of the runs, beside those of the references."""
    ends = {key: mean(seeds.values()) for key, seeds in _ends(rows).items()}
    lines = []
    for one in LISTED:
        first = next(other.side for other in LISTED if other.subject == one.subject)

        def value(side: str, figure: str, subject: str = one.subject) -> float | None:
            return ends.get((subject, side, figure))

        figures = {figure: value(one.side, figure) for figure in SHOWN}
        for derived, of in (("speed_up", "s_per_epoch"), ("times_smaller", "model_bytes")):
            before, after = value(first, of), figures[of]
            if before and after and one.side != first:
                figures[derived] = before / after
        for figure, ours in figures.items():
            if ours is not None:
                theirs = one.figures.get(figure)
                reference = "–" if theirs is None else _text(figure, float(theirs))
                lines.append((one.subject, one.side, figure, _text(figure, ours), reference))
    return _table(("subject", "side", "figure", "ours", "reference"), lines)


SHOWN = (
    "accuracy",
    "images_per_s",
    "s_per_epoch",
    "s_per_batch",
    "inference_s",
    "compile_s",
    "parameters",
    "flops",
    "model_bytes",
    "peak_memory_bytes",
    "energy_j",
)


def _text(figure: str, value: float) -> str:
    return f"{100 * value:.2f} %" if figure.endswith("accuracy") else f"{value:,.4g}"


def _differences(rows: Rows) -> list[str]:
    """Each side's mean, and its difference from plain over their common seeds."""
    ends = _ends(rows)
    lines = []
    for (subject, side, figure), seeds in ends.items():
        if figure not in SHOWN and figure != "test_accuracy":
            continue
        plain = ends.get((subject, "plain", figure), {})
        pairs = [value - plain[seed] for seed, value in seeds.items() if seed in plain]
        scale, unit = (100.0, " points") if figure.endswith("accuracy") else (1.0, "")
        difference = ""
        if side != "plain" and len(pairs) > 1:
            spread = float(np.std(pairs, ddof=1)) / len(pairs) ** 0.5
            half = float(stdtrit(len(pairs) - 1, 0.975)) * spread
            difference = f"{scale * mean(pairs):+,.4g} ± {scale * half:,.3g}{unit}"
        of_side = _text(figure, mean(seeds.values()))
        lines.append((subject, side, figure, of_side, difference, str(len(seeds))))
    head = ("model", "technique", "figure", "mean", "to plain, 95 %", "n")
    return _table(head, lines)


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    names = list(head)
    rule = "|---" * len(names) + "|"
    return [f"| {' | '.join(names)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)]


def _machine(rows: Rows) -> list[str]:
    machines = sorted({(r["gpu"], r["torch"], str(r["commit"])[:7]) for r in rows})
    return [line for g, t, c in machines for line in ("", f"{g}, torch {t}, commit {c}")]


def _missing(rows: Rows) -> list[str]:
    complete = {(row["part"], row["subject"]) for row in rows if row["figure"] == SECONDS}
    lines = []
    for part, title in TITLES.items():
        names = [one.name for one in subjects(part, small=False)]
        left = [name for name in names if (part, name) not in complete]
        if left:
            what = "all" if len(left) == len(names) else ", ".join(left)
            topic = title[0].lower() + title[1:]
            lines.append(f"- Part {part}, {topic}: {what}; run `make gpu PART={part}` on a GPU.")
    for row in rows:
        if row["figure"] == FAILED:
            lines.append(f"- Part {row['part']}, {row['subject']} failed: {row['note']}.")
    lines.append("- int8 on the GPU: ONNX Runtime measures the shipped graph on the CPU only.")
    lines.append("- One stage of a pipeline only: several stages need several GPUs.")
    lines.append("- Accuracies of Monarch at 224 pixels, and all of 200 and 350 epochs.")
    return lines


_PRINTED: Mapping[str, Any] = {
    "a": _rounds,
    "b": _targets,
    "c": _references,
    "d": _differences,
    "e": _rounds,
}
assert set(_PRINTED) == set(TITLES) == set(PARTS)
