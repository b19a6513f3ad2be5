"""ZeRO, third stage, with torch's FSDP2: parameters, gradients and optimizer state are split.

    forward   gather block 1 ─ compute ─ free │ gather block 2 ─ compute ─ free │ …
    backward  … │ gather block 2 ─ compute ─ reduce-scatter ─ free │ gather block 1 ─ …

Rajbhandari et al. 2020, "ZeRO", section 5.3: it sends 1.5 times as much as DDP, because parameters
are gathered twice. ColossalAI's Gemini also keeps the parts in host memory; `Zero3Offload` does the
same with FSDP2's own policy, also for one worker, as the reference project ran it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from raybench.hardware import gpu
from raybench.parallel.ddp import Replicas
from raybench.parallel.exchange import Exchange


class Zero3(Replicas):
    """With one worker it is `Replicas`. In a group, every worker must call every method."""

    policy = OffloadPolicy()

    @property
    def shards(self) -> bool:
        """Whether there is anything to shard or to offload."""
        return self.workers > 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model itself, with rank 0's parameters as DTensors."""
        if not self.shards:
            return model
        model.to(memory_format=torch.contiguous_format)  # FSDP2 accepts nothing else
        if self.workers > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), src=0)
        # The plain model with parameters on the meta device; `whole` fills copies of it.
        bare = {id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()}
        self._bare = copy.deepcopy(model, dict(bare))
        device = next(model.parameters()).device
        self._mesh = init_device_mesh(device.type, (self.workers,))
        for module in [*_blocks(model), model]:
            sharded: Any = fully_shard(
                module,
                mesh=self._mesh,
                reshard_after_forward=True,
                shard_placement_fn=self._placement,
                offload_policy=self.policy,
            )
            if self.workers > 1:
                sharded.set_custom_all_gather(_AllGather(self.exchange))
                sharded.set_custom_reduce_scatter(_ReduceScatter(self.exchange))
        return model

    def spread(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        if self.shards and isinstance(optimizer, torch.optim.SGD):
            for group in optimizer.param_groups:
                group["fused"] = False  # torch 2.15 has a fused AdamW for DTensors, but no SGD
        return optimizer

    def whole(self, model: nn.Module) -> nn.Module:
        """A copy of the model with all parameters, as a single process would have it.

        Evaluation, `finish` and the stored file use this copy, so it must fit on one worker.
        """
        if not self.shards:
            return model
        live = dict(model.named_buffers())
        memo: dict[int, Any] = {
            id(bare): nn.Parameter(self._full(parameter).detach())
            for bare, parameter in zip(self._bare.parameters(), model.parameters(), strict=True)
        }
        memo |= {id(bare): live[name].clone() for name, bare in self._bare.named_buffers()}
        return copy.deepcopy(self._bare, memo).train(model.training)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state as one process would write it: any strategy and number of workers can load it.

        Each worker briefly holds the whole state.
        """
        state = super().state(model, optimizer)
        if not self.shards:
            return state
        moments = {
            number: {name: self._full(value) for name, value in parameter_state.items()}
            for number, parameter_state in state["optimizer"]["state"].items()
        }
        return {
            "model": {name: self._full(value) for name, value in state["model"].items()},
            "optimizer": state["optimizer"] | {"state": moments},
        }

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Takes this worker's part from the state of a single process."""
        if not self.shards:
            super().load(model, optimizer, state)
            return
        sharded = model.state_dict()
        weights = {name: self._part(t, sharded[name]) for name, t in state["model"].items()}
        model.load_state_dict(weights)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for number, moments in state["optimizer"]["state"].items():
            parameter = parameters[number]
            optimizer.state[parameter] = {
                # A moment has its parameter's axes; AdamW's step count is a scalar.
                name: self._part(value, parameter) if value.ndim else value.clone()
                for name, value in moments.items()
                if isinstance(value, Tensor)
            }

    def sent_bytes_per_step(self, model: nn.Module, steps: int) -> float:
        return self.counted_bytes_per_step(steps)

    def _placement(self, parameter: nn.Parameter) -> Shard:
        """Shards the first axis that divides evenly: a position embedding's first has length 1."""
        for axis, length in enumerate(parameter.shape):
            if length % self.workers == 0:
                return Shard(axis)
        return Shard(0)

    def _full(self, value: Any) -> Any:
        """The whole of a DTensor; any other value unchanged."""
        if not isinstance(value, DTensor):
            return value
        # Offloaded parts are in host memory, which NCCL cannot read.
        local = cast(DTensor, value.detach()).to_local().to(self._device)
        moved = DTensor.from_local(
            local, self._mesh, value.placements, shape=value.shape, stride=value.stride()
        )
        return moved.full_tensor().clone()

    def _part(self, full: Tensor, like: Tensor) -> Tensor:
        """This worker's part of a whole tensor."""
        if not isinstance(like, DTensor):
            return full
        whole = full.to(self._device).contiguous()
        # Without a source rank every worker cuts its own copy, and nothing is sent.
        cut = distribute_tensor(whole, self._mesh, like.placements, src_data_rank=None)
        local = cut.to_local().to(like.to_local().device, copy=True)
        return DTensor.from_local(
            local, self._mesh, like.placements, shape=like.shape, stride=like.stride()
        )

    @property
    def _device(self) -> torch.device:
        mesh: DeviceMesh = self._mesh
        return torch.device(mesh.device_type)


class Zero3Offload(Zero3):
    """`Zero3` whose parts and optimizer step are in host memory."""

    policy = CPUOffloadPolicy(pin_memory=gpu.available())

    @property
    def shards(self) -> bool:
        return True

    def wrap(self, model: nn.Module) -> nn.Module:
        if not dist.is_initialized():
            # FSDP2 needs a process group, even for one worker.
            backend = "nccl" if next(model.parameters()).is_cuda else "gloo"
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return super().wrap(model)


class _Fresh:
    """Allocates a new tensor for each collective."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Fresh):
    """FSDP2's gathering of parameters, through `Exchange`."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> None:
        self.exchange.all_gather(output_tensor, input_tensor)


class _ReduceScatter(_Fresh):
    """FSDP2's mean of gradients, through `Exchange`."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        self.exchange.reduce_scatter(output_tensor, input_tensor)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The units in which parameters are gathered: the members of the model's stacks."""
    stacks = [m for m in model.children() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    members = [member for stack in stacks for member in stack]
    return [m for m in members if any(True for _ in m.parameters())]
