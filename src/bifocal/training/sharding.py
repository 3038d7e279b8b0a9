"""Weights, gradients and moments spread over ranks (FSDP2), for models that one device cannot hold with all of them.

Every layer's weights lie in pieces on the ranks, are gathered for its forward and its way back in the precision of
the products, and their gradients are added up in float32 into pieces again. What must stay float32 (embeddings) is
whole on every rank. Muon needs whole matrices: each belongs to one rank, which keeps it and its momentum, gets its
whole gradient, steps it, and sends it round.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from bifocal import distributed
from bifocal.config import UserError
from bifocal.models.precision import float32_names
from bifocal.training import checkpoint, parallel
from bifocal.training.optimizer import (
    MasterOptimizer,
    OptimizerSettings,
    adamw_of,
    as_matrix,
    from_matrix,
    muon_of,
    sorted_out,
)

SHARDS = "shards"  # the folder of a checkpoint in which the pieces lie


class ShardedOptimizer(MasterOptimizer):
    """Takes a model apart over the ranks of the group, and steps its pieces."""

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, dtype: torch.dtype, parts: Sequence[str] = ("",)
    ) -> None:
        if len(parts) > 1:
            raise UserError(
                "a model that learns part by part is whole on every rank: leave --train.parallel out"
            )
        if not distributed.is_distributed():
            raise UserError('train.parallel "shard" spreads a model over ranks: start with torchrun')
        self.settings, self.rates = settings, None
        self.plain = copy.deepcopy(model).cpu() if distributed.is_main() else None
        self.model = model
        device = next(model.parameters()).device
        self.mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        _spread(model, dtype, self.mesh)
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        # memory of the weights themselves: they are float32, and gathered in the precision of the products
        self.masters = {name: piece_of(weight) for name, weight in self.weights.items()}
        matrices, decayed, plain = sorted_out(self.weights, settings)
        assert all(isinstance(self.weights[name], DTensor) for name in matrices)
        largest_first = sorted(matrices, key=lambda name: -self.weights[name].numel())
        self.owners = {name: place % dist.get_world_size() for place, name in enumerate(largest_first)}
        self.matrices = {}
        for name, owner in self.owners.items():
            whole = _whole(self.weights[name])
            if owner == dist.get_rank():
                self.matrices[name] = as_matrix(whole).clone()
        self.parts = dict.fromkeys(self.weights, "")
        groups = [
            {name: self.masters[name] for name in names if self.masters[name].numel()}
            for names in (decayed, plain)
        ]
        self.optimizers = [
            *adamw_of(groups[0], groups[1], settings, self.parts),
            *muon_of(self.matrices, settings, self.parts),
        ]
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    @torch.no_grad()
    def step(
        self, divisor: float | Tensor, share: float, limit: float = float("inf")
    ) -> tuple[Tensor, Tensor]:
        """As ``MasterOptimizer.step``; the pieces' gradients were added up on the way back."""
        pieces = {name: weight for name, weight in self.weights.items() if isinstance(weight, DTensor)}
        wholes = {name: weight for name, weight in self.weights.items() if name not in pieces}
        for weight in pieces.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        summed = parallel.sum_over_ranks(
            [weight.grad for weight in wholes.values()], [self.masters[name] for name in wholes]
        )
        local = [piece_of(weight.grad) for weight in pieces.values() if weight.grad is not None]
        here = [gradient for gradient in summed if gradient is not None]
        torch._foreach_div_([*local, *here], divisor)
        squares = torch.stack([gradient.square().sum() for gradient in local]).sum()
        squares = distributed.all_reduce_sum(squares, "the norm of the gradients")
        norm = (squares + sum(gradient.square().sum() for gradient in here)).sqrt()
        taken = norm.isfinite() & (norm <= limit)
        torch._foreach_mul_([*local, *here], (self.settings.clip / norm).clamp(max=1.0))
        for name, gradient in zip([*pieces, *wholes], [*local, *summed], strict=True):
            self.masters[name].grad = gradient
        for name in self.owners:
            gradient = self.weights[name].grad
            assert gradient is not None
            whole = _whole(gradient)
            if name in self.matrices:
                self.matrices[name].grad = as_matrix(whole)
        self.step_all(taken, share)
        for name in self.owners:
            self._send_round(name)
        self.publish()
        return taken, norm

    def _send_round(self, name: str) -> None:
        """The whole matrix from the rank that stepped it; everyone keeps its piece."""
        weight = self.weights[name]
        if name in self.matrices:
            whole = from_matrix(self.matrices[name], weight.shape)
        else:
            whole = torch.empty(weight.shape, device=weight.device)
        with distributed.meeting(f"the matrix {name}"):
            dist.broadcast(whole, src=self.owners[name])
        self.masters[name].copy_(
            piece_of(distribute_tensor(whole, self.mesh, [Shard(0)], src_data_rank=None))
        )

    @torch.no_grad()
    def publish(self, names: Sequence[str] | None = None) -> None:
        """Forget the gradients; the weights are the masters."""
        for tensor in (*self.weights.values(), *self.masters.values(), *self.matrices.values()):
            tensor.grad = None

    def adopt(self, names: Any) -> None:
        """Nothing: what a model changes by itself is whole on every rank, and its master is that very memory."""

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The whole model, in float32, on the first rank; elsewhere the pieces."""
        kept = float32_names(self.model)  # what else is frozen was rounded here, and is not there
        wholes = {
            name: _whole(weight)
            for name, weight in self.model.named_parameters()
            if weight.requires_grad or name in kept
        }
        if self.plain is None:
            return self.model
        for name, weight in self.plain.named_parameters():
            if name in wholes:
                weight.copy_(wholes[name])
        buffers = dict(self.model.named_buffers())
        for name, buffer in self.plain.named_buffers():
            buffer.copy_(buffers[name])
        return self.plain

    def pieces(self) -> dict[str, Tensor]:
        """What lies in pieces, by name: weights, moments of AdamW, momenta of Muon."""
        found: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            if not isinstance(weight, DTensor):
                continue
            found[f"weight.{name}"] = weight.detach()
            if name not in self.owners:
                for key, moment in self._moments(name).items():
                    found[f"{key}.{name}"] = DTensor.from_local(
                        moment, self.mesh, [Shard(0)], shape=weight.shape, stride=weight.stride()
                    )
        for name, owner in self.owners.items():
            weight = self.weights[name]
            rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
            momentum = torch.zeros(rows, columns, device=weight.device)
            if name in self.matrices:
                momentum = self._state(self.matrices[name]).get("momentum_buffer", momentum)
            found[f"momentum.{name}"] = distribute_tensor(
                momentum.contiguous(), self.mesh, [Shard(0)], src_data_rank=owner
            )
        return found

    def wholes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What every rank has whole: weights by name, and their moments."""
        weights = {
            name: master
            for name, master in self.masters.items()
            if not isinstance(self.weights[name], DTensor)
        }
        moments = {f"{key}.{name}": moment for name in weights for key, moment in self._moments(name).items()}
        return weights, moments | {"steps": torch.tensor(self._steps())}

    @torch.no_grad()
    def take(self, found: checkpoint.Checkpoint) -> None:
        """Go on from what ``pieces`` and ``wholes`` gave, whatever the number of ranks was."""
        pieces = self.pieces()
        state_dict_loader.load(pieces, storage_reader=HuggingFaceStorageReader(str(found.path / SHARDS)))
        weights, _ = self.wholes()
        for name, weight in weights.items():
            weight.copy_(found.model_tensors[name])
            for key, moment in self._moments(name).items():
                moment.copy_(found.trainer_tensors[f"{key}.{name}"])
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(found.trainer_tensors["steps"].item())
        for name in self.owners:
            momentum, whole = _whole(pieces[f"momentum.{name}"]), _whole(self.weights[name])
            if name in self.matrices:
                self.matrices[name].copy_(as_matrix(whole))
                self._state(self.matrices[name])["momentum_buffer"] = momentum.clone()

    def _state(self, tensor: Tensor) -> dict[str, Any]:
        optimizer = next(
            o for o in self.optimizers if any(tensor is t for g in o.param_groups for t in g["params"])
        )
        state: dict[str, Any] = optimizer.state[tensor]
        return state

    def _moments(self, name: str) -> dict[str, Tensor]:
        """AdamW's moments of a weight, as large as its master; zeros before the first step."""
        master = self.masters[name]
        if not master.numel():
            return {"exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
        state = self._state(master)
        if not state:
            state["step"] = torch.zeros((), device=master.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return {key: state[key] for key in ("exp_avg", "exp_avg_sq")}

    def _steps(self) -> float:
        """How many steps AdamW has taken, the same for every weight, since all have gradients."""
        steps = [
            state["step"].item() for o in self.optimizers for state in o.state.values() if "step" in state
        ]
        return max(steps, default=0.0)


def _spread(model: nn.Module, dtype: torch.dtype, mesh: Any) -> None:
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    kept = float32_names(model)
    whole: set[nn.Parameter] = set()
    maps = False
    for name, weight in model.named_parameters():
        if name in kept or not weight.requires_grad:
            whole.add(weight)
            weight.data = weight.data.to(torch.float32 if name in kept else dtype)
        elif not weight.is_contiguous():  # a kernel, channels last, of which no rows lie together
            weight.data = weight.data.contiguous()
            maps = True
    # Ranks gather together, so a layer of its own must be called as often on each. What enters one becomes a view, and
    # torch's view of the map of a single picture forgets that its channels come last.
    layers = [] if maps or getattr(model, "calls_vary", False) else parallel.blocks(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # sums, which the count of all ranks divides; gloo knows no other
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    outside = [
        name
        for name, weight in model.named_parameters()
        if isinstance(weight, DTensor) and id(weight) not in inside
    ]
    loss = model.loss

    def loss_of_all(batch: Any) -> tuple[Tensor, int, dict[str, float]]:
        """A rank whose rows have no picture must still bring gradients of what reads pictures."""
        total, count, metrics = loss(batch)  # type: ignore[operator]
        return total + sum(0 * model.get_parameter(name).flatten()[0] for name in outside), count, metrics

    model.loss = loss_of_all  # type: ignore[assignment]
    register_fsdp_forward_method(model, "loss")


def piece_of(tensor: Tensor) -> Tensor:
    """A rank's piece, or what is whole on every rank; without history."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    with distributed.meeting("the gathering of a matrix"):
        whole: Tensor = DTensor.full_tensor(tensor.detach())  # type: ignore[arg-type]
        return whole
