"""What a training step costs, found without taking it: its operations, their bytes, and the memory held at each moment.

The step is that of the trainer: the model's own ``loss``, the backward pass and the optimizer, on stand-ins for tensors
that have a shape, a precision and a layout but no memory. Whole numbers and masks of the batch stay real, so that what
depends on them (lengths of texts, patches to look at, labels) is as it will be; what depends on activations is answered
as if every number were 1.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

from bifocal.training.feeding import tensors_in
from bifocal.training.fused import FusedKernels
from bifocal.training.heap import Heap
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings

Place = Literal["cpu", "accelerator"]
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


@dataclass(frozen=True)
class Spec:
    """All that is known of a tensor without memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def tensor(self) -> Tensor:
        """A real tensor of this kind: noise, or zeros where it holds whole numbers."""
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            extent = 0
        flat = (
            torch.randn(extent).to(self.dtype)
            if self.dtype.is_floating_point
            else torch.zeros(extent, dtype=self.dtype)
        )
        return flat.as_strided(self.shape, self.strides)


@dataclass
class Operation:
    """One kind of call, on tensors of one kind: what a call costs, how often it came, and how to make it again."""

    function: Any
    leaves: list[Any]
    structure: TreeSpec
    flops: int
    bytes: int
    dtype: torch.dtype  # of its products
    count: int = 0

    def call(self) -> Callable[[], object]:
        """The same call on real tensors of its own."""
        leaves = [leaf.tensor() if isinstance(leaf, Spec) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.structure)
        return functools.partial(self.function, *args, **kwargs)


@dataclass(frozen=True)
class StepCost:
    """Bytes that a rank holds, and what a step of one batch computes.

    ``peak`` is the most that is taken at one moment, the batch included: gradients and activations are not all held at
    once, and on a CPU there are gaps between what is held.
    """

    weights: int
    frozen: int
    masters: int
    optimizer: int
    gradients: int
    activations: int
    peak: int
    operations: tuple[Operation, ...]
    optimizer_operations: tuple[Operation, ...] = ()

    @property
    def flops(self) -> int:
        """Of products and convolutions, forward and backward."""
        return sum(operation.flops * operation.count for operation in self.operations)

    @property
    def persistent(self) -> int:
        """What is held between steps."""
        return self.weights + self.frozen + self.masters + self.optimizer


class Recorder(TorchDispatchMode):
    """Counts what is computed, and follows the memory of every tensor from its making to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.heap = Heap()
        self.held: dict[int, int] = {}
        self.operations: dict[Any, Operation] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        stand_ins = [leaf for leaf in tree_leaves((args, kwargs)) if is_stand_in(leaf)]
        if stand_ins:
            answer = guessed(func, args, kwargs)
            if answer is not None:
                return answer
            if func in INDEXING:
                args = (args[0], places_of(args[1]), *args[2:])
            if stand_ins[0].device.type == "meta":
                args, kwargs = tree_map(to_meta, (args, kwargs))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        changes = func._schema.is_mutable
        views = not changes and all(tensor.untyped_storage()._cdata in storages for tensor in made)
        for tensor in made:
            self.hold(tensor)
        if not views:
            self._count(func, args, kwargs, out, given, made)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until nobody has it any more."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.held or size == 0:
            return
        self.held[key] = size
        self.heap.take(key, size)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.heap.give(key)
        self.live -= self.held.pop(key)

    def _count(
        self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, given: list[Tensor], made: list[Tensor]
    ) -> None:
        # real whole numbers are kept as they are: a look-up of one row takes another time than one of many
        leaves, structure = tree_flatten((args, kwargs))
        kept = [
            leaf
            if not isinstance(leaf, Tensor) or not (is_stand_in(leaf) or leaf.is_floating_point())
            else Spec.of(leaf)
            for leaf in leaves
        ]
        key = (
            func,
            str(structure),
            tuple(Spec.of(leaf) if isinstance(leaf, Tensor) else str(leaf) for leaf in kept),
        )
        if key not in self.operations:
            formula = flop_registry.get(func._overloadpacket)
            flops = int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0
            moved = sum(map(touched, (*given, *made)))
            floats = [tensor.dtype for tensor in given if tensor.is_floating_point()]
            dtype = floats[0] if floats else torch.float32
            self.operations[key] = Operation(func, kept, structure, flops, moved, dtype)
        self.operations[key].count += 1


def is_stand_in(leaf: Any) -> bool:
    """Whether it is a tensor without memory."""
    return isinstance(leaf, FakeTensor) or (isinstance(leaf, Tensor) and leaf.device.type == "meta")


def touched(tensor: Tensor) -> int:
    """The bytes of a tensor, repeated ones once."""
    size = tensor.element_size()
    for length, step in zip(tensor.shape, tensor.stride(), strict=True):
        size *= 1 if step == 0 else length
    return size


def to_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) and not is_stand_in(leaf) else leaf


def guessed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What is answered where a stand-in would have to be looked into; None where it need not."""
    if func is aten._local_scalar_dense.default:
        return torch.ones((), dtype=args[0].dtype).item()
    if func is aten.nonzero.default:
        return torch.zeros(0, args[0].ndim, dtype=torch.int64)
    if func is aten.bincount.default:
        return torch.zeros(kwargs.get("minlength", args[2] if len(args) > 2 else 0), dtype=torch.int64)
    return None


def places_of(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices without masks: of a real mask it is known what it chooses."""
    plain: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not is_stand_in(index):
            plain += index.nonzero().unbind(1)
        else:
            plain.append(index)
    return plain


# ------------------------------------------------------------ a whole step


@contextlib.contextmanager
def stand_ins(place: Place) -> Iterator[None]:
    """What is made in here has no memory."""
    if place == "cpu":
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    else:
        with torch.device("meta"):
            yield


def trace_step(
    build: Callable[[], nn.Module],
    batch: Any,
    settings: OptimizerSettings,
    dtype: torch.dtype,
    *,
    place: Place = "cpu",
) -> StepCost:
    """The cost of a training step of the model that ``build`` makes, on a real ``batch``.

    ``dtype`` is the precision of the products. The optimizer's part is that of a CPU wherever the step is.
    """
    with stand_ins("cpu"):
        model = build().train()
    masters_model = model
    recorder = Recorder()
    with recorder:
        for tensor in (*model.parameters(), *model.buffers()):
            recorder.hold(tensor)
        optimizer = MasterOptimizer(model, settings, dtype)
        if place == "cpu":
            hold_batch(recorder, batch)
            _backward(model, batch, recorder)
            optimizer.step(1.0, 1.0)  # the moments are made
            recorder.operations.clear()
            held = recorder.live
            activations = _backward(model, batch, recorder)
            passes = tuple(recorder.operations.values())
        else:
            for weight in optimizer.weights.values():
                weight.grad = torch.empty_like(weight)
            optimizer.step(1.0, 1.0)
            held, passes, activations = recorder.live, (), 0
            for weight in optimizer.weights.values():
                weight.grad = torch.empty_like(weight)
        recorder.operations = {}
        optimizer.step(1.0, 1.0)
        after_step = getattr(model, "after_step", None)
        if after_step is not None and place == "cpu":
            after_step()
    peak = recorder.heap.peak
    optimizer_operations = tuple(recorder.operations.values())
    if place == "accelerator":
        with stand_ins(place):
            model = build().train()
        for name, weight in model.named_parameters():
            weight.data = weight.data.to(dict(masters_model.named_parameters())[name].dtype)
        other = Recorder()
        hold_batch(other, batch)
        with other, FusedKernels():
            activations = _backward(model, batch, other)
        passes = tuple(other.operations.values())
        peak = max(peak, held + other.peak)
    sizes = {
        "weights": sum(nbytes(weight) for weight in optimizer.weights.values()),
        "frozen": sum(nbytes(weight) for weight in masters_model.parameters() if not weight.requires_grad)
        + sum(map(nbytes, masters_model.buffers()))
        + sum(nbytes(before) for _, before in optimizer.frozen),
        "masters": sum(map(nbytes, optimizer.masters.values())),
        "optimizer": sum(
            nbytes(value)
            for each in optimizer.optimizers
            for state in each.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ),
        "gradients": sum(map(nbytes, optimizer.masters.values())),  # float32 when they are clipped
    }
    return StepCost(
        **sizes,
        activations=activations,
        peak=peak,
        operations=passes,
        optimizer_operations=optimizer_operations,
    )


def hold_batch(recorder: Recorder, batch: Any) -> None:
    """Count the memory of a batch."""
    for tensor in tensors_in(batch):
        recorder.hold(tensor)


def _backward(model: nn.Module, batch: Any, recorder: Recorder) -> int:
    """Both passes; returns what the first left for the second."""
    before = recorder.live
    total, _, _ = model.loss(batch)  # type: ignore[operator]
    activations = recorder.live - before
    total.backward()
    return activations


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
