"""ZeRO, first stage: every worker holds the model, but only its part of the optimizer's state.

    backward      all gradients, for the worker's share of the batch
    reduce-scatter ─▶ this worker's part of the mean gradient
    step          this worker's part of the parameters, with its part of the averages
    all-gather    ─▶ all parameters

Rajbhandari et al. 2020, "ZeRO", section 5.1. Reduce-scatter and all-gather together send as much as
DDP's all-reduce, 2 (W - 1) / W of the parameters. torch's ZeroRedundancyOptimizer distributes whole
tensors after an all-reduce, so it sends 1.5 times as much, and its parts are not exactly equal.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable

from raybench.parallel.buckets import Bucket, cut
from raybench.parallel.ddp import Replicas


class Zero1(Replicas):
    """With one worker it is `Replicas`. In a group, every worker must call every method."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model itself, with the values of rank 0."""
        if self.workers > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), src=0)
        return model

    def spread(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Replaces the optimizer's parameters by this worker's parts of the flat buckets."""
        if self.workers == 1:
            return optimizer
        assert not optimizer.state, "no technique changes layers of a sharded model"
        self.buckets: list[Bucket] = []
        self._numbers: dict[nn.Parameter, int] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._numbers[parameter] = len(self._numbers)
            buckets = cut(group["params"], self.rank, self.workers)
            group["params"] = [bucket.part for bucket in buckets]
            self.buckets += buckets
        self._waiting = {bucket: len(bucket.parameters) for bucket in self.buckets}
        self._called_back = False
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, bucket=bucket: self._arrived(bucket)
                )
        optimizer.register_step_post_hook(lambda *_: self._gather())
        return optimizer

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state as one process would write it: any strategy and number of workers can load it.

        Each worker briefly holds the whole state.
        """
        if self.workers == 1:
            return super().state(model, optimizer)
        moments: dict[int, dict[str, Any]] = {}
        for bucket in self.buckets:
            for name, value in optimizer.state[bucket.part].items():
                # AdamW's step count is a scalar; each parameter needs its own copy.
                values = [copy.deepcopy(value) for _ in bucket.parameters]
                if isinstance(value, Tensor) and value.ndim:
                    flat = value.new_empty(bucket.numel)
                    self.exchange.all_gather(flat, value)
                    values = [view.clone() for view in bucket.views(flat)]
                for parameter, moment in zip(bucket.parameters, values, strict=True):
                    moments.setdefault(self._numbers[parameter], {})[name] = moment
        groups, first = [], 0
        for group, count in zip(optimizer.param_groups, self._counts(optimizer), strict=True):
            groups.append(group | {"params": [*range(first, first + count)]})
            first += count
        state = {"state": dict(sorted(moments.items())), "param_groups": groups}
        return {"model": model.state_dict(), "optimizer": state}

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Takes this worker's part from the state of a single process."""
        if self.workers == 1:
            super().load(model, optimizer, state)
            return
        model.load_state_dict(state["model"])  # into the views, that is into the flat tensors
        moments = state["optimizer"]["state"]
        for bucket in self.buckets:
            states = [moments.get(self._numbers[p], {}) for p in bucket.parameters]
            for name, value in states[0].items():
                optimizer.state[bucket.part][name] = value
                if isinstance(value, Tensor) and value.ndim:
                    flat = torch.zeros_like(bucket.flat)
                    for view, parameter_state in zip(bucket.views(flat), states, strict=True):
                        view.copy_(parameter_state[name])
                    optimizer.state[bucket.part][name] = bucket.own(flat).clone()
                elif isinstance(value, Tensor):
                    optimizer.state[bucket.part][name] = value.clone()

    def sent_bytes_per_step(self, model: nn.Module, steps: int) -> float:
        return self.counted_bytes_per_step(steps)

    def _counts(self, optimizer: torch.optim.Optimizer) -> list[int]:
        """Parameters of each of the optimizer's groups."""
        sizes = {bucket.part: len(bucket.parameters) for bucket in self.buckets}
        return [sum(sizes[part] for part in g["params"]) for g in optimizer.param_groups]

    def _arrived(self, bucket: Bucket) -> None:
        """Called when a parameter of the bucket has its gradient."""
        if not self._called_back:
            self._called_back = True
            # Runs after the whole backward pass, like FSDP2's own last step.
            Variable._execution_engine.queue_callback(self._finish)
        self._waiting[bucket] -= 1

    def _finish(self) -> None:
        self._called_back = False
        for bucket in self.buckets:
            self._waiting[bucket] = len(bucket.parameters)
            if bucket.part.grad is None:
                self._reduce(bucket)

    def _reduce(self, bucket: Bucket) -> None:
        flat = bucket.take_gradients()
        # A view: all gradients stay in memory until the optimizer drops this part.
        bucket.part.grad = bucket.own(flat)
        self.exchange.reduce_scatter(bucket.part.grad, flat)

    def _gather(self) -> None:
        for bucket in self.buckets:
            self.exchange.all_gather(bucket.flat, bucket.part.detach())
