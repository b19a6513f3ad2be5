"""A study's texts in the terminal: its plan, and its result with the verdict in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from raybench.reports import verdict
from raybench.reports.text import as_text
from raybench.results import whole
from raybench.verdict import outcome, plan
from raybench.verdict.finish import Finished
from raybench.verdict.plan import Plan, span
from raybench.verdict.policy import Design


def plan_text(
    made: Plan, reasons: Mapping[str, str], budget_s: float | None, price: float | None
) -> str:
    """The plan as a table, with what does not fit the model or the budget.

    Args:
        reasons: why techniques do not fit the model, by name.
        price: price of an hour.
    """
    design = made.design
    title = f"The plan: {design.tuning} + {design.seeds} trials of {design.epochs} epochs per arm"
    lines = [as_text(title, plan.table(made, budget_s, price))]
    lines += [f"{name} does not fit: {reason}" for name, reason in reasons.items()]
    lines += made.remarks
    if budget_s is not None:
        lines.append(f"budget: {span(budget_s)}; time left over is used for more seeds")
    return "\n".join(lines)


def result_text(finished: Finished, design: Design, folder: Path | str, spent_s: float) -> str:
    """The verdict in a sentence, the tables, and what to do with the recipe."""
    parts = [sentence(finished, design), ""]
    parts += [as_text(title, frame) for title, frame in tables(finished, design).items()]
    parts += [*reasons(finished), ""]
    parts.append(f"Page:    {folder}/verdict.html")
    parts.append(f"Parquet: {folder}/verdict.parquet, {folder}/trials, {folder}/epochs")
    if finished.choice.meets:
        fresh = finished.fresh
        figures = [f"{100 * fresh['test_accuracy']:.2f} %", f"{fresh['model_bytes']:,.0f} bytes"]
        if "latency_ms" in fresh:
            figures.append(f"ONNX {100 * fresh['onnx_test_accuracy']:.2f} %")
            figures.append(f"{fresh['latency_ms']:.2f} ms an image")
        kept = "as reported" if finished.kept else "NOT as reported"
        parts += [
            f"Recipe:  {folder}/recipe.json ({finished.choice.arm}), {folder}/recommended.*",
            f"Read in a fresh process: {', '.join(figures)} ({kept})",
            f"Rerun:   python -m raybench.train --recipe-file {folder}/recipe.json",
        ]
    parts.append(f"{span(spent_s)} in all")
    return "\n".join(parts)


def reasons(finished: Finished) -> list[str]:
    """One line for every arm that does not pay, is undecided or does not fit the model."""
    rows = finished.verdicts[~finished.verdicts["verdict"].isin(["baseline", "pays"])]
    return [f"{row.arm}: {row.verdict}, {row.why}" for row in rows.itertuples()]


def tables(finished: Finished, design: Design) -> dict[str, pd.DataFrame]:
    """By title: what pays, and the same at equal training time if that was run."""
    title = f"What pays for {design.goal}, against the baseline (95 %)"
    shown = {title: outcome.short_table(finished.verdicts, design.goal)}
    equal = outcome.equal_time_table(finished.verdicts)
    if equal is not None and len(equal):
        shown["The same at the baseline's training time"] = equal
    return shown


def save(
    finished: Finished, plan: Plan, folder: Path, budget_s: float | None, spent_s: float
) -> None:
    """Writes verdict.json: the verdict in words and tables, and the time of the study."""
    design = plan.design
    content = {
        "goal": design.goal,
        "sentence": sentence(finished, design),
        "reasons": reasons(finished),
        "tables": {t: f.to_dict(orient="records") for t, f in tables(finished, design).items()},
        "arm": finished.choice.arm,
        "meets": finished.choice.meets,
        "told": finished.told,
        "fresh": finished.fresh,
        "kept": finished.kept,
        "expected_s": plan.expected_s(budget_s),
        "expected_trials": plan.forecast(budget_s).trials,
        "budget_s": budget_s,
        "spent_s": spent_s,
        "epoch_s": plan.trial_s("") / design.epochs,
    }
    whole.write(folder / verdict.FILE, json.dumps(content, indent=2) + "\n")


def sentence(finished: Finished, design: Design) -> str:
    """The verdict in one sentence."""
    choice, frame = finished.choice, finished.verdicts
    if not choice.meets:
        return f"No recipe: the nearest is {choice.arm}, and {choice.why}."
    if choice.arm == "baseline":
        return f"The tuned baseline is the recipe: {choice.why}."
    row = frame[frame["arm"] == choice.arm].iloc[0]
    if row["verdict"] != "pays":
        return f"{choice.arm} is the recipe: {choice.why}."
    ratio = outcome.OF_GOAL[design.goal]
    gain = f"{row[f'{ratio}_ratio']:.2f} times the baseline's {design.goal}, " if ratio else ""
    return (
        f"{choice.arm} pays: {gain}{row['points']:+.1f} points of test accuracy "
        f"({row['points_low']:+.1f} to {row['points_high']:+.1f}, {int(row['seeds'])} seeds)."
    )
