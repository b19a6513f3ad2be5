"""python -m raybench.compare: which technique pays, for this model on this data?"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from raybench import Command
from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import settled
from raybench.arguments.shown_fields import Usual
from raybench.cluster import SETTINGS as SETTINGS  # before a module of the user imports Ray
from raybench.reports import verdict
from raybench.reports.page import as_html
from raybench.reports.verdict import Verdict
from raybench.results import whole
from raybench.results.read import read
from raybench.results.remote.place import Place, opened, require
from raybench.search.overrides import Overrides
from raybench.search.progress import Progress
from raybench.search.sweep import Sweep
from raybench.verdict import finish, prepared, words
from raybench.verdict.finish import Finished
from raybench.verdict.options import Compare
from raybench.verdict.ready import Ready, name_of, prepare
from raybench.verdict.study import SPENT, Clock, Study

PAGE = "verdict.html"
MANY = 10**6  # trials: the study itself decides when to end


USUAL: Usual = {
    Compare: (
        *("model", "data", "subset", "goal", "within", "constraint", "techniques", "budget"),
        *("plan", "epochs", "name", "results", "max_concurrent"),
    )
}


def compare(**options: Any) -> Verdict:
    """Runs a study, or resumes one, and returns its verdict.

        verdict = compare(model="resnet20", data="digits", budget="10m")
        verdict.sentence, verdict.tables, verdict.folder

    It starts processes, so in a script call it below `if __name__ == "__main__":`.

    Args:
        options: the command's options, with the same defaults.

    Raises:
        ValueError: wrong usage, with advice.
        OSError: the results cannot be written.
        KeyboardInterrupt: it was interrupted; the same call resumes it.
    """
    paths = {"results": str(options["results"])} if "results" in options else {}
    asked, clock = Compare(**{**options, **paths}), Clock(began=time.monotonic())
    with _opened(asked) as place:
        ready = prepare(asked, clock, place, partial(_cluster_slots, asked))
        print(words.plan_text(ready.plan, ready.reasons, ready.budget_s, asked.price_per_hour))
        if asked.plan:
            raise ValueError("plan=True runs no study; python -m raybench.compare --plan prints it")
        finished = _studied(ready, asked, clock, place)
    if finished is None:
        raise KeyboardInterrupt("interrupted; the same call resumes")
    result = verdict.read(ready.folder)
    assert result is not None
    return result


def run(options: Compare) -> int:
    """The exit code: 0, 1 no recipe, 2 usage, 130 interrupted and resumable."""
    clock = Clock(began=time.monotonic())
    try:
        with _opened(options) as place:
            ready = prepare(options, clock, place, partial(_cluster_slots, options))
            price = options.price_per_hour
            print(words.plan_text(ready.plan, ready.reasons, ready.budget_s, price))
            if options.plan:
                return 0
            finished = _studied(ready, options, clock, place)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"raybench.compare: {error}", file=sys.stderr)
        return 2
    if finished is None:
        return 130
    print(words.result_text(finished, ready.plan.design, ready.shown, clock.spent_s()))
    return 0 if finished.choice.meets else 1


def _opened(options: Compare) -> AbstractContextManager[Place]:
    require(options.results)
    return opened(options.results, name_of(options), command="compare")


def _studied(ready: Ready, options: Compare, clock: Clock, place: Place) -> Finished | None:
    """Runs the rest of the study and writes its verdict; None if it was interrupted."""
    from raybench.cluster.execute import execute
    from raybench.cluster.session import session

    design = ready.plan.design
    clock.budget_s, clock.reserved_s = ready.budget_s, ready.plan.after_s
    proposer = partial(
        Study,
        design=design,
        arms=ready.arms,
        clock=clock,
        seconds=ready.plan.seconds(),
        slots=ready.plan.slots,
        trials=ready.plan.forecast(ready.budget_s).trials,
        folder=ready.folder,
    )
    space = prepared.space_of(ready.arms, prepared.asked(ready.arms, design) | {"most_seeds": 0})
    sweep = Sweep(
        ready.folder,
        space,
        trials=MANY,
        overrides=Overrides(),
        keep="all",
        early_stopping=False,
        sampler="random",
        proposer=lambda _, sampling: proposer(sampling=sampling),
    )
    sweep.store.check, sweep.store.flush = place.check, place.flush
    study = sweep.proposals
    assert isinstance(study, Study)
    study.remember = lambda seconds: sweep.store.put(SPENT, {"seconds": seconds})
    try:
        with session(), Progress(sweep) as progress:
            execute(
                sweep,
                progress,
                gpus=options.gpus,
                max_concurrent=options.max_concurrent,
                wait_s=options.wait,
                resized=study.resize,
            )
        if sweep.unfinished and not study.late:
            print(
                f"raybench.compare: interrupted after {sweep.tally.ended} trials; the same command "
                "resumes",
                file=sys.stderr,
            )
            return None

        def trial_of(number: int) -> str:
            return str(sweep.store.trials[number]["trial"])

        finished = finish.finish(
            study, ready.folder, trial_of, ready.constraints, ready.reasons, _say
        )
        spent_s = clock.spent_s()
        study.remember(spent_s)
        words.save(finished, ready.plan, ready.folder, ready.budget_s, spent_s)
    finally:
        sweep.close()
    page = as_html(read(ready.folder), verdict=verdict.read(ready.folder))
    whole.write(ready.folder / PAGE, page)
    return finished


def _cluster_slots(options: Compare) -> int:
    from raybench.cluster.session import expected_slots

    return expected_slots(options.gpus, options.max_concurrent)


def _say(text: str) -> None:
    print(f"raybench.compare: {text}", file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> Compare:
    """The command line. Raises SystemExit."""
    options = command_line(Compare, arguments, "compare", usual=USUAL)
    return replace(options, results=settled(options.results))


sys.modules[__name__].__class__ = Command

if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
