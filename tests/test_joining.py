"""The versions of a cluster's nodes, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raybench.cluster import joining


class Tasks:
    """Stands in for Ray: the first node answers in time, the second one later."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "NodeID": f"{number:056x}", "NodeManagerAddress": f"10.0.0.{number}"}
            for number in (1, 2)
        ]

    def options(self, scheduling_strategy: Any) -> Tasks:
        self.started.append(scheduling_strategy.node_id)
        return self

    def remote(self) -> str:
        return self.started[-1]

    def wait(self, tasks: list[str], **_: Any) -> tuple[list[str], list[str]]:
        return tasks[:1], tasks[1:]

    def get(self, task: str) -> dict[str, str]:
        return {"ray": "2.60.0"}

    def cancel(self, task: str, **_: Any) -> None:
        self.cancelled.append(task)


def test_a_late_node_is_left_out_and_its_task_is_not_cancelled(monkeypatch: pytest.MonkeyPatch):
    """Ray ends the whole process if a cancelled task answers."""
    tasks = Tasks()
    monkeypatch.setattr(joining, "ray", tasks)
    monkeypatch.setattr(joining, "_versions", SimpleNamespace(options=tasks.options))
    assert joining.versions_of_nodes(0.1) == [("10.0.0.1", {"ray": "2.60.0"})]
    assert len(tasks.started) == 2
    assert not tasks.cancelled
