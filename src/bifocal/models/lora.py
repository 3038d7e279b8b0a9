"""Low-rank changes to a frozen language model (LoRA, Hu et al. 2021), merged into its weights when training is over.

Beside the matrices the rows of new tokens learn, which no change of rank r could make: those of a picture's begin and
end and of box coordinates. After ``merge_lora`` the model is an ordinary one and computes what it did before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.models.language import LanguageModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoRASettings:
    """W + alpha / rank * B A for the ``layers`` named, in every layer of the decoder; rank 0 is no LoRA."""

    rank: int = 0
    alpha: float = 32.0
    layers: tuple[str, ...] = (*ATTENTION, *MLP)

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(
                f"lora.rank must be 0 or more and lora.alpha above 0, got {self.rank}, {self.alpha}"
            )
        unknown = [name for name in self.layers if name not in (*ATTENTION, *MLP)]
        if unknown or not self.layers:
            raise ValueError(
                f"lora.layers are some of {', '.join((*ATTENTION, *MLP))}, got {self.layers or 'none'}"
            )


class LoRALinear(nn.Linear):
    """A frozen linear layer and its low-rank change, which begins as nothing."""

    def __init__(self, base: nn.Linear, settings: LoRASettings) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        self.scale = settings.alpha / settings.rank
        self.lora_a = nn.Parameter(torch.empty(settings.rank, self.in_features))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, settings.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        frozen = F.linear(x, self.weight, self.bias)
        # a stage before it first learns should not pay for what is still nothing
        if not self.lora_b.requires_grad and not self.lora_b.any():
            return frozen
        return frozen + F.linear(F.linear(x, self.lora_a), self.lora_b * self.scale)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One ordinary layer that does the same."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        change = self.scale * self.lora_b.float() @ self.lora_a.float()
        layer.weight = nn.Parameter((self.weight.float() + change).to(self.weight.dtype))
        layer.bias = self.bias
        return layer


class NewRows(nn.Module):
    """Rows of an embedding table or a head that learn, while the others do not.

    They stay float32: the gradient of a frequent token is a sum over many positions.
    """

    float32_parameters = ("rows",)
    ids: Tensor
    place_V: Tensor

    def __init__(self, table_VD: Tensor, ids: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.Parameter(table_VD.detach()[list(ids)].float())
        place_V = torch.full((len(table_VD),), -1)
        place_V[list(ids)] = torch.arange(len(ids))
        self.register_buffer("ids", torch.tensor(list(ids)), persistent=False)
        self.register_buffer("place_V", place_V, persistent=False)

    @torch.no_grad()
    def put_into(self, table_VD: Tensor) -> None:
        """Write them where they belong."""
        table_VD[self.ids] = self.rows.to(table_VD.dtype)


class GrownEmbedding(nn.Module):
    """A frozen embedding table with rows that learn."""

    def __init__(self, base: nn.Embedding, new: NewRows) -> None:
        super().__init__()
        self.weight, self.new = base.weight, new
        self.base = (base,)  # in a tuple, so that its weight has one name

    def forward(self, tokens_BT: Tensor) -> Tensor:
        place_BT = self.new.place_V[tokens_BT]
        old = F.embedding(tokens_BT, self.weight)
        new = F.embedding(place_BT.clamp_min(0), self.new.rows).to(old.dtype)
        return torch.where((place_BT >= 0)[..., None], new, old)


class GrownHead(nn.Module):
    """A frozen head with rows that learn."""

    def __init__(self, base: nn.Linear, new: NewRows) -> None:
        super().__init__()
        self.weight, self.new = base.weight, new
        self.base = (base,)

    def forward(self, x: Tensor) -> Tensor:
        new = F.linear(x, self.new.rows.to(x.dtype))
        return F.linear(x, self.weight).index_copy(-1, self.new.ids, new)


def install_lora(model: LanguageModel, settings: LoRASettings, new_tokens: Sequence[int] = ()) -> None:
    """Freeze a language model, but for low-rank changes of its layers and the rows of ``new_tokens``."""
    model.requires_grad_(False)
    for parent in [*model.layers.modules()]:
        for name, layer in [*parent.named_children()]:
            if name in settings.layers and type(layer) is nn.Linear:
                setattr(parent, name, LoRALinear(layer, settings))
    if new_tokens:
        table, head = model.embed_tokens, model.lm_head
        new = NewRows(table.weight, new_tokens)
        # a tied head is the table, new rows included
        new_of_head = new if model.config.tied else NewRows(head.weight, new_tokens)
        model.embed_tokens = GrownEmbedding(table, new)  # type: ignore[assignment]
        model.lm_head = GrownHead(head, new_of_head)  # type: ignore[assignment]


def merge_lora(model: LanguageModel) -> None:
    """Put what was learnt into the weights: the very model that ``install_lora`` was given, trained on."""
    for parent in [*model.layers.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, LoRALinear):
                setattr(parent, name, layer.merged())
    embedding, head = model.embed_tokens, model.lm_head
    if isinstance(embedding, GrownEmbedding) and isinstance(head, GrownHead):
        embedding.new.put_into(embedding.weight)
        head.new.put_into(head.weight)
        (model.embed_tokens,), (model.lm_head,) = embedding.base, head.base
    model.requires_grad_(True)
