"""`bifocal encode`: what a frozen encoder says of every picture of a folder, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from bifocal import config, inference
from bifocal.config import UserError
from bifocal.data.fitting import fit_picture
from bifocal.data.folder import FolderDataset, PictureFiles, pictures_fingerprint
from bifocal.data.own_sets import picture_files
from bifocal.data.pictures import SUFFIXES, to_tensor
from bifocal.data.sample import picture_keys_of
from bifocal.encoded import EncodedStore, Origin, encode_pictures, weights_fingerprint
from bifocal.training.progress import Progress


def picture_keys(data: Path) -> list[str]:
    """The pictures of a folder: those its samples name, or, where it has no samples, every picture file in it."""
    if not data.is_dir():
        raise UserError(f"there is no directory {data} of pictures to encode")
    if any(data.glob("*.jsonl")):
        return picture_keys_of(FolderDataset(data).samples)
    files = picture_files(data)
    if not files:
        raise UserError(f"{data} holds no samples.jsonl and no picture ({', '.join(sorted(SUFFIXES))})")
    return files


def encode_command(
    run: Path,
    data: Path,
    *,
    out: Path | None = None,
    layer: int = -1,
    batch_size: int = 256,
    device: str = "cpu",
    dtype: str = "auto",
) -> EncodedStore:
    """Codes of a VQ-VAE, or features of a CLIP's ``layer``, for every picture, fitted to the model's size."""
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")
    model = inference.load(run, device=device, dtype=dtype)
    if not isinstance(model, inference.VQVAE | inference.CLIP):
        raise UserError(f"{run} is a {model.kind}: a VQ-VAE or a CLIP encodes pictures")
    keys = picture_keys(data)
    files = PictureFiles(data)
    codes = isinstance(model, inference.VQVAE)
    origin = Origin(
        encoder=weights_fingerprint(model.model),
        layer=None if codes else layer,
        picture_size=model.picture_size,
        fitting=model.fitting,
        pictures=pictures_fingerprint(keys, files),
        files=config.fingerprint([files.stamp(key) for key in keys]),
    )

    def pixels(some: Sequence[str]) -> Tensor:
        pictures = [fit_picture(files.picture(key), model.picture_size, model.fitting) for key in some]
        return to_tensor(pictures).to(model.device)

    def encode(images: Tensor) -> Tensor:
        if isinstance(model, inference.VQVAE):
            return model.encode(images)
        return model.model.vision_model.patch_features(images, layer)

    with Progress(f"encode {data.name}", total=len(keys)) as progress:
        return encode_pictures(
            out or data.with_name(f"{data.name}-{run.name}"),
            keys,
            pixels,
            encode,
            fingerprint=origin.fingerprint,
            origin=origin,
            encoder=weights_fingerprint(inference.load_model(run)[0]),
            codebook=model.codebook_size if isinstance(model, inference.VQVAE) else 0,
            batch_size=batch_size,
            progress=lambda done: progress.update(done),
        )
