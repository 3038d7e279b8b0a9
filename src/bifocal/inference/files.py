"""Finished models on disk: written, told from others, and opened."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from bifocal import artifacts, config
from bifocal.config import UserError
from bifocal.data.chat_text import open_tokenizer
from bifocal.data.foreign_text import ForeignTokenizer
from bifocal.data.text import TextTokenizer
from bifocal.inference.parti import Parti
from bifocal.inference.parts import CLIP, VQVAE, Prior
from bifocal.inference.vlm import VLM
from bifocal.interop import open_clip
from bifocal.interop.clip import layout_for, layout_in, read_clip, write_clip
from bifocal.interop.clip_tokens import AnyTokenizer, read_tokenizer
from bifocal.interop.vlm import layout_for as vlm_layout_for
from bifocal.interop.vlm import layout_in as vlm_layout_in
from bifocal.interop.vlm import read_vlm, write_vlm
from bifocal.interop.vqgan import is_vqgan, read_vqgan
from bifocal.interop.weights import told_if_not_written
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.int8 import to_int8
from bifocal.models.parti import PartiConfig, PartiModel
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.prior import PriorConfig, PriorModel
from bifocal.models.vlm import VLM as VLMModel
from bifocal.models.vlm import DiscretePath, VLMConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CONFIGS = (CONFIG, open_clip.CONFIG)  # either says what a finished model is

KINDS: dict[str, type] = {
    "bifocal-vqvae": VQVAEConfig,
    "bifocal-clip": CLIPConfig,
    "bifocal-vlm": VLMConfig,
    "bifocal-prior": PriorConfig,
    "bifocal-parti": PartiConfig,
}
MODELS: dict[str, type] = {
    "bifocal-vqvae": VQVAEModel,
    "bifocal-clip": CLIPModel,
    "bifocal-vlm": VLMModel,
    "bifocal-prior": PriorModel,
    "bifocal-parti": PartiModel,
}


def save(path: str | Path, model: nn.Module, tokenizer: AnyTokenizer | None = None) -> None:
    """Write a finished model into a run's directory: config, weights, and the tokenizer where there is one.

    A CLIP is written as transformers or open_clip opens it, where either has a layout for it, and a VLM as transformers
    does. Raises ``UserError`` where it cannot be written; nothing half written stays then.
    """
    with told_if_not_written(Path(path)):
        _save(Path(path), model, tokenizer)


def _save(path: Path, model: nn.Module, tokenizer: AnyTokenizer | None) -> None:
    if isinstance(model, CLIPModel) and (layout := layout_for(model.config, tokenizer)) is not None:
        name = path.resolve().name.removesuffix(".tmp")
        _finish(path, lambda work: write_clip(work, model, tokenizer, layout, name=name))
        return
    if isinstance(model, VLMModel) and isinstance(tokenizer, TextTokenizer):
        if (theirs := vlm_layout_for(model)) is not None:
            _finish(path, lambda work: write_vlm(work, model, tokenizer, theirs))
            return
    kind = next(name for name, cls in MODELS.items() if type(model) is cls)
    if isinstance(tokenizer, ForeignTokenizer):
        tokenizer.write(path)
    elif tokenizer is not None:
        tokenizer.write(path / TOKENIZER)
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
    temporary = path / f"{WEIGHTS}.tmp"
    try:
        save_file(tensors, str(temporary), metadata={"format": "pt"})
        temporary.replace(path / WEIGHTS)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    artifacts.atomic_write_json(path / CONFIG, {"model_type": kind, **config.to_dict(model.config)})


def _finish(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside, then move in, the configuration last: a run with a configuration is finished."""
    work = path / "finishing.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        write(work)
        for file in sorted(work.iterdir(), key=lambda file: file.name in CONFIGS):
            file.replace(path / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_finished(path: Path) -> bool:
    """Whether a directory holds a finished model."""
    return (path / WEIGHTS).is_file() and any((path / name).is_file() for name in CONFIGS)


def load_model(path: str | Path) -> tuple[nn.Module, AnyTokenizer | None]:
    """The bare float32 module of a finished directory, or of one that another tool wrote, and its tokenizer."""
    path = Path(path)
    if (theirs := vlm_layout_in(path)) is not None:
        return read_vlm(path, theirs)
    if is_vqgan(path):
        return read_vqgan(path), None
    if (layout := layout_in(path)) is not None:
        return read_clip(path, layout)
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"it has no {CONFIG} (is its training done?)" if path.is_dir() else "it does not exist"
        raise UserError(f"{path} is not a finished model: {reason}") from None
    except OSError as error:
        raise UserError(f"{path} is not a finished model: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path / CONFIG} is not JSON: {error}") from None
    kind = about.pop("model_type", None) if isinstance(about, dict) else None
    if kind not in KINDS:
        raise UserError(f"{path / CONFIG} says model_type {kind!r}; this version opens {', '.join(KINDS)}")
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path} has no {WEIGHTS}: its training did not finish; resume it")
    model: nn.Module = MODELS[kind](
        config.from_dict(KINDS[kind], about, where=str(path / CONFIG), older=True)
    )
    try:
        tensors = load_file(str(path / WEIGHTS))
        own = model.state_dict()
        tensors = {
            name: value.to(own[name].dtype) if name in own else value for name, value in tensors.items()
        }
        model.load_state_dict(tensors)
    except Exception as error:
        raise UserError(
            f"{path / WEIGHTS} does not fit its {CONFIG} or is damaged: {' '.join(str(error).split())[:200]}"
        ) from None
    if isinstance(model, CLIPModel):
        return model.eval(), read_tokenizer(path, model.config.text)
    tokenizer = open_tokenizer(path) if (path / TOKENIZER).is_file() else None
    return model.eval(), tokenizer


def vqvae_in(model: nn.Module) -> VQVAEModel | None:
    """The image tokenizer that a model is, or has inside as a Parti and a discrete VLM do; None of any other."""
    if isinstance(model, VLMModel) and isinstance(model.image_path, DiscretePath):
        return model.image_path.vqmodel
    if isinstance(model, PartiModel):
        return model.vqvae
    return model if isinstance(model, VQVAEModel) else None


def load(path: str | Path, *, device: str = "cpu", dtype: str = "auto") -> VQVAE | CLIP | VLM | Prior | Parti:
    """Open a finished directory: a VQ-VAE, a CLIP, a VLM, a prior over codes or a Parti, ready to use.

    A CLIP may also be one that transformers or open_clip wrote, and a VLM a Llava or a Chameleon of transformers;
    without a tokenizer a CLIP sees pictures, and says so where text is needed. ``dtype`` "auto" computes in bf16 where
    the machine is fast at it; "int8" does too, with the weights of a VLM's decoder rounded to 8 bits, on a CPU: so one
    word serves for a VLM and for what is opened beside it. Raises ``UserError`` for a directory that is not a finished
    model.
    """
    place = open_device(device)
    model, tokenizer = load_model(path)
    int8 = dtype == "int8"
    set_precision(model, fast_dtype(place, "auto" if int8 else dtype))
    if int8 and isinstance(model, VLMModel):
        if place.type != "cpu":
            raise UserError(f"int8 is for the decoder of a VLM on a CPU: load {path} in float32 or bfloat16")
        to_int8(model.language_model)
    elif int8:
        print(f"{path} has no decoder to round to int8: it computes as in auto", file=sys.stderr)
    model.to(place)
    name = Path(path).resolve().name
    if isinstance(model, VQVAEModel):
        return VQVAE(model, name, place)
    if isinstance(model, PriorModel):
        return Prior(model, name, place)
    if isinstance(model, CLIPModel):
        return CLIP(model, tokenizer, name, place)
    if tokenizer is None:
        raise UserError(f"{path} has no {TOKENIZER}, and text is needed")
    assert isinstance(tokenizer, TextTokenizer) and isinstance(model, PartiModel | VLMModel)
    shape = model.config.text if isinstance(model, PartiModel) else model.config.language
    if len(tokenizer) > shape.vocabulary:
        raise UserError(
            f"{path} is damaged: its tokenizer names {len(tokenizer)} tokens and the model has {shape.vocabulary}"
        )
    if isinstance(model, PartiModel):
        return Parti(model, tokenizer, name, place)
    return VLM(model, tokenizer, name, place)
