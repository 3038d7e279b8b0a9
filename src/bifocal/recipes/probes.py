"""What a run shows of itself at each validation: reconstructions, zero-shot choices, answers, drawings.

A probe is a function of the step that the trainer is handed; it keeps what it is given in ``samples/`` of the run. What
is shown are always the same held-out things, so that pictures of several steps can be laid side by side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bifocal.data.pictures import to_pictures
from bifocal.data.sample import Picture, Sample
from bifocal.data.text import TextTokenizer
from bifocal.inference import CLIP
from bifocal.inference import VLM as LoadedVLM
from bifocal.inference import Parti as LoadedParti
from bifocal.interop.clip_tokens import AnyTokenizer
from bifocal.models.clip import CLIPModel
from bifocal.models.parti import PartiModel
from bifocal.models.vlm import VLM
from bifocal.models.vqvae import VQVAEModel
from bifocal.pages import contact_sheet
from bifocal.recipes.sources import Source
from bifocal.training.watching import Probe, Shown

PICTURES, LABELS, QUESTIONS, DRAWINGS = 8, 32, 6, 4
DRAWING = "text-to-image"
ANSWER_TOKENS = 24


def reconstructions(model: VQVAEModel, images_BCHW: Tensor) -> Probe:
    """Originals, and below each what its codes keep of it."""
    images = images_BCHW[:PICTURES]

    @torch.no_grad()
    def probe(step: int) -> Shown:
        decoded = model.decode(model.encode(images))
        pictures = [*to_pictures(images.cpu()), *to_pictures(decoded.cpu())]
        errors = (decoded - images).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
        rows = [
            {"picture": n, "psnr": round(-10 * error.log10().item(), 3)} for n, error in enumerate(errors)
        ]
        return Shown(contact_sheet(pictures, columns=len(images), gap=2), rows)

    return probe


def zero_shot(model: CLIPModel, tokenizer: AnyTokenizer, source: Source, device: torch.device) -> Probe:
    """Pictures, and which of the captions of all held-out ones each is taken to have."""
    pairs = [source.pair("validation", number, 0) for number in range(LABELS)]
    context = model.config.text.context
    pairs = [pair for pair in pairs if len(tokenizer.sequences([pair.text])[0]) <= context]
    labels = list(dict.fromkeys(pair.text for pair in pairs))
    shown = pairs[:PICTURES]

    def probe(step: int) -> Shown | None:
        if not shown:
            return None
        clip = CLIP(model, tokenizer, "clip", device)
        similar = clip.embed_images([pair.picture for pair in shown]) @ clip.embed_texts(labels).T
        said = [labels[place] for place in similar.argmax(dim=1).tolist()]
        rows = [
            {"picture": number, "caption": pair.text, "chosen": text, "right": text == pair.text}
            for number, (pair, text) in enumerate(zip(shown, said, strict=True))
        ]
        sheet = contact_sheet([pair.picture for pair in shown], columns=4, captions=said)
        return Shown(sheet, rows)

    return probe


def answers(
    model: VLM, tokenizer: TextTokenizer, source: Source, tasks: dict[str, float], device: torch.device
) -> Probe:
    """Questions about held-out pictures, the answers that stand with them, and the model's."""
    asked = held_out(source, tasks, QUESTIONS, "answers")
    pictures = {key: source.pixels(key) for sample in asked for key in sample.pictures}

    def probe(step: int) -> Shown | None:
        if not asked:
            return None
        vlm = LoadedVLM(model, tokenizer, "vlm", device)
        requests = [([pictures[key] for key in sample.pictures], sample.asked) for sample in asked]
        replies = vlm.answer_batch(requests, max_new_tokens=ANSWER_TOKENS)
        rows = [
            {
                "sample": sample.id,
                "question": sample.question,
                "wanted": sample.answer_text,
                "answer": reply.text,
            }
            for sample, reply in zip(asked, replies, strict=True)
        ]
        sheet = contact_sheet(
            [pictures[sample.pictures[0]] for sample in asked],
            captions=[reply.text or "(nothing)" for reply in replies],
        )
        return Shown(sheet, rows)

    return probe


def held_out(source: Source, tasks: dict[str, float], count: int, name: str) -> list[Sample]:
    """``count`` samples of these tasks, each of another document, the first that there are; those about pictures."""
    found: list[Sample] = []
    for number in range(source.documents("validation")):
        samples = source.document("validation", number, random.Random(f"{name}/{number}"), tasks)
        seen = [sample for sample in samples if sample.pictures][:1]
        found += [one for one in seen if all(source.pixels_or_none(key) is not None for key in one.pictures)]
        if len(found) == count:
            break
    return found


def drawings(
    model: VLM, tokenizer: TextTokenizer, source: Source, device: torch.device, seed: int
) -> Probe | None:
    """What a discrete VLM draws for held-out prompts, of which some are about pictures; None where there are none."""
    asked = held_out(source, {DRAWING: 1.0}, DRAWINGS, "drawings")
    if not asked:
        return None
    prompts = [sample.question for sample in asked]
    shown = [
        [source.pixels(sample.pictures[part.index]) for part in sample.prompt if isinstance(part, Picture)]
        for sample in asked
    ]

    def probe(step: int) -> Shown:
        vlm = LoadedVLM(model, tokenizer, "vlm", device)
        return easel(prompts, vlm.draw_batch(prompts, pictures=shown, seed=seed))

    return probe


def prompted(
    model: PartiModel, tokenizer: TextTokenizer, prompts: Sequence[str], device: torch.device, seed: int
) -> Probe:
    """What a Parti draws for held-out prompts."""

    def probe(step: int) -> Shown:
        return easel(prompts, LoadedParti(model, tokenizer, "parti", device).draw_batch(prompts, seed=seed))

    return probe


def easel(prompts: Sequence[str], drawn: Sequence[Image.Image]) -> Shown:
    """Drawings over their prompts."""
    rows = [{"picture": number, "prompt": prompt} for number, prompt in enumerate(prompts)]
    return Shown(contact_sheet([np.asarray(one) for one in drawn], captions=list(prompts)), rows)
