"""Other libraries as judges of ours, and what it takes to use them here."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import torchvision_stand_in

# What open_clip imports when it is imported itself, to prepare pictures.
TORCHVISION = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.ops",
    "torchvision.ops.misc",
)
STAND_INS = {
    "torchvision.transforms": torchvision_stand_in.TRANSFORMS,
    "torchvision.transforms.functional": torchvision_stand_in.FUNCTIONAL,
}


class _StandIn(ModuleType):
    """A module of the names given, in which every other name is a class that does nothing."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {"BICUBIC": 3, "BILINEAR": 2, "NEAREST": 0})


def open_clip() -> Any:
    """The library, or the test is skipped. There is no torchvision for every torch, so stand-ins take its place."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed (pip install --no-deps open_clip_torch)")
    if "open_clip" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        from transformers.utils import is_torchvision_available

        is_torchvision_available()  # it remembers its answer, which the stand-ins must not change
        for name in TORCHVISION:
            sys.modules[name] = _StandIn(name)
            vars(sys.modules[name]).update(STAND_INS.get(name, {}))
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
        try:
            import open_clip
        finally:
            for name in TORCHVISION:
                del sys.modules[name]
    import open_clip

    return open_clip


def as_open_clip(weights: dict[str, Tensor], *, custom_text: bool = False) -> dict[str, Tensor]:
    """A state dict of ours under open_clip's names: queries, keys and values in one, projections transposed."""
    text = "text." if custom_text else ""
    renamed = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": f"{text}token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": f"{text}positional_embedding",
    }
    parts = {
        "vision_model.encoder.layers.": "visual.transformer.resblocks.",
        "vision_model.pre_layrnorm.": "visual.ln_pre.",
        "vision_model.post_layernorm.": "visual.ln_post.",
        "vision_model.": "visual.",
        "text_model.encoder.layers.": f"{text}transformer.resblocks.",
        "text_model.final_layer_norm.": f"{text}ln_final.",
        ".layer_norm": ".ln_",
        ".self_attn.": ".attn.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
    }
    theirs: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name == "visual_projection.weight":
            theirs["visual.proj"] = value.T
        elif name == "text_projection.weight":
            theirs[f"{text}text_projection"] = value.T
        elif name in renamed:
            theirs[renamed[name]] = value
        elif ".k_proj." in name or ".v_proj." in name:
            if "attnpool" in name:
                theirs[name.replace("vision_model.", "visual.")] = value
        else:
            if ".q_proj." in name and "attnpool" not in name:
                value = torch.cat([weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
                name = name.replace(".q_proj.", ".in_proj_")
            for ours, other in parts.items():
                name = name.replace(ours, other)
            theirs[name] = value
    return theirs
