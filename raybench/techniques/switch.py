"""Mixture of experts in place of a feed-forward (Fedus et al. 2021, "Switch Transformers").

token ─▶ router ─▶ probabilities p of E experts ─▶ the k largest     (in fp32; section 2.1)
  │                                                     │
  └──────────────▶ experts ◀─── choice ◀────────────────┤
                      └─▶ sum of gate × output ◀─ gate ─┘            a dropped token gets 0 and
                                                                     keeps only its residual
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Batch, Memory, Technique
from raybench.techniques.layers.chain import chain_of
from raybench.techniques.layers.experts import Experts, loads
from raybench.techniques.layers.feed_forwards import FeedForward, feed_forwards
from raybench.techniques.layers.router import Router, within_capacity

DEAD = 0.01  # share of an even load below which an expert counts as dead


@dataclass(frozen=True, kw_only=True)
class Switch(Technique):
    """Replaces the feed-forward of chosen blocks by a mixture of experts.

    It works for any model with feed-forwards of two linear layers: ViT, Swin, BEiT, ConvNeXt, a
    mixer's channels, nn.TransformerEncoder. `experts=0` is the plain model. The default is every
    second block, as in Switch Transformers and V-MoE: half the parameters of mixtures in all
    blocks.
    """

    experts: int = 8
    """Experts of a mixture; 0 is the plain model."""
    blocks: str = "second"
    """all, second (every second block), last_two, or numbers such as 1,3,5, which count the model's
    feed-forwards from 0."""
    top_k: int = 1
    """Experts per token: 1 or 2."""
    capacity_factor: float = math.inf
    """Tokens that an expert takes in a training step, as a multiple of an even share; later tokens
    are dropped. The paper's capacity is tokens / experts · factor (equation 3), here rounded up, so
    factor 1 never drops an even load. inf drops nothing; evaluation never drops."""
    gate: Literal["probability", "normalized"] = "probability"
    """Factor of an expert's output: the router's probability (Switch), or that divided by its sum
    over the token's experts. With one expert per token the latter is 1, with p's gradient."""
    balance_loss: float = 0.01
    """Weight of E · Σ f · P, shares of tokens times mean probabilities (equation 4). It is 1 for
    an even load."""
    z_loss: float = 0.001
    """Weight of the mean squared logsumexp of the router's logits (ST-MoE, equation 5)."""
    jitter: float = 0.01
    """The router's input is multiplied by noise from [1 - jitter, 1 + jitter] in training."""
    shared_expert: bool = False
    """Keeps the block's own feed-forward for every token, in addition to the experts."""
    upcycle: bool = False
    """Experts start as copies of the block's feed-forward (Komatsuzaki et al. 2022), otherwise with
    their own random weights. `start_from` provides the dense weights."""

    columns: ClassVar[Mapping[str, Column]] = {
        "load_cv": Column(
            float, "", "Coefficient of variation of the experts' loads over an epoch's steps."
        ),
        "dead_experts": Column(
            int, "", "Experts with less than a hundredth of an even load, over all mixtures."
        ),
        "dropped_share": Column(float, "share", "Assignments dropped because the expert was full."),
        "router_entropy": Column(
            float, "nats", "Entropy of the routers; log(experts) if they have no preference."
        ),
        "balance_loss": Column(float, "", "Balance loss before its weight; 1 for an even load."),
        "z_loss": Column(float, "", "Mean squared logsumexp of the routers' logits."),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        *(
            Apart(strategy, "it shards single layers; use expert, which shards the experts")
            for strategy in ("zero3", "zero3_offload")
        ),
        Apart(
            "pipeline",
            "a stage does not see the loss to which the routers' penalties are added; use "
            "pipeline.stages 1 and pipeline.chunks 1",
        ),
    )

    def __post_init__(self) -> None:
        if self.experts < 0:
            raise ValueError(f"experts is {self.experts}: 0 (the plain model) or more")
        if self.top_k not in (1, 2):
            raise ValueError(f"top_k is {self.top_k}: 1 or 2 experts per token")
        if 0 < self.experts < self.top_k:
            raise ValueError(f"top_k {self.top_k} is above the {self.experts} expert(s)")
        if not self.capacity_factor > 0:
            raise ValueError(
                f"capacity_factor is {self.capacity_factor}: it must be above 0; inf drops nothing"
            )
        for name in ("balance_loss", "z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: a weight, 0 or more")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is {self.jitter}: it lies in [0, 1)")
        _numbers(self.blocks, 1 << 16)

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Switch, ...]:
        return tuple(cls(experts=experts) for experts in (2, 4, 8))

    @property
    def active(self) -> bool:
        return bool(self.experts)

    def acts_on(self, model: nn.Module) -> list[str]:
        """The experts and the routers."""
        parts = (
            f"{path}.{part}."
            for path, m in model.named_modules()
            if isinstance(m, Mixture)
            for part in ("experts", "router")
        )
        prefixes = tuple(parts)
        return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]

    def reshape(self, model: nn.Module) -> None:
        if self.experts:
            for block in _chosen(model, self.blocks):
                assert block.chain is not None
                whole = not block.children
                dense = model.get_submodule(block.path) if whole else block.chain.module()
                block.replace(model, Mixture(dense, self))

    def penalty(self, model: nn.Module, batch: Batch, memory: Memory) -> Tensor | float:
        total: Tensor | float = 0.0
        for mixture in mixtures(model):
            balance, z = mixture.penalties
            total = total + self.balance_loss * balance + self.z_loss * z
        return total

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float]:
        """The routers' statistics over the epoch's training steps, mean over the mixtures."""
        each = [mixture.statistics() for mixture in mixtures(model)]
        if not each:
            return {}
        means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
        return means | {"dead_experts": sum(int(one["dead_experts"]) for one in each)}


class Mixture(nn.Module):
    """Router and experts in place of `dense`, a feed-forward; (…, D) -> (…, D)."""

    def __init__(self, dense: nn.Module, settings: Switch) -> None:
        super().__init__()
        self.settings = settings
        layers = chain_of(dense)
        self.router = Router(layers.first.in_features, settings.experts, settings.jitter)
        experts = Experts(dense, settings.experts)
        if not settings.upcycle:
            experts.draw()
        self.experts: nn.Module = experts
        self.after = copy.deepcopy(layers.after)  # the feed-forward's own dropout
        self.shared = dense if settings.shared_expert else None
        # Sums over the training steps of an epoch: load of each expert, dropped, entropy, balance,
        # z, steps. It is a buffer so that workers average it; it is not stored with the model.
        self.register_buffer("tally", torch.zeros(settings.experts + 5), persistent=False)
        self.penalties: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)

    tally: Tensor

    def forward(self, x: Tensor) -> Tensor:
        kind, settings = x.device.type, self.settings
        mixed = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else x.dtype
        x_TD = x.flatten(0, -2)
        with torch.autocast(kind, enabled=False):  # grouped_mm does not support autocast
            logits_TE = self.router(x_TD.float())
            p_TE = logits_TE.softmax(-1)
            gate_Tk, choice_Tk = p_TE.topk(settings.top_k)
            # All first choices come before all second ones, so first choices are dropped last.
            expert_N, gate_N = choice_Tk.T.flatten(), self._gates(gate_Tk).T.flatten()
            source_N = torch.arange(len(x_TD), device=x.device).repeat(settings.top_k)
            load_E = loads(expert_N, settings.experts) / max(1, len(expert_N))
            dropped = load_E.new_zeros(1)
            if self.training and settings.capacity_factor < math.inf:
                kept = within_capacity(expert_N, settings.experts, settings.capacity_factor)
                dropped = 1 - kept.float().sum(0, keepdim=True) / max(1, len(kept))
                if kept.is_cuda:
                    # Counting the kept ones would wait for the GPU, so all are computed; a gate
                    # of 0 removes output and gradient of the dropped ones.
                    gate_N = gate_N * kept
                else:
                    expert_N, gate_N, source_N = expert_N[kept], gate_N[kept], source_N[kept]
            if self.training:
                self._note(logits_TE, p_TE, load_E, dropped)
            x_ND = x_TD.to(dtype)
            every_once = len(expert_N) == len(x_TD) and settings.top_k == 1
            if not every_once:
                x_ND = x_ND.index_select(0, source_N)
            y_TD = gate_N.to(dtype)[:, None] * self.experts(x_ND, expert_N)
            if not every_once:
                y_TD = torch.zeros_like(x_TD, dtype=dtype).index_add(0, source_N, y_TD)
        y = self.after(y_TD).view(x.shape)
        return y if self.shared is None else y + self.shared(x)

    def _gates(self, gate_Tk: Tensor) -> Tensor:
        if self.settings.gate == "probability":
            return gate_Tk
        if self.settings.top_k == 1:
            return gate_Tk / gate_Tk.detach()
        return gate_Tk / gate_Tk.sum(-1, keepdim=True)

    def _note(self, logits_TE: Tensor, p_TE: Tensor, load_E: Tensor, dropped: Tensor) -> None:
        """Stores the penalties of this step and adds the step to the tally."""
        if dist.is_available() and dist.is_initialized():
            # Over the whole batch: a mean of products over workers is not the product of means.
            dist.all_reduce(load_E)
            load_E = load_E / dist.get_world_size()
        tokens = max(1, len(p_TE))  # a mean over no tokens would be NaN
        balance = self.settings.experts * (load_E * p_TE.sum(0) / tokens).sum()
        z = logits_TE.logsumexp(-1).square().sum() / tokens
        self.penalties = (balance, z)
        with torch.no_grad():
            entropy = -torch.special.xlogy(p_TE, p_TE).sum() / tokens
            numbers = torch.stack([entropy, balance, z])
            rest = [dropped, numbers, numbers.new_ones(1)]
            self.tally += torch.cat([load_E, *rest])

    def statistics(self) -> dict[str, float]:
        """Means over the training steps since `train()`; the entropy in nats."""
        experts = self.settings.experts
        steps = max(1.0, float(self.tally[-1]))
        load_E = self.tally[:experts].double() / steps
        dropped, entropy, balance, z = (self.tally[experts:-1].double() / steps).tolist()
        return {
            "load_cv": float(load_E.std(correction=0) * experts),  # relative to the mean 1 / E
            "dead_experts": float((load_E < DEAD / experts).sum()),
            "dropped_share": dropped,
            "router_entropy": entropy,
            "balance_loss": balance,
            "z_loss": z,
        }

    def train(self, mode: bool = True) -> Mixture:
        if mode and not self.training:
            self.tally.zero_()
        self.penalties = (0.0, 0.0)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # The last step's penalties hold its graph, which deepcopy cannot copy.
        return self.__dict__ | {"penalties": (0.0, 0.0)}


def mixtures(model: nn.Module) -> Iterator[Mixture]:
    """The mixtures of a model, from the first block to the last."""
    return (module for module in model.modules() if isinstance(module, Mixture))


def _chosen(model: nn.Module, blocks: str) -> list[FeedForward]:
    """The feed-forwards that become mixtures. Raises ValueError."""
    every = [f for f in feed_forwards(model) if not f.of_tokens]
    if not every:
        raise ValueError(
            f"a {type(model).__name__} has no feed-forward (two linear layers with an activation "
            "module between them) that experts could replace: use a transformer, such as vit300"
        )
    numbers = _numbers(blocks, len(every))
    if not numbers:
        raise ValueError(f"blocks {blocks!r} names none of the {len(every)} block(s); use all")
    wanted = [every[number] for number in numbers]
    for number, block in zip(numbers, wanted, strict=True):
        if block.chain is None:
            raise ValueError(
                f"feed-forward {number}, {block.path}, cannot become experts: {block.reason}"
            )
    return wanted


def _numbers(blocks: str, count: int) -> list[int]:
    """all, second, last_two or 1,3,5 as numbers below `count`."""
    named = {"all": range(count), "second": range(1, count, 2), "last_two": range(count)[-2:]}
    if blocks in named:
        return list(named[blocks])
    try:
        numbers = sorted({int(number) for number in blocks.split(",")})
    except ValueError:
        raise ValueError(
            f"blocks is {blocks!r}: all, second, last_two, or numbers such as 1,3,5"
        ) from None
    if numbers[0] < 0 or numbers[-1] >= count:
        raise ValueError(f"blocks is {blocks!r}, but the model has the blocks 0 to {count - 1}")
    return numbers
