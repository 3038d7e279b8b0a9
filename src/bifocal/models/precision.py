"""Which precision a model computes in: bf16 where the machine is fast at it, float32 for what must not be rounded."""

from __future__ import annotations

import os

import torch
from torch import nn

from bifocal.config import UserError

# oneDNN compiles products in bf16 for each shape that it meets, which takes 1 to 2 ms, and keeps 1,024 of them: fewer
# than a CLIP's texts and patches of many lengths ask for. They cost memory: theirs, and gaps around them.
KEPT_PRODUCTS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "3072"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_device(name: str) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1", refused in a sentence where there is none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"there is no device {name!r} on this machine, try --device cpu ({reason})") from None
    return device


def fast_dtype(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """bf16 where the machine computes it fast, else float32; or what is asked for by name."""
    os.environ.setdefault(*KEPT_PRODUCTS)  # read by the first product of the process
    if wanted in DTYPES:
        return DTYPES[wanted]
    if wanted == "int8":
        raise UserError(
            "int8 is for answering with a finished VLM: everything else is done in float32 or bfloat16"
        )
    if wanted != "auto":
        raise UserError(f"the precision {wanted!r} is none of auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def float32_is_rounded(device: torch.device) -> bool:
    """Whether whoever set torch's precisions lets it round the inputs of float32 products, to TF32 or bf16."""
    every = torch.backends
    own = every.cuda.matmul if device.type == "cuda" else every.mkldnn.matmul  # type: ignore[attr-defined]
    settings = (every.fp32_precision, every.mkldnn.fp32_precision, own.fp32_precision)  # type: ignore[attr-defined]
    return any(setting not in ("none", "ieee") for setting in settings)


def float32_names(model: nn.Module) -> set[str]:
    """Parameters that stay float32 whatever the compute precision: modules name theirs in ``float32_parameters``."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in getattr(module, "float32_parameters", ())
    }


@torch.no_grad()
def set_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast every parameter to ``dtype`` but those that must stay float32; buffers stay as they are."""
    kept = float32_names(model)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)
