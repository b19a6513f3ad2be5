"""The runner of a pipeline: its stages train, and this process evaluates the whole model."""

from __future__ import annotations

from typing import Any

from torch import nn

from raybench.data import Images
from raybench.experiment import Experiment
from raybench.parallel.ddp import Replicas
from raybench.parallel.pipeline import balance, schedule
from raybench.techniques import Memory
from raybench.training import measure
from raybench.training.first_model import laid_out
from raybench.training.runner import Metrics, Trained
from raybench.training.staged import MakeStages, Report


class StagedRunner:
    """An experiment's stages, in this process or in others.

    Args:
        make: starts the stages, from the start or from a state of all stages together.
    """

    def __init__(
        self,
        experiment: Experiment,
        images: Images,
        state: dict[str, Any] | None,
        *,
        make: MakeStages,
    ) -> None:
        self.experiment, self.images = experiment, images
        self.replicas = Replicas()
        self._whole = laid_out(experiment, images.classes, measure.pick_device())
        parts = ("epoch", "model", "optimizer", "memories")
        taken = None if state is None else {part: state[part] for part in parts}
        self._stages = make(experiment, images, taken)
        self._state = taken

    def epoch(self, number: int) -> Trained:
        reports = self._stages.epoch(number)
        self._state = None
        metrics = _of_training(self.experiment, self.images, reports)
        cuts = ",".join(map(str, self._stages.cuts))
        return Trained(
            metrics | {"restarts": self._stages.restarts, "cuts": cuts},
            max(report.wall_s for report in reports),
            max(report.first_step for report in reports),
            max(report.peak_memory_bytes for report in reports),
        )

    def whole(self) -> nn.Module:
        self._whole.load_state_dict(self.state()["model"])
        return self._whole.eval()

    def memories(self) -> dict[str, Memory]:
        memories: dict[str, Memory] = self.state()["memories"]
        return {name: dict(memories.get(name, {})) for name, _ in self.experiment.techniques()}

    def state(self) -> dict[str, Any]:
        if self._state is None:
            self._state = dict(self._stages.state())
        return self._state

    def close(self) -> None:
        self._stages.close()


def _of_training(experiment: Experiment, images: Images, reports: list[Report]) -> Metrics:
    """The metrics of an epoch, from the reports of all stages."""
    recipe, pipeline = experiment.recipe, experiment.pipeline
    steps, stages = len(images.train) // recipe.batch, len(reports)
    seconds = max(report.wall_s for report in reports)
    busy = [report.busy_s for report in reports]
    sent = sum(report.sent_bytes for report in reports) / steps
    seen = {
        name: sum(report.tensors.get(name, 0) for report in reports)
        for name in ("values", "zero_range_tiles", "nonfinite_tensors", "clipped")
    }
    return {
        "loss": reports[-1].loss,
        "lr": reports[0].lr,
        "images_per_s": steps * recipe.batch / seconds,
        "sent_bytes_per_step": round(sent / stages),
        "wire_bytes_per_step": round(sent),
        "bubble_predicted": schedule.bubble(pipeline.schedule, stages, pipeline.chunks),
        "bubble": max(0.0, 1 - sum(busy) / (stages * seconds)),
        "imbalance": balance.imbalance(busy),
        "zero_range_tiles": seen["zero_range_tiles"],
        "nonfinite_tensors": seen["nonfinite_tensors"],
        "clipped_share": seen["clipped"] / max(1, seen["values"]),
    }
