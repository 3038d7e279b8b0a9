"""How a cell is trained and asked: encoders for the same minutes, decoders on the same rows, the same questions."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bifocal import artifacts, config, evaluation, inference
from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.dataset import SceneDataset, samples_for
from bifocal.data.text import TextTokenizer
from bifocal.environment import environment
from bifocal.evaluation.results import prediction_path
from bifocal.models.precision import fast_dtype, set_precision
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vlm import VLM, VLMConfig
from bifocal.models.vqvae import VQVAEConfig
from bifocal.recipes.clip import CLIPRecipe, recipe_clip, train_clip
from bifocal.recipes.curriculum import TaskWeights, scene_stages
from bifocal.recipes.encoding import encode_split
from bifocal.recipes.packing import Packer
from bifocal.recipes.runs import begun, finished, mean_loss, open_run
from bifocal.recipes.sources import SceneSource, world_of
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm
from bifocal.recipes.vqvae import VQVAERecipe, recipe_vqvae, train_vqvae
from bifocal.training.trainer import train
from cells.eyes import Bag, Eyes, FrozenPath, open_eyes
from cells.grid import Cell, Sight
from cells.page import EVALUATED, HELD_OUT

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
ROWS, ROOM = 36, 96  # pictures of a step, and the tokens that conversations about each of them may take
HELD_OUT_ROWS = 256
COUNTS = {"vqa": 900, "grounding": 300, "reasoning": 600, "captioning": 300}
TAUGHT, PROBED = 1500, 600  # single objects that a linear probe learns from, and is asked about
# What a step took on two cores at some 400 GFLOP/s in bf16; the steps of encoders follow from it.
SECONDS = {"clip": 0.8, "vqvae": 0.31, "taught": 0.43}


class OnePicture(SceneSource):
    """Scenes, each talked about by itself, so that the positions of a row are those of one picture."""

    def document_keys(self, split: str, number: int) -> tuple[str, ...]:
        return (self.world.scenes(split, number, pictures=1)[0].key,)

    def document(
        self,
        split: str,
        number: int,
        rng: Any,
        tasks: Mapping[str, float],
        kinds: Mapping[str, float] | None = None,
    ) -> list[Sample]:
        return samples_for(
            self.world.scenes(split, number, pictures=1),
            rng,
            world=self.world,
            tasks=dict(tasks),
            count=self.samples_per_document,
            split=split,
            kinds=kinds,
        )


@dataclass(frozen=True)
class Study:
    """What is the same for all cells, and where they lie."""

    runs: Path
    steps: int
    encoder_minutes: float
    concepts: str
    episodes: int
    smoke: bool
    given: Mapping[str, Path] = field(default_factory=dict, hash=False)

    @property
    def world(self) -> WorldSettings:
        return WorldSettings(concepts=self.concepts)

    @property
    def scale(self) -> str:
        return "smoke" if self.smoke else "quickstart"

    # ------------------------------------------------------------ encoders

    def encoder(self, name: str) -> Path:
        """Where an encoder lies, or is to lie."""
        return self.given.get(name, self.runs / "encoders" / name)

    def encoder_steps(self, name: str) -> int:
        """So many as take the same minutes for each."""
        kind = "clip" if name == "clip" else "taught" if name.endswith("taught") else "vqvae"
        return max(2, round(60 * self.encoder_minutes / SECONDS[kind]))

    def encoder_recipe(self, name: str) -> CLIPRecipe | VQVAERecipe:
        """The quickstart's, in the study's world. A coarse VQ-VAE has one level of halving more."""
        steps = self.encoder_steps(name)
        part = {"validate_every": max(1, steps // 4), "checkpoint_every": max(1, steps // 8)}
        if name == "clip":
            clip = recipe_clip(self.scale)
            rows = clip.batch_size if self.smoke else 192
            return replace(
                clip, batch_size=rows, world=self.world, train=replace(clip.train, steps=steps, **part)
            )
        vqvae = recipe_vqvae(self.scale)
        _, codes, *more = name.split("-")
        coarse = (
            {"multipliers": (1, 1, 2, 4, 4), "decoder_blocks": (0, 1, 1, 1, 1)} if "coarse" in more else {}
        )
        return replace(
            vqvae,
            world=self.world,
            model=VQVAEConfig(quantizer=QuantizerConfig(codes=int(codes)), **coarse),
            perceptual=str(self.encoder("clip")) if "taught" in more else None,
            train=replace(vqvae.train, steps=steps, **part),
        )

    def train_encoder(self, name: str) -> None:
        """Train it, or the rest of it; one that is given is taken as it is."""
        place = self.encoder(name)
        if name in self.given:
            if not finished(place):
                raise UserError(f"--given {name} {place} is no finished run")
            return
        recipe = self.encoder_recipe(name)
        open_run(place, "clip" if name == "clip" else "vqvae", recipe, resume=True)
        if finished(place):
            return
        if isinstance(recipe, CLIPRecipe):
            train_clip(recipe, place, resume=True)
        else:
            train_vqvae(recipe, place, resume=True)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one study a process
    def eyes(self, sight: Sight) -> Eyes:
        """Frozen, and refused if they do not give what the grid says."""
        run = None if sight.encoder is None else self.encoder(sight.encoder)
        world = world_of(self.world)
        fitted = self.runs / "fitted" / f"{sight.name}.safetensors"
        eyes = open_eyes(
            sight.kind,
            run,
            sight.codes,
            fitted,
            lambda: [world.picture(f"train/{number}/0") for number in range(64 if self.smoke else 512)],
        )
        if eyes.positions != sight.positions:
            raise UserError(
                f"{run} gives {eyes.positions} positions a picture, and {sight.name} is to have {sight.positions}"
            )
        return eyes

    # ------------------------------------------------------------ decoders

    @functools.cached_property
    def source(self) -> OnePicture:
        return OnePicture(self.world, self.episodes, samples_per_document=24)

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """Learnt once, without codes: all cells have one vocabulary."""
        path = self.runs / "tokenizer.json"
        if not path.exists():
            self.runs.mkdir(parents=True, exist_ok=True)
            made = TextTokenizer.train(self.source.texts(), size=VLMRecipe.text_tokens)
            artifacts.atomic_write_text(path, made.fingerprint_text)
        return TextTokenizer.read(path)

    def recipe(self, cell: Cell) -> VLMRecipe:
        """Rows hold the same conversations whatever a picture takes: only its positions make them longer."""
        base = recipe_vlm(self.scale, "continuous")
        rows = base.batch_size if self.smoke else ROWS
        part = max(1, self.steps // 4)
        return replace(
            base,
            vision=cell.sight.name,
            batch_size=rows,
            row_length=cell.positions + ROOM,
            episodes=self.episodes,
            pixel_shuffle=cell.gather,
            world=self.world,
            tasks=TaskWeights(captioning=3, vqa=6, grounding=3, reasoning=1),
            stages=scene_stages(0.5, 0.8),
            language=replace(base.language, qk_norm=cell.qk_norm, vocabulary=len(self.tokenizer)),
            train=replace(
                base.train,
                steps=self.steps,
                seed=cell.seed,
                validate_every=part,
                checkpoint_every=max(1, self.steps // 8),
                keep_checkpoints=1,
            ),
        )

    def model(self, cell: Cell) -> VLM:
        """The decoder begins the same for all cells of a seed, since its weights are drawn first."""
        torch.manual_seed(cell.seed)
        tokenizer, recipe = self.tokenizer, self.recipe(cell)
        model = VLM(
            VLMConfig(
                language=recipe.language,
                first_box=tokenizer.boxes.start,
                box_bins=len(tokenizer.boxes),
                box_spread=recipe.box_spread,
                number_pictures=recipe.number_pictures,
            )
        )
        model.image_path = FrozenPath(self.eyes(cell.sight), model.language_model, cell.gather)
        return model

    def place(self, cell: Cell) -> Path:
        return self.runs / "cells" / cell.name

    def packer(self, cell: Cell, splits: Sequence[str]) -> Packer:
        """Rows of a cell, its pictures as its eyes see them, encoded once for all cells that have these eyes."""
        eyes, recipe = self.eyes(cell.sight), self.recipe(cell)
        stores = {
            split: encode_split(
                self.source,
                split,
                self.runs / "encoded" / cell.sight.name / split,
                eyes,
                eyes.encode,
                device=CPU,
                codebook=eyes.codes,
            )
            for split in splits
        }
        template = Template(self.tokenizer, cell.positions, recipe.number_pictures)
        return Packer(recipe, self.source, template, stores)

    def train_cell(self, cell: Cell) -> None:
        """Train the decoder of a cell, or the rest of it."""
        place, recipe = self.place(cell), self.recipe(cell)
        open_run(place, "vlm", recipe, resume=True)
        if (place / WEIGHTS).exists():
            return
        model, packer = self.model(cell), self.packer(cell, ("train", "validation"))
        held_out = [packer.rows("validation", 0, recipe.batch_size)]
        train(
            model,
            recipe.train,
            lambda step: packer.rows("train", step, recipe.batch_size),
            place,
            samples_per_step=recipe.batch_size,
            validation=lambda: mean_loss(model, held_out),
            about={
                "recipe": config.to_dict(recipe),
                "data": self.source.fingerprint,
                "environment": environment(),
            },
            resume=True,
            title=cell.name,
        )
        work = place / f"{WEIGHTS}.tmp"
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, work)
        work.replace(place / WEIGHTS)

    # ------------------------------------------------------------ scores

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one study a process
    def asked(self, task: str) -> Dataset:
        """Test scenes; of questions and statements those about one picture."""
        count = 36 if self.smoke else COUNTS[task]
        dataset = SceneDataset(world_of(self.world), "test", task, count)
        dataset.samples = [sample for sample in dataset.samples if len(sample.pictures) == 1]
        return dataset

    def make(self, cell: Cell) -> None:
        """A cell from its first step to its last answer."""
        self.train_cell(cell)
        self.evaluate_cell(cell)

    def evaluate_cell(self, cell: Cell) -> None:
        """Ask it everything, and take the loss of each held-out picture's conversations."""
        place = self.place(cell)
        if (place / EVALUATED).exists():
            return
        model = self.model(cell).eval()
        model.load_state_dict(load_file(place / WEIGHTS))
        set_precision(model, fast_dtype(CPU))
        vlm = inference.VLM(model, self.tokenizer, cell.name, CPU)
        for task in COUNTS:
            dataset = self.asked(task)
            if not prediction_path(place, cell.name, task, dataset.split).exists():
                evaluation.evaluate(vlm, dataset, task, directory=place, blank=False)
        packer, sums = self.packer(replace(cell, seed=0), ("validation",)), []  # the same rows for all
        for step in range(1 if self.smoke else HELD_OUT_ROWS // 32):
            rows = packer.rows("validation", step, 32)
            with torch.inference_mode():
                each = [model.loss(rows.part(range(row, row + 1)))[:2] for row in range(len(rows.tokens))]
            sums += [[round(total.item(), 5), count] for total, count in each]
        artifacts.atomic_write_json(place / EVALUATED, {HELD_OUT: sums})

    @property
    def probes(self) -> Path:
        return self.runs / "probes"

    def is_probed(self, sight: Sight) -> bool:
        """Whether that is done; there is nothing to read in nothing."""
        return (
            sight.encoder is None or prediction_path(self.probes, sight.name, "linear-probe", "test").exists()
        )

    def probe(self, sight: Sight) -> None:
        """What a linear classifier reads of single objects in what an encoder gives, without any decoder."""
        world = world_of(self.world)
        tested, taught = (60, 120) if self.smoke else (PROBED, TAUGHT)
        evaluation.evaluate(
            Bag(self.eyes(sight), sight.name),
            SceneDataset(world, "test", "zero-shot", tested),
            "linear-probe",
            directory=self.probes,
            training=SceneDataset(world, "train", "zero-shot", taught),
        )

    def refuse_other_settings(self, cells: Sequence[Cell]) -> None:
        """Raise ``UserError`` where something lies that was begun with other settings."""
        for name in {cell.sight.encoder for cell in cells if cell.sight.encoder} - set(self.given):
            if begun(self.encoder(name)):
                kind = "clip" if name == "clip" else "vqvae"
                open_run(self.encoder(name), kind, self.encoder_recipe(name), resume=True)
        for cell in cells:
            if begun(self.place(cell)):
                open_run(self.place(cell), "vlm", self.recipe(cell), resume=True)
