"""Optimizers: Muon for hidden matrices, AdamW for the rest, float32 masters behind weights of the compute precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bifocal.models.precision import set_precision
from bifocal.training import parallel
from bifocal.training.muon import Muon


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


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """What ``as_matrix`` made a matrix of, contiguous."""
    if len(shape) == 2:
        return matrix
    channels, inputs, height, width = shape
    return matrix.view(channels, height, width, inputs).permute(0, 3, 1, 2).contiguous()


def sorted_out(
    weights: Mapping[str, Tensor], settings: OptimizerSettings
) -> tuple[list[str], list[str], list[str]]:
    """The names of matrices for Muon, of other weights that decay, and of those that do not."""
    matrices, decayed, plain = [], [], []
    for name, weight in weights.items():
        # embeddings are look-up tables, and the gains of QK-norm are two-dimensional without being a matrix
        hidden = not any(word in name for word in ("embed", "lm_head", "norm"))
        if settings.kind == "muon" and hidden and is_matrix(weight):
            matrices.append(name)
        elif weight.ndim > 1 and hidden:
            decayed.append(name)
        else:
            plain.append(name)
    return matrices, decayed, plain


def adamw_of(
    decayed: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    settings: OptimizerSettings,
    parts: Mapping[str, str],
) -> list[torch.optim.Optimizer]:
    """AdamW for these weights, where there are any, with a group for each of the ``parts`` that they are of."""
    groups = [
        {"params": tensors, "weight_decay": decay, "part": part}
        for weights, decay in ((decayed, settings.weight_decay), (plain, 0.0))
        for part, tensors in by_part(weights, parts).items()
    ]
    betas = (settings.beta1, settings.beta2)
    return [torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)] if groups else []


def muon_of(
    matrices: Mapping[str, Tensor], settings: OptimizerSettings, parts: Mapping[str, str]
) -> list[torch.optim.Optimizer]:
    """Muon for these matrices, likewise."""
    if not matrices:
        return []
    return [
        Muon(
            [{"params": tensors, "part": part} for part, tensors in by_part(matrices, parts).items()],
            lr=settings.matrix_learning_rate,
            weight_decay=settings.weight_decay,
            momentum=0.95,
            adjust_lr_fn="original",
        )
    ]


def by_part(weights: Mapping[str, Tensor], parts: Mapping[str, str]) -> dict[str, list[Tensor]]:
    """Weights by the part that each is of."""
    found: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        found.setdefault(parts[name], []).append(weight)
    return found


def part_of(name: str, parts: Sequence[str]) -> str:
    """The longest of ``parts`` that a parameter's name begins with."""
    fitting = [part for part in parts if name.startswith(part)]
    if not fitting:
        raise ValueError(f"the parameter {name} belongs to none of the parts {', '.join(parts)}")
    return max(fitting, key=len)


def laid_out_like(master: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with its numbers in memory in the order of its master's.

    torch's fused AdamW walks through both as they lie: where orders differ (a kernel whose master lies channels last)
    it steps each number by the gradient of another one on a CPU, without a word, and refuses on a GPU.
    """
    return gradient if gradient.stride() == master.stride() else torch.empty_like(master).copy_(gradient)


class MasterOptimizer:
    """Steps float32 masters and copies them into the model's weights, which may be of lower precision.

    Gradients are clipped by their global norm.

    ``parts`` are beginnings of parameters' names, of which each may learn at a rate of its own (``choose``); a
    parameter belongs to the longest that fits.
    """

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, dtype: torch.dtype, parts: Sequence[str] = ("",)
    ) -> None:
        self.settings, self.model = settings, model
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
        self.parts = {name: part_of(name, parts) for name in self.masters}
        matrices, decayed, plain = sorted_out(self.masters, settings)
        self.matrices = {name: as_matrix(self.masters[name]) for name in matrices}
        decaying, plain_ones = ({name: self.masters[name] for name in names} for names in (decayed, plain))
        self.optimizers = [
            *adamw_of(decaying, plain_ones, settings, self.parts),
            *muon_of(self.matrices, settings, self.parts),
        ]
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
    def step(self, divisor: float | Tensor, share: float, limit: float = math.inf) -> tuple[Tensor, Tensor]:
        """Add up the gradients of all ranks, divide by ``divisor``, clip, step at ``share`` of the peak rates.

        A step whose gradient is not finite, or has a norm above ``limit``, changes nothing. Returns whether the step
        was taken and the norm of the gradient before clipping, as tensors: nothing here waits for the device.
        """
        raw: list[Tensor | None] = []
        for weight in self.weights.values():
            gradient, weight.grad = weight.grad, None
            raw.append(None if gradient is None else gradient.float())
        summed = parallel.sum_over_ranks(raw, list(self.masters.values()))
        summed = [
            None if gradient is None else laid_out_like(master, gradient)
            for master, gradient in zip(self.masters.values(), summed, strict=True)
        ]
        for (name, master), gradient in zip(self.masters.items(), summed, strict=True):
            master.grad = gradient
            if name in self.matrices:
                self.matrices[name].grad = None if gradient is None else as_matrix(gradient)
        gradients = [gradient for gradient in summed if gradient is not None]
        torch._foreach_div_(gradients, divisor)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        taken = norm.isfinite() & (norm <= limit)
        torch._foreach_mul_(gradients, (self.settings.clip / norm).clamp(max=1.0))
        self.step_all(taken, share)
        self.publish([name for name, master in self.masters.items() if master.grad is not None])
        return taken, norm

    def step_all(self, taken: Tensor, share: float) -> None:
        """Step every optimizer on the gradients of its weights, or, if the step is not taken, change nothing."""
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                if self.rates is not None:
                    share = self.rates[group["part"]] / self.settings.learning_rate
                group["lr"] = peak * share
            if isinstance(optimizer, Muon):
                optimizer.taken = taken
            else:
                # what mixed-precision training tells a fused kernel, so that it leaves weights and moments alone
                optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]
            optimizer.step()

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
    def finish(self) -> nn.Module:
        """The end of training: the model's weights become the float32 masters themselves, the frozen ones unrounded."""
        for name, weight in self.weights.items():
            weight.data = self.masters[name].clone()
        for weight, before in self.frozen:
            weight.data = before
        return self.model
