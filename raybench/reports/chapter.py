"""One sweep's part of a report: its results and the texts about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from raybench.reports import summary
from raybench.reports.verdict import Verdict
from raybench.results.read import Results

if TYPE_CHECKING:  # because it loads SciPy, which few reports need
    from raybench.reports.attribution import Attribution


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A sweep's results, with the verdict of a study and the effects of ingredients, if any."""

    results: Results
    threshold: float = 0.75
    """A table shows the first epoch above this accuracy."""
    verdict: Verdict | None = None
    attributions: Sequence[Attribution] = ()

    @cached_property
    def family_table(self) -> pd.DataFrame | None:
        """The family's table; made once, since a large one takes seconds."""
        return summary.family_table(self.results, self.threshold)
