"""Stage: some blocks of a model and their actions in a step. A single stage is the whole model.

before.receive ─▶ F ─▶ after.send        a chunk's activations
before.send    ◀─ B ◀─ after.receive     their gradients
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.experiment import Recipe
from raybench.parallel.checkpointing import twice
from raybench.parallel.pipeline import batch_norm, weight_gradients
from raybench.parallel.pipeline.boundary import Boundary
from raybench.parallel.pipeline.schedule import Action

State = dict[str, dict[str, object]]
"""State of one or all stages: "model" and "optimizer", keyed by the plain model's names."""


class Stage:
    """Runs its list of actions in every step. It imports neither Ray nor other stages.

    Args:
        blocks: the model's blocks from number `first` on.
        names: name in `nn.Sequential(*blocks)` -> name in the plain model.
        actions: its actions in a step, in order.
        optimize: builds the blocks' optimizer.
        chunks: parts of a batch.
        checkpointing: whether blocks keep only their inputs and are computed twice.
        before: boundary to the stage before; None in the first stage.
        after: boundary to the next stage; None in the last stage.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        names: dict[str, str],
        recipe: Recipe,
        actions: Sequence[Action],
        optimize: Callable[[nn.Module, Recipe], torch.optim.Optimizer],
        *,
        first: int,
        chunks: int,
        mode: batch_norm.Mode,
        dtype: torch.dtype,
        checkpointing: bool = False,
        before: Boundary | None = None,
        after: Boundary | None = None,
    ) -> None:
        self.model = nn.Sequential(*blocks).train()
        self.names, self.recipe, self.actions = names, recipe, actions
        self.first, self.chunks, self.dtype = first, chunks, dtype
        self.before, self.after = before, after
        self.checkpointing = checkpointing
        self.optimizer = optimize(self.model, recipe)
        self.seconds = {"F": 0.0, "B": 0.0, "W": 0.0, "update": 0.0, "wait": 0.0}
        batch_norm.prepare(self.model, mode, chunks)
        self._work: weight_gradients.Work = []
        self._put_off: dict[int, weight_gradients.Work] = {}
        self._splits = any(action.kind == "W" for action in actions)
        if self._splits:
            weight_gradients.put_off(self.model, self._work)
        self._drops = [n for n, block in enumerate(blocks) if _is_random(block)]
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._losses: list[Tensor] = []
        self._device = next(self.model.parameters()).device

    def step(self, x: Tensor | None, y: Tensor | None, rate: float, seed: int) -> Tensor | None:
        """One optimizer step; the batch's mean loss in the last stage, None in the others.

        Args:
            x: the batch's images, in the first stage.
            y: its labels, in the last stage.
            rate: learning rate.
            seed: seed of this step's dropout.
        """
        self.gradients(x, y, seed)
        began = time.perf_counter()
        batch_norm.commit(self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.step()
        self.seconds["update"] += time.perf_counter() - began
        return torch.stack(self._losses).sum() if self.after is None else None

    def gradients(self, x: Tensor | None, y: Tensor | None, seed: int) -> None:
        """Computes the gradients of one batch, in the parameters' `grad`."""
        for boundary in (self.before, self.after):
            if boundary is not None:
                boundary.link.begin()
        self.optimizer.zero_grad(set_to_none=True)
        self._losses = []
        images = [] if x is None else x.chunk(self.chunks)
        labels = [] if y is None else y.chunk(self.chunks)
        # A disabled outer autocast context keeps the inner ones' cache: weights are cast to bf16
        # once per step instead of once per chunk.
        with torch.autocast(self._device.type, enabled=False):
            for kind, chunk in self.actions:
                if kind == "F":
                    self._forward(
                        chunk,
                        images[chunk] if images else None,
                        labels[chunk] if labels else None,
                        seed,
                    )
                elif kind == "B":
                    self._backward(chunk)
                else:
                    self._weights(chunk)
        assert not self._kept
        assert not self._put_off

    def _forward(self, chunk: int, x: Tensor | None, y: Tensor | None, seed: int) -> None:
        began = time.perf_counter()
        if self.before is None:
            assert x is not None
        else:
            x = self.before.receive(chunk).requires_grad_()
        received = time.perf_counter()
        output = x
        with torch.autocast(self._device.type, self.dtype, enabled=self.dtype != torch.float32):
            for number, block in enumerate(self.model):
                if number in self._drops:
                    # The masks must not depend on the block's stage or on the schedule.
                    torch.manual_seed((seed * 4096 + chunk) * 4096 + self.first + number)
                output = twice(block, output) if self.checkpointing else block(output)
        if self.after is None:
            assert y is not None
            loss = F.cross_entropy(output.float(), y, label_smoothing=self.recipe.label_smoothing)
            # Divided before the backward pass, so no gradient is scaled afterwards.
            output = loss / self.chunks
            self._losses.append(output.detach())
        else:
            self.after.send(output, chunk)
        self._kept[chunk] = (x, output)
        self._spent("F", began, received)

    def _backward(self, chunk: int) -> None:
        began = time.perf_counter()
        gradient = None if self.after is None else self.after.receive(chunk)
        received = time.perf_counter()
        x, output = self._kept.pop(chunk)
        torch.autograd.backward(output, gradient)
        if self.before is not None:
            assert x.grad is not None
            self.before.send(x.grad, chunk)
        if self._splits:
            self._put_off[chunk] = list(self._work)
            self._work.clear()
        self._spent("B", began, received)

    def _weights(self, chunk: int) -> None:
        began = time.perf_counter()
        for later in self._put_off.pop(chunk):
            later()
        self._spent("W", began, began)

    def _spent(self, kind: str, began: float, received: float) -> None:
        self.seconds["wait"] += received - began
        self.seconds[kind] += time.perf_counter() - received

    # --- State, by the plain model's names ------------------------------------------------------

    def state(self) -> State:
        """This stage's part of the state from which training resumes."""
        parameters = {self.names[name]: p for name, p in self.model.named_parameters()}
        return {
            "model": {self.names[n]: t.detach() for n, t in self.model.state_dict().items()},
            "optimizer": {name: dict(self.optimizer.state[p]) for name, p in parameters.items()},
        }

    def load(self, state: State) -> None:
        """Resumes from `state`, that of this stage or of all stages together."""
        names = self.model.state_dict()
        self.model.load_state_dict({name: state["model"][self.names[name]] for name in names})
        for name, parameter in self.model.named_parameters():
            moments = state["optimizer"][self.names[name]]
            assert isinstance(moments, dict)
            self.optimizer.state[parameter] = {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in moments.items()
            }


def _is_random(block: nn.Module) -> bool:
    """Whether the block draws random numbers in training: torch's dropout or timm's DropPath."""
    return any("Drop" in type(module).__name__ for module in block.modules())
