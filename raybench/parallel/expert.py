"""Expert parallelism: every worker holds some of the experts, and tokens are sent to them.

    worker 0: tokens ─ router ─┬─▶ experts 0, 1 ─┬─▶ back, and into the order of the tokens
                               │╲               ╱│
                               │ ╳  all-to-all ╳ │    rows of width D, in the dtype of the step
                               │╱               ╲│
    worker 1: tokens ─ router ─┴─▶ experts 2, 3 ─┴─▶ back, and into the order of the tokens

Lepikhin et al. 2020, "GShard", section 3.2; Fedus et al. 2021, "Switch Transformers", section 2.2.
Everything except the experts is data-parallel, by DDP. A row is sent four times per step: to its
expert and back, and its gradients likewise in the backward pass. A capacity, if there is one,
applies within each worker's part of the batch, like the groups of GShard.

Shape suffixes: as in `techniques.layers.experts`; W workers, E experts of one worker.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raybench.hardware import gpu
from raybench.parallel.ddp import Replicas
from raybench.techniques.layers.experts import Experts, loads


class ExpertParallel(Replicas):
    """Worker r holds the experts r·E … (r+1)·E - 1; everything else is on every worker.

    With one worker it is `Replicas`. In a group, every worker must call every method.
    """

    def wrap(self, model: nn.Module) -> nn.Module:
        """DDP around `model`; each worker keeps its share of rank 0's experts, in place.

        Build the optimizer afterwards, because the experts' parameters are new.
        """
        if self.workers == 1:
            return model
        for path, module in list(model.named_modules()):
            if isinstance(module, Experts) and not isinstance(module, ShardedExperts):
                shard = ShardedExperts(module, self.rank, self.workers)
                for parameter in shard.parameters(recurse=False):
                    # A worker's loss is the mean over its part of the batch. The
                    # gradients of all workers add up here; dividing gives the mean, as in DDP.
                    parameter.register_post_accumulate_grad_hook(self._divide)
                model.set_submodule(path, shard)
        names = [*_sharded(model)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        return super().wrap(model)

    def whole(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the experts of all workers, as a single process would have it.

        Evaluation, `finish` and the stored file use it. Each worker holds the copy and its
        shards, so the model must fit on one worker: sharding saves only gradients, the optimizer's
        state and activations.
        """
        if self.workers == 1:
            return model
        # deepcopy replaces an object by its entry in the memo.
        memo: dict[int, Any] = {id(shard): shard.whole() for _, shard in _shards(model)}
        return copy.deepcopy(model, memo)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state as one process would write it; any number of workers can load it."""
        state, sharded = super().state(model, optimizer), _sharded(model)
        for name in sharded:
            state["model"][name] = self._join(state["model"][name])
        state["optimizer"] = _with_moments(state["optimizer"], optimizer, sharded, self._join)
        return state

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Takes this worker's part from the state of a single process."""
        sharded = _sharded(model)
        weights = {
            name: self._slice(tensor) if name in sharded else tensor
            for name, tensor in state["model"].items()
        }
        moments = _with_moments(state["optimizer"], optimizer, sharded, self._slice)
        super().load(model, optimizer, {"model": weights, "optimizer": moments})

    def whole_memory(self, model: nn.Module, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        sharded = _sharded(model)
        return {n: self._join(value) if n in sharded else value for n, value in memory.items()}

    def part_memory(self, model: nn.Module, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        sharded = _sharded(model)
        return {n: self._slice(value) if n in sharded else value for n, value in memory.items()}

    def reduced(self, model: nn.Module) -> list[nn.Parameter]:
        sharded = {id(parameter) for parameter in _sharded(model).values()}
        return [parameter for parameter in super().reduced(model) if id(parameter) not in sharded]

    def sent_bytes_per_step(self, model: nn.Module, steps: int) -> float:
        """The gradients that DDP reduces, and the rows sent to other workers.

        Resets the counter. The row counts, which are sent before the rows, are not included.
        """
        rows = sum(shard.sent_bytes for _, shard in _shards(model))
        for _, shard in _shards(model):
            shard.sent_bytes = 0
        counted = torch.tensor(float(rows), dtype=torch.float64)
        sent = self.total(counted.to(self.device, non_blocking=True))
        mean = gpu.read(sent) / (self.workers * steps)
        return super().sent_bytes_per_step(model, steps) + mean

    def _divide(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.div_(self.workers)

    def _slice(self, whole: Tensor) -> Tensor:
        return whole.chunk(self.workers)[self.rank]

    def _join(self, part: Tensor) -> Tensor:
        return _joined(part, self.workers)


class ShardedExperts(Experts):
    """One worker's slice of `full`, replacing it: the same parameter names, the same `forward`.

    `forward(x, expert)` takes this worker's rows, and expert numbers among the experts of all
    workers. Every worker must call it and run its backward pass, in the same order relative to
    other collectives. A worker without rows must take part as well.
    """

    def __init__(self, full: Experts, rank: int, workers: int) -> None:
        if len(full) % workers:
            raise ValueError(f"{len(full)} experts do not divide evenly over {workers} workers")
        slices = {}
        for name, parameter in full.named_parameters(recurse=False):
            dist.broadcast(parameter.detach(), src=0)
            slices[name] = parameter.detach().chunk(workers)[rank].clone()
        _assemble(self, full.act, slices)
        self.rank, self.workers = rank, workers
        self.sent_bytes = 0  # rows and their gradients sent to other workers

    def forward(self, x_ND: Tensor, expert_N: Tensor) -> Tensor:
        here = len(self)
        order_N = torch.sort(expert_N, stable=True).indices
        leaving_WE = loads(expert_N, self.workers * here).view(self.workers, -1)
        arriving_WE = torch.empty_like(leaving_WE)
        dist.all_to_all_single(arriving_WE, leaving_WE)
        # The host needs the message lengths: one wait for a GPU in each layer.
        sent, got = gpu.read_all(torch.stack([leaving_WE.sum(1), arriving_WE.sum(1)]))

        x_RD = self._exchanged(x_ND.index_select(0, order_N), sent, got)
        # Rows of each worker arrive sorted by expert, so the counts give the expert of each row.
        local_E = torch.arange(here, device=x_RD.device).repeat(self.workers)
        local_R = local_E.repeat_interleave(arriving_WE.flatten(), output_size=len(x_RD))
        y_RD = super().forward(x_RD, local_R)

        y_ND = self._exchanged(y_RD, got, sent)
        place_N = torch.empty_like(order_N)
        place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
        return y_ND.index_select(0, place_N)

    def whole(self) -> Experts:
        """The plain module with the experts of all workers."""
        stacks = {name: _joined(part, self.workers) for name, part in _stacks(self).items()}
        plain = Experts.__new__(Experts)
        _assemble(plain, copy.deepcopy(self.act), stacks)
        return plain.train(self.training)

    def _exchanged(self, rows: Tensor, sent: list[int], got: list[int]) -> Tensor:
        exchanged: Tensor = _Exchanged.apply(rows, sent, got, self)
        return exchanged

    def send(self, rows: Tensor, sent: list[int], got: list[int]) -> Tensor:
        """Sends `sent[w]` rows to each worker w, in order, and gets `got[w]`; without autograd."""
        arrived = rows.new_empty(sum(got), rows.shape[1])
        dist.all_to_all_single(arrived, rows.contiguous(), got, sent)
        travelled = len(rows) - sent[self.rank]
        self.sent_bytes += travelled * rows.shape[1] * rows.element_size()
        return arrived


class _Exchanged(torch.autograd.Function):
    """`ShardedExperts.send` of rows (R, D) with autograd: gradients are sent the opposite way."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], got: list[int], shard: ShardedExperts
    ) -> Tensor:
        ctx.sent, ctx.got, ctx.shard = sent, got, shard
        return shard.send(rows, sent, got)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.shard.send(grad, ctx.got, ctx.sent), None, None, None


def _assemble(module: Experts, act: nn.Module, stacks: dict[str, Tensor]) -> None:
    """Does the work of `Experts.__init__`, but from existing stacked weights."""
    nn.Module.__init__(module)
    module.act = act
    for name, stack in stacks.items():
        module.register_parameter(name, nn.Parameter(stack))


def _stacks(experts: Experts) -> dict[str, Tensor]:
    return {name: stack.detach() for name, stack in experts.named_parameters(recurse=False)}


def _joined(part: Tensor, workers: int) -> Tensor:
    """The parts of all workers, one after another along the first axis."""
    whole = part.new_empty(workers * part.shape[0], *part.shape[1:])
    if part.dtype == torch.bool:  # NCCL does not support it
        dist.all_gather_into_tensor(whole.view(torch.uint8), part.contiguous().view(torch.uint8))
    else:
        dist.all_gather_into_tensor(whole, part.contiguous())
    return whole


def _with_moments(
    state: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    sharded: dict[str, nn.Parameter],
    changed: Callable[[Tensor], Tensor],
) -> dict[str, Any]:
    """A copy of an optimizer's state with `changed` moments of the `sharded` parameters."""
    ours = {id(parameter) for parameter in sharded.values()}
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if id(parameter) in ours and number in moments:
            # A moment has its parameter's axes; AdamW's step count is a scalar.
            moments[number] = {
                name: changed(value) if isinstance(value, Tensor) and value.ndim else value
                for name, value in moments[number].items()
            }
    return state | {"state": moments}


def _shards(model: nn.Module) -> Iterator[tuple[str, ShardedExperts]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, ShardedExperts))


def _sharded(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that only this worker holds, by their names in the model."""
    return {
        f"{path}.{name}": parameter
        for path, shard in _shards(model)
        for name, parameter in shard.named_parameters(recurse=False)
    }
