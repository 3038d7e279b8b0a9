"""Measures "the closer z_e and z_q, the better the straight-through estimate" over the training of a VQ-VAE.

    python benchmarks/straight_through.py runs/straight-through docs/straight-through.png

The loss as a function of an encoder output is constant inside a code's cell, so its own derivative is zero or none.
What stands for it is the derivative of an expected loss. At one place of a picture, all others held, the code is
drawn at random with probability p_j = softmax_j(-|z_e - e_j|^2 / T); with L_j the loss of the picture when code j
stands there,

    reference = d/dz_e sum_j p_j L_j = 2/T sum_j p_j (e_j - sum_i p_i e_i) L_j.

L_j is computed for the 16 codes nearest to z_e by decoding each of them: nothing is linearised. T is, at each moment
of training, the median over places of |z_e - e_second|^2 - |z_e - e_nearest|^2, so that at the median place the second
nearest code has 1/e of the weight of the nearest. A second reference needs no chance: the derivative of the loss at
z_e when z_e itself stands at the place, unquantised. Unrelated directions are 90 degrees apart on average.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from bifocal import artifacts, losses
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.models.nearest import nearest_code
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel
from bifocal.recipes.sources import SceneSource
from bifocal.recipes.vqvae import recipe_vqvae, train_vqvae

NEIGHBOURS = 16
PICTURES, PLACES = 48, 6  # validation pictures, and places looked at in each
POINTS = 10  # moments of training
BINS = 8  # of distance, with equally many places
COLOURS = {"straight-through": "#3a74f0", "rotation": "#e0762b"}
LINES = {"soft assignment": "-", "unquantised": ":"}


@dataclass(frozen=True)
class Moment:
    """What was measured at one step, over P places."""

    step: int
    distance: Tensor  # (P,) |z_e - z_q|, over the root mean square distance of codes from their mean
    angles: dict[tuple[str, str], Tensor]  # (estimator, reference) -> (P,) degrees


def encoder_output(model: VQVAEModel, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> z_e (B, h, w, D)."""
    with torch.no_grad():
        return model.quant_conv(model.encoder(2 * images - 1)).permute(0, 2, 3, 1).contiguous()


def loss_of(model: VQVAEModel, vectors_BHWD: Tensor, images: Tensor) -> Tensor:
    """(B,) squared error of each picture when these vectors are decoded."""
    outputs = model.decoder(model.post_quant_conv(vectors_BHWD.permute(0, 3, 1, 2)))
    return ((outputs + 1) / 2 - images).square().mean(dim=(1, 2, 3))


def with_vector(maps_PHWD: Tensor, place_P: Tensor, vectors_PD: Tensor) -> Tensor:
    """Copies of maps in each of which one place holds another vector."""
    flat = maps_PHWD.flatten(1, 2).clone()
    flat[torch.arange(len(flat)), place_P] = vectors_PD
    return flat.view_as(maps_PHWD)


def gradient_at(model: VQVAEModel, maps_PHWD: Tensor, images: Tensor, place_P: Tensor) -> Tensor:
    """(P, D) derivative of each picture's loss by the vector at its place."""
    maps_PHWD = maps_PHWD.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(model, maps_PHWD, images).sum(), maps_PHWD)
    return gradient.flatten(1, 2)[torch.arange(len(place_P)), place_P]


def soft_assignment(
    model: VQVAEModel, maps_PHWD: Tensor, images: Tensor, place_P: Tensor, z_PD: Tensor, codebook_KD: Tensor
) -> Tensor:
    """(P, D) derivative by z_e of the expected loss when the code at the place is drawn at random."""
    distance_PJ, codes_PJ = torch.cdist(z_PD, codebook_KD).square().topk(NEIGHBOURS, largest=False)
    temperature = (distance_PJ[:, 1] - distance_PJ[:, 0]).median()
    p_PJ = torch.softmax(-distance_PJ / temperature, dim=1)
    e_PJD = codebook_KD[codes_PJ]
    with torch.no_grad():
        columns = [loss_of(model, with_vector(maps_PHWD, place_P, e_PD), images) for e_PD in e_PJD.unbind(1)]
    loss_PJ = torch.stack(columns, dim=1)
    centred_PJD = e_PJD - (p_PJ[..., None] * e_PJD).sum(dim=1, keepdim=True)
    # a constant taken from all losses of a place changes nothing but the rounding
    weight_PJ = p_PJ * (loss_PJ - loss_PJ[:, :1])
    return 2 / temperature * (weight_PJ[..., None] * centred_PJD).sum(dim=1)


def angle_between(a_PD: Tensor, b_PD: Tensor) -> Tensor:
    """(P,) degrees. Gradients may be tiny, so no entry is added to their lengths."""
    cosine = F.cosine_similarity(a_PD.double(), b_PD.double(), eps=1e-60)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def measure(model: VQVAEModel, images: Tensor, step: int) -> Moment:
    """Angles and distances at ``PLACES`` random places of each of the pictures (B, 3, S, S)."""
    z_BHWD = encoder_output(model, images)
    codebook_KD = model.quantize.codebook().detach()
    q_BHWD = codebook_KD[nearest_code(z_BHWD.flatten(0, 2), codebook_KD)].view_as(z_BHWD)
    generator = torch.Generator().manual_seed(0)
    in_picture = z_BHWD.shape[1] * z_BHWD.shape[2]
    place_P = torch.cat([torch.randperm(in_picture, generator=generator)[:PLACES] for _ in images])
    picture_P = torch.arange(len(images)).repeat_interleave(PLACES)
    z_PD, q_PD = (vectors.flatten(1, 2)[picture_P, place_P] for vectors in (z_BHWD, q_BHWD))
    maps_PHWD, images_P = q_BHWD[picture_P], images[picture_P]

    straight_PD = gradient_at(model, maps_PHWD, images_P, place_P)
    leaf_PD = z_PD.clone().requires_grad_()
    losses.rotation(leaf_PD, q_PD).backward(straight_PD)
    estimates = {"straight-through": straight_PD, "rotation": leaf_PD.grad}
    references = {
        "soft assignment": soft_assignment(model, maps_PHWD, images_P, place_P, z_PD, codebook_KD),
        "unquantised": gradient_at(model, with_vector(maps_PHWD, place_P, z_PD), images_P, place_P),
    }
    spread = (codebook_KD - codebook_KD.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    angles = {
        (estimate, reference): angle_between(estimates[estimate], references[reference])
        for estimate in estimates
        for reference in references
    }
    return Moment(step, (z_PD - q_PD).norm(dim=1) / spread, angles)


def save(moments: list[Moment], path: Path) -> None:
    """What was measured, so that it can be drawn again."""
    rows = [
        {
            "step": moment.step,
            "distance": moment.distance.tolist(),
            "angles": [[*names, angle.tolist()] for names, angle in moment.angles.items()],
        }
        for moment in moments
    ]
    artifacts.atomic_write_json(path, {"moments": rows})


def read(path: Path) -> list[Moment]:
    """What ``save`` wrote."""
    return [
        Moment(
            row["step"],
            torch.tensor(row["distance"]),
            {(estimate, reference): torch.tensor(angle) for estimate, reference, angle in row["angles"]},
        )
        for row in artifacts.read_json(path)["moments"]
    ]


def binned(moments: list[Moment], names: tuple[str, str]) -> list[tuple[float, float, float]]:
    """Mean distance, mean angle and half its 95% interval, in bins of equally many places."""
    distance = torch.cat([moment.distance for moment in moments])
    angle = torch.cat([moment.angles[names] for moment in moments])
    return [
        (
            distance[part].mean().item(),
            angle[part].mean().item(),
            1.96 * angle[part].std().item() / len(part) ** 0.5,
        )
        for part in distance.argsort().chunk(BINS)
    ]


def second_half(moments: list[Moment]) -> list[Moment]:
    """Of training: in the first the codes are still on their way to the vectors."""
    return [moment for moment in moments if moment.step > moments[-1].step / 2]


def draw(moments: list[Moment], path: Path) -> None:
    """Angles over training, distance over training, angle against distance."""
    figure = Figure(figsize=(12, 3.8))
    over_time, distances, against = figure.subplots(1, 3)
    steps = [moment.step for moment in moments]
    for names in moments[0].angles:
        looks = {"color": COLOURS[names[0]], "linestyle": LINES[names[1]], "marker": "o", "markersize": 3}
        means = [moment.angles[names].mean().item() for moment in moments]
        over_time.plot(steps, means, label=f"{names[0]}, to {names[1]}", **looks)
        x, y, half = zip(*binned(second_half(moments), names), strict=True)
        against.errorbar(x, y, yerr=half, elinewidth=0.8, **looks)
    means = [moment.distance.mean().item() for moment in moments]
    distances.plot(steps, means, color="#333333", marker="o", markersize=3)
    distances.set_yscale("log")
    relative = "|z_e - z_q| / spread of the codes"
    titles = (
        "mean angle over training",
        "mean distance over training",
        "angle against distance, second half",
    )
    for axes, title, x, y in zip(
        (over_time, distances, against),
        titles,
        ("steps", "steps", relative),
        ("degrees", relative, "degrees"),
        strict=True,
    ):
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel(x, fontsize=8, color="#666666")
        axes.set_ylabel(y, fontsize=8, color="#666666")
        axes.tick_params(labelsize=8, colors="#666666", length=0)
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in (over_time, against):
        axes.set_ylim(0, 90)
    over_time.legend(fontsize=7, frameon=False, labelcolor="#666666")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def report(moments: list[Moment]) -> None:
    """Print what the picture shows."""
    pairs = list(moments[0].angles)
    print(
        "mean angles in degrees; in brackets their rank correlation with the distance over the places of a step"
    )
    print(f"{'step':>5} {'distance':>9}" + "".join(f"{f'{a}, {b}':>36}" for a, b in pairs))
    for moment in moments:
        cells = "".join(
            f"{f'{angle.mean():.1f} ({spearmanr(moment.distance, angle).statistic:+.2f})':>36}"
            for angle in moment.angles.values()
        )
        print(f"{moment.step:>5} {moment.distance.mean():9.3f}{cells}")
    for names in pairs:
        bins = [f"{x:.2f}: {y:.1f} ± {half:.1f}" for x, y, half in binned(second_half(moments), names)]
        print(f"{names[0]}, {names[1]}, by distance in the second half: {'; '.join(bins)}")


def main(out: tyro.conf.Positional[Path], picture: tyro.conf.Positional[Path], steps: int = 300) -> None:
    """Train a small VQ-VAE into OUT, measure on the way, draw PICTURE and print what is in it.

    Args:
        out: a new run, or one that this made, which is only drawn again.
        picture: a PNG.
        steps: of training.
    """
    if not (out / "moments.json").exists():
        base = recipe_vqvae("quickstart")
        network = VQVAEConfig(
            picture_size=32,
            multipliers=(1, 1, 2),
            decoder_blocks=(0, 1, 1),
            latent_channels=32,
            quantizer=QuantizerConfig(codes=256),
        )
        settings = replace(base.train, steps=steps, validate_every=max(1, steps // POINTS), dtype="float32")
        recipe = replace(base, world=WorldSettings(picture_size=32), model=network, train=settings)
        source = SceneSource(recipe.world, 0)
        images = to_tensor([source.picture("validation", 500 + number) for number in range(PICTURES)])
        made: list[Moment] = []
        train_vqvae(recipe, out, show=lambda model, _, step: made.append(measure(model, images, step)))
        save(made, out / "moments.json")
    moments = read(out / "moments.json")
    report(moments)
    draw(moments, picture)


if __name__ == "__main__":
    tyro.cli(main)
