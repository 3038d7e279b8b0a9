"""Optimizers: Muon for hidden matrices, AdamW for the rest, float32 masters behind weights of the compute precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bifocal.models.precision import set_precision


@dataclass(frozen=True)
class OptimizerSettings:
    """``kind`` "muon" gives hidden matrices to Muon at ``matrix_learning_rate`` and the rest to AdamW.

    Rates fall in a cosine from the warm-up on, or, with ``cooldown``, stay and fall in a line over that share of the
    steps at the end: for what is learnt in stages, of which the last would otherwise have hardly any rate left.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    warmup_steps: int = 20
    cooldown: float | None = None
    final_share: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "matrix_learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name} must be greater than 0, got {getattr(self, name)}")
        if self.cooldown is not None and not 0 < self.cooldown <= 1:
            raise ValueError(
                f"optimizer.cooldown is a share of the steps above 0 and at most 1, got {self.cooldown}"
            )


def learning_rate_share(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Share of the peak rate at ``step``: linear warm-up, then down to ``final_share`` as the settings say."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.cooldown is None:
        progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
        above = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        above = min(1.0, max(0.0, (steps - step) / max(1.0, settings.cooldown * steps)))
    return settings.final_share + (1 - settings.final_share) * above


SMALLEST_KERNEL = 16  # channels on either side below which a convolution kernel is left to AdamW


def is_matrix(tensor: Tensor) -> bool:
    """Whether Muon can take it: a matrix, or a convolution kernel with enough channels to be one."""
    return tensor.ndim == 2 or (tensor.ndim == 4 and min(tensor.shape[:2]) >= SMALLEST_KERNEL)


def as_matrix(tensor: Tensor) -> Tensor:
    """A matrix as it is; a kernel (O, I, h, w) as (O, h * w * I), sharing memory where it lies channels last."""
    return tensor if tensor.ndim == 2 else tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1)


def part_of(name: str, parts: Sequence[str]) -> str:
    """The longest of ``parts`` that a parameter's name begins with."""
    fitting = [part for part in parts if name.startswith(part)]
    if not fitting:
        raise ValueError(f"the parameter {name} belongs to none of the parts {', '.join(parts)}")
    return max(fitting, key=len)


class MasterOptimizer:
    """Steps float32 masters and copies them into the model's weights, which may be of lower precision.

    Gradients are clipped by their global norm. A non-finite norm skips the step; ``step`` then returns False.

    ``parts`` are beginnings of parameters' names, of which each may learn at a rate of its own (``choose``); a
    parameter belongs to the longest that fits.
    """

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, dtype: torch.dtype, parts: Sequence[str] = ("",)
    ) -> None:
        self.settings = settings
        self.rates: Mapping[str, float] | None = None
        trained = [
            (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        self.masters = {
            name: parameter.detach()
            .float()
            .clone(memory_format=torch.channels_last if parameter.ndim == 4 else torch.preserve_format)
            for name, parameter in trained
        }
        frozen = [
            (weight, weight.detach().clone()) for weight in model.parameters() if not weight.requires_grad
        ]
        set_precision(model, dtype)
        self.frozen = [(weight, before) for weight, before in frozen if weight.dtype != before.dtype]
        self.weights = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self.matrices: dict[str, Tensor] = {}
        self.parts = {name: part_of(name, parts) for name in self.masters}
        decayed: dict[str, list[Tensor]] = {part: [] for part in parts}
        plain: dict[str, list[Tensor]] = {part: [] for part in parts}
        orthogonal: dict[str, list[Tensor]] = {part: [] for part in parts}
        for name, master in self.masters.items():
            # embeddings are look-up tables, and the gains of QK-norm are two-dimensional without being a matrix
            hidden = not any(word in name for word in ("embed", "lm_head", "norm"))
            if settings.kind == "muon" and hidden and is_matrix(master):
                self.matrices[name] = as_matrix(master)
                orthogonal[self.parts[name]].append(self.matrices[name])
            elif master.ndim > 1 and hidden:
                decayed[self.parts[name]].append(master)
            else:
                plain[self.parts[name]].append(master)
        betas = (settings.beta1, settings.beta2)
        groups = [
            {"params": tensors, "weight_decay": decay, "part": part}
            for kind, decay in ((decayed, settings.weight_decay), (plain, 0.0))
            for part, tensors in kind.items()
            if tensors
        ]
        self.optimizers: list[torch.optim.Optimizer] = []
        if groups:
            self.optimizers.append(
                torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)
            )
        if self.matrices:
            self.optimizers.append(
                torch.optim.Muon(
                    [{"params": tensors, "part": part} for part, tensors in orthogonal.items() if tensors],
                    lr=settings.matrix_learning_rate,
                    weight_decay=settings.weight_decay,
                    momentum=0.95,
                    adjust_lr_fn="original",
                )
            )
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def choose(self, rates: Mapping[str, float] | None) -> None:
        """Let each part learn at a rate of its own from here on; at 0 it is frozen, and gets no gradient.

        A rate is that of AdamW, and Muon's is in proportion. None is the rates of the settings for all.
        """
        self.rates = rates
        for name, weight in self.weights.items():
            weight.requires_grad_(rates is None or rates[self.parts[name]] > 0)

    def highest_rate(self, share: float) -> float:
        """AdamW's rate of the part that learns fastest, at ``share`` of the peak where none were chosen."""
        return self.settings.learning_rate * share if self.rates is None else max(self.rates.values())

    @torch.no_grad()
    def step(self, divisor: float, share: float) -> tuple[bool, float]:
        """Divide the summed gradients by ``divisor``, clip, step at ``share`` of the peak rates, or at those chosen.

        Returns whether the step was taken and the norm of the gradient before clipping.
        """
        gradients: list[Tensor] = []
        for name, weight in self.weights.items():
            master = self.masters[name]
            if weight.grad is None:
                master.grad = None
                continue
            master.grad = weight.grad.float() if weight.dtype != torch.float32 else weight.grad
            gradients.append(master.grad)
            if name in self.matrices:
                self.matrices[name].grad = as_matrix(master.grad)
            weight.grad = None
        torch._foreach_div_(gradients, divisor)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item()
        if not math.isfinite(norm):
            return False, norm
        if norm > self.settings.clip:
            torch._foreach_mul_(gradients, self.settings.clip / norm)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                if self.rates is not None:
                    share = self.rates[group["part"]] / self.settings.learning_rate
                group["lr"] = peak * share
            optimizer.step()
        self.publish([name for name, master in self.masters.items() if master.grad is not None])
        return True, norm

    @torch.no_grad()
    def publish(self, names: Sequence[str] | None = None) -> None:
        """Copy the masters (all, or those named) into the model's weights, and forget the gradients."""
        names = list(self.masters) if names is None else names
        torch._foreach_copy_([self.weights[n] for n in names], [self.masters[n] for n in names])
        for tensor in (*self.masters.values(), *self.matrices.values()):
            tensor.grad = None

    @torch.no_grad()
    def adopt(self, names: Iterable[str]) -> None:
        """Take over float32 weights that the model changed by itself (a clamped scale, a restarted code)."""
        for name in names:
            self.masters[name].copy_(self.weights[name])

    @torch.no_grad()
    def finish(self) -> None:
        """The end of training: the model's weights become the float32 masters themselves, the frozen ones unrounded."""
        for name, weight in self.weights.items():
            weight.data = self.masters[name].clone()
        for weight, before in self.frozen:
            weight.data = before
