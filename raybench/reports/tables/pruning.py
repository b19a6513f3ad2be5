"""The pruning family's table: plain, pruned and quantized networks, and their training speed.

The reference project describes its super model in words, at 60 and at 70 % sparsity; the table
quotes them in the matching rows. The reference compares its file with one dense file; raybench
compares with two: the dense twin of the same sweep in raybench's own format, and the same network
in fp32 as torch.save writes it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from raybench.reports.varied import alike, completed, is_input, plain, varied

REFERENCE: dict[tuple[str, str, float], tuple[str, float | None]] = {
    # (model, kind, sparsity) -> accuracy in words, times smaller; against its dense network unless
    # the words name another
    ("resnet20", "pruned", 0.6): ("kept", None),
    ("resnet44", "pruned", 0.6): ("kept", None),
    ("resnet20", "super model", 0.6): ("1.5 x of the pruned", 1.8),
    ("resnet44", "super model", 0.6): ("1.5 x of the pruned", 1.8),
    ("resnet20", "super model", 0.7): ("-3 points", 1.8),
    ("resnet44", "super model", 0.7): ("-1 point", 1.4),
}
FULL = "32"
KINDS = {  # pruned, quantized
    (False, False): "base",
    (True, False): "pruned",
    (False, True): "quantized",
    (True, True): "super model",
}
OPTIONAL = (
    "vs torch.save",
    "latency ms",
    "faster than fp32",
    "reference: accuracy",
    "reference: smaller",
)
MEASURED = ("test_accuracy", "model_bytes", "torch_save_bytes", "latency_ms", "s_per_epoch")
SHOWN = (
    "model",
    "recipe.precision",
    "prune.final_sparsity",
    "prune_channels.ratio",
    "quantize.bits",
    "quantize.budget_bytes",
    "distill.teacher",
)
"""Inputs that the table shows. If other inputs vary, it has a row for each of their values."""


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per model, sparsity and bits: accuracy over the seeds, difference to dense, bytes.

    Sparsities of a random search are shown in bands of ten points. The difference compares mean
    test accuracies, in points, with the dense twin without a teacher; it is empty if the sweep has
    none. `faster than fp32` is the ratio of the median seconds per epoch of twins that differ only
    in precision to the row's, over all seeds. A column that is the same default in every row is
    left out.
    """
    done = completed(trials)
    if done.empty:
        return pd.DataFrame()
    asked = _filled(done, "prune.final_sparsity", 0.0)
    grid = asked.nunique() <= 10
    done["band"] = asked.round(3) if grid else (asked * 10 // 1) / 10
    bits, budget = _filled(done, "quantize.bits", 0), _filled(done, "quantize.budget_bytes", 0)
    done["bits"] = [_bits(int(b), int(most)) for b, most in zip(bits, budget, strict=True)]
    done["kind"] = [KINDS[s > 0, b != FULL] for s, b in zip(asked, done["bits"], strict=True)]
    done["left"] = _filled(done, "channels", 1.0).round(2)
    done["taught"] = _taught(done)
    done["precision_used"] = done["precision_used"].fillna("")
    done["twin"] = _twins(done)
    keys = ["model", "kind", "band", "bits", "left", "taught", "precision_used"]
    extra = varied(done, SHOWN)
    # Slicing rows is ten times faster with a few columns than with all 180.
    used = {*keys, *extra, "twin", *MEASURED}
    done = done[[name for name in done.columns if name in used]]
    groups = done.groupby([*keys, *extra], dropna=False)
    rows = [_row(key, group, done, grid, extra) for key, group in groups]
    idle = {
        "bits": FULL,
        "channels": "100 %",
        "teacher": "",
        "precision": rows[0]["precision"],
    }
    shown = pd.DataFrame(rows)
    silent = [
        name
        for name in (*idle, *OPTIONAL)
        if (shown[name].isna() | (shown[name] == idle.get(name, ""))).all()
    ]
    return shown.drop(columns=silent)


def _row(
    key: tuple[Any, ...],
    group: pd.DataFrame,
    done: pd.DataFrame,
    grid: bool,
    extra: list[str],
) -> dict[str, Any]:
    model, kind, band, bits, left, taught, precision, *more = key
    base = done[(done["model"] == model) & (done["kind"] == "base") & (done["left"] == 1)]
    base = base[~base["taught"]]
    in_precision = base[base["precision_used"] == precision]
    dense = alike(in_precision if len(in_precision) else base, group.iloc[0], extra)
    accuracy = 100 * group["test_accuracy"].astype(float)
    against = 100 * dense["test_accuracy"].astype(float).mean()
    size = float(group["model_bytes"].median())
    percent = f"{100 * band:.4g} %" if grid else f"{100 * band:.0f}–{100 * band + 10:.0f} %"
    accuracy_in_words, smaller = (
        REFERENCE.get((model, kind, band), ("", None)) if grid else ("", None)
    )
    return {
        "model": model,
        "kind": kind,
        "sparsity": "dense" if kind in ("base", "quantized") else percent,
        "bits": bits,
        "channels": f"{100 * left:.0f} %",
        "teacher": "yes" if taught else "",
        "precision": precision,
        **plain(more, extra),
        "trials": len(group),
        "test accuracy, %": round(accuracy.mean(), 2),
        "±": round(accuracy.std(ddof=1), 2) if len(group) > 1 else None,
        "best, %": round(accuracy.max(), 2),
        "vs dense, points": round(accuracy.mean() - against, 2) if len(dense) else None,
        "file bytes": int(size),
        "smaller": _ratio(_median(dense, "model_bytes"), size),
        "vs torch.save": _ratio(_median(group, "torch_save_bytes"), size),
        "latency ms": _median(group, "latency_ms"),
        "s/epoch": round(float(group["s_per_epoch"].median()), 1),
        "faster than fp32": _faster(group, done, precision),
        "reference: accuracy": accuracy_in_words,
        "reference: smaller": smaller,
    }


def _faster(group: pd.DataFrame, done: pd.DataFrame, precision: str) -> float | None:
    """The speed-up over twins in fp32; None for the fp32 rows, and if there are no twins."""
    in_fp32 = done[(done["precision_used"] == "float32") & done["twin"].isin(group["twin"])]
    if precision == "float32" or in_fp32.empty:
        return None
    compared = group[group["twin"].isin(in_fp32["twin"])]
    return _ratio(_median(in_fp32, "s_per_epoch"), float(compared["s_per_epoch"].median()))


def _twins(done: pd.DataFrame) -> list[str]:
    """Each experiment without its precision and seed, as text."""
    names = [n for n in done.columns if is_input(n) and n not in ("recipe.precision", "seed")]
    return [str(row) for row in done[names].itertuples(index=False, name=None)]


def _bits(bits: int, budget_bytes: int) -> str:
    if not bits:
        return FULL
    return f"in {budget_bytes / 1000:.4g} kB" if budget_bytes else str(bits)


def _taught(done: pd.DataFrame) -> pd.Series:
    """Whether the trial was trained with a teacher."""
    if "distill.teacher" not in done:
        return pd.Series(False, index=done.index)
    return done["distill.teacher"].fillna("").astype(str) != ""


def _filled(done: pd.DataFrame, name: str, default: float) -> pd.Series:
    """A column with a default in place of nulls; a sweep of an older version lacks the column."""
    if name not in done:
        return pd.Series(default, index=done.index)
    return done[name].fillna(default).astype(float)


def _median(group: pd.DataFrame, name: str) -> float | None:
    if name not in group or group[name].isna().all():
        return None
    return float(group[name].median())


def _ratio(whole: float | None, part: float) -> float | None:
    return round(whole / part, 2) if whole else None
