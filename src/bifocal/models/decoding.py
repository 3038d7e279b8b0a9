"""One step of decoding, lean: the decoder's layers for a single new position of each row.

It says what ``LanguageModel.forward`` says. A step multiplies few rows with every weight there is, so it waits for
memory and for the calls themselves: weights are laid out once as the products want them, those that read the same
input side by side; heads that share keys are queries of one attention; nothing is copied that can be written in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.models.blocks import KeyValueCache, RMSNorm, rotary_table
from bifocal.models.int8 import Int8Linear
from bifocal.models.language import DecoderLayer, LanguageModel

Product = Callable[[Tensor], Tensor]
INT8_ROWS = 2  # up to so many, torch's int8 product is the faster one (benchmarks/decode.py)


def product(*layers: nn.Module) -> Product:
    """(B, K) -> (B, N): what linear layers say of one input, side by side, from weights laid out for few rows."""
    # exactly linear: an adapter on one is more than its weight
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    plain = [layer for layer in linear if type(layer) is nn.Linear and layer.bias is None]
    if len(plain) == len(layers):
        weight = torch.cat([layer.weight.detach() for layer in plain])
        if _packable(weight):
            return packed(weight)
    rounded = [layer for layer in layers if isinstance(layer, Int8Linear)]
    if len(rounded) == len(layers) and rounded[0].weight.device.type == "cpu":
        return _Int8Product(
            torch.cat([layer.weight for layer in rounded]), torch.cat([layer.scale for layer in rounded])
        )
    if len(layers) == 1:
        return layers[0]
    return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)


def _packable(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.float32)
        and torch.backends.mkldnn.is_available()
    )


def packed(weight_NK: Tensor) -> Product:
    """oneDNN's product with a weight laid out beforehand: for few rows twice as fast as doing so at every call."""
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight_NK, 1)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, laid_out, None, "none", [], "")


class _Int8Product:
    """For one or two rows the int8 weights are read as they are; for more they are expanded, once, when first needed.

    torch's int8 product takes as long for each row as for the first, the other takes all of them at once.
    """

    def __init__(self, weight_NK: Tensor, scale_N: Tensor) -> None:
        self.weight, self.scale = weight_NK, scale_N
        self.expanded: Product | None = None

    def __call__(self, x_BK: Tensor) -> Tensor:
        if len(x_BK) <= INT8_ROWS:
            return torch._weight_int8pack_mm(x_BK, self.weight, self.scale)
        if self.expanded is None:
            whole = self.weight.to(self.scale.dtype) * self.scale[:, None]
            self.expanded = packed(whole) if _packable(whole) else lambda x: F.linear(x, whole)
        return self.expanded(x_BK)


def norm_of(norm: RMSNorm) -> Product:
    """The same norm for few rows.

    Layer norm of a vector and its negative beside it has mean 0 and the mean square as variance; its kernel is one
    call where the RMS norm of a CPU is seven.
    """
    weight = norm.weight.detach()
    if weight.device.type != "cpu":
        return norm
    width, doubled = len(weight), torch.cat([weight, weight])
    shape, eps = (2 * width,), norm.eps

    def normed(x_BD: Tensor) -> Tensor:
        both = F.layer_norm(torch.cat([x_BD, -x_BD], dim=-1), shape, doubled, None, eps)
        return both[:, :width].contiguous()  # the int8 product takes nothing else

    return normed


@dataclass(frozen=True)
class _Layer:
    first_norm: Product
    qkv: Product
    head_norms: tuple[nn.Module, nn.Module] | None
    out: Product
    second_norm: Product
    gate_up: Product
    down: Product


def _lean(layer: DecoderLayer) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    plain = isinstance(attention.q_norm, nn.Identity)
    return _Layer(
        norm_of(layer.input_layernorm),
        product(attention.q_proj, attention.k_proj, attention.v_proj),
        None if plain else (attention.q_norm, attention.k_norm),
        product(attention.o_proj),
        norm_of(layer.post_attention_layernorm),
        product(mlp.gate_proj, mlp.up_proj),
        product(mlp.down_proj),
    )


class DecodingStep:
    """The decoder's layers for one new position of each of the first B rows of a cache."""

    @torch.inference_mode()
    def __init__(self, model: LanguageModel) -> None:
        self.config, self.dtype = model.config, model.dtype
        self.layers = [_lean(layer) for layer in model.layers]  # type: ignore[arg-type]
        self.norm, self.head = norm_of(model.norm), product(model.lm_head)

    @torch.inference_mode()
    def __call__(self, x_BD: Tensor, lengths: Sequence[int], cache: KeyValueCache) -> Tensor:
        """Embeddings (B, D) of the tokens that follow ``lengths`` positions of each row -> (B, V) float32 logits.

        The tokens' keys and values are written to the cache. Raises ``ValueError`` where a row is full.
        """
        config, batch, longest = self.config, len(lengths), max(lengths) + 1
        if longest > cache.capacity:
            raise ValueError(f"the key-value cache holds {cache.capacity} positions and {longest} are needed")
        heads, kv_heads, size = config.heads, config.kv_heads, config.head_size
        device = x_BD.device
        at_B = torch.tensor(lengths, device=device)
        cos, sin = rotary_table(at_B[:, None], size, config.rotary_base)
        cos, sin = cos[:, 0].to(self.dtype), sin[:, 0].to(self.dtype)  # (B, 1, E)
        sin[..., : size // 2].neg_()  # the half that is turned in gets the sign, so that no tensor is negated
        bias = None
        if min(lengths) + 1 < longest:
            beyond = torch.arange(longest, device=device) > at_B[:, None]
            bias = torch.zeros(beyond.shape, dtype=self.dtype, device=device)
            bias = bias.masked_fill_(beyond, float("-inf"))[:, None, None]
        rows = torch.arange(batch * kv_heads, device=device).view(batch, kv_heads) * cache.capacity
        places = (rows + at_B[:, None]).flatten()
        seen = zip(
            *(part[:, :batch, :, :longest].unbind() for part in (cache.keys, cache.values)),
            *(part.flatten(1, 3).unbind() for part in (cache.keys, cache.values)),
            strict=True,
        )
        x = x_BD.to(self.dtype)
        for layer, (keys, values, flat_keys, flat_values) in zip(self.layers, seen, strict=True):
            qkv = layer.qkv(layer.first_norm(x)).view(batch, heads + 2 * kv_heads, size)
            qk = qkv[:, : heads + kv_heads]
            if layer.head_norms is not None:
                q_norm, k_norm = layer.head_norms
                normed = q_norm(qk[:, :heads, None]), k_norm(qk[:, heads:, None])
                qk = torch.cat(normed, dim=1).squeeze(2)
            halves = qk.unflatten(-1, (2, size // 2)).flip(2).flatten(2)
            qk = torch.addcmul(qk * cos, halves, sin)
            flat_keys.index_copy_(0, places, qk[:, heads:].flatten(0, 1))
            flat_values.index_copy_(0, places, qkv[:, heads + kv_heads :].flatten(0, 1))
            queries = qk[:, :heads].unflatten(1, (kv_heads, -1))
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
            x = x + layer.out(attended.reshape(batch, heads * size))
            gate, up = layer.gate_up(layer.second_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate).mul_(up))
        return self.head(self.norm(x)).float()


_STEPS: weakref.WeakKeyDictionary[LanguageModel, tuple[list[Tensor], list[int], DecodingStep]] = (
    weakref.WeakKeyDictionary()
)


def decoding_step(model: LanguageModel) -> DecodingStep:
    """The step of a model: the one made before, unless its weights have changed since."""
    weights = [tensor.detach() for tensor in [*model.parameters(), *model.buffers()]]
    versions = [-1 if tensor.is_inference() else tensor._version for tensor in weights]
    kept = _STEPS.get(model)
    if kept is not None and versions == kept[1] and _same(weights, kept[0]):
        return kept[2]
    step = DecodingStep(model)
    _STEPS[model] = (weights, versions, step)
    return step


def _same(weights: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether these are the same pieces of memory; the others are held, so theirs cannot have been given away."""
    return all(
        one.data_ptr() == other.data_ptr() and one.dtype == other.dtype
        for one, other in zip(weights, others, strict=True)
    )
