"""Which training-efficiency technique pays, for my model, on my data, on my hardware?

    from raybench import compare, read, train, tune

`train`, `tune` and `compare` run what the commands of these names run and return tables; `read`
opens the results of any of them.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybench.compare import compare as compare
    from raybench.results.read import read as read
    from raybench.train import train as train
    from raybench.tune import tune as tune

__version__ = "0.1.0"


class Command(ModuleType):
    """A command's module that can be called: `raybench.tune` is a module and a function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **options)


def __getattr__(name: str) -> Any:
    if name == "read":  # imported late: pandas takes half a second, and trials do not need it
        from raybench.results.read import read

        return read
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
