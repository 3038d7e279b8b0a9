"""Models with random weights, small enough for every test, and a small data set of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bifocal import inference
from bifocal.data.chat_format import read_template
from bifocal.data.chat_text import ChatTokenizer
from bifocal.data.sample import Box, Message, Picture, Sample, write_samples
from bifocal.data.text import TextTokenizer
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.language import LanguageConfig
from bifocal.models.parti import DecoderConfig, PartiConfig, PartiModel
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig
from bifocal.models.vlm import VLM, Rows, VLMConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

PICTURE_SIZE = 32  # the smallest that scenes have
CODES = 24
VISION = VisionConfig(picture_size=PICTURE_SIZE, patch_size=8, width=32, layers=3, heads=2)
IMAGE_TOKENS = VQVAEConfig(
    picture_size=PICTURE_SIZE,
    multipliers=(1, 1, 1, 1),
    latent_channels=32,
    quantizer=QuantizerConfig(codes=CODES, width=4),
)
TEXTS = [
    "what is in the picture?",
    "an owl and two hearts",
    "a red tile, a blue tile, and a small upright dog",
    "is there a mushroom left of the owl? yes. no.",
]


def tokenizer() -> TextTokenizer:
    """Codes and coordinate bins included."""
    return TextTokenizer.train(TEXTS * 4, size=300, codes=CODES, box_bins=8)


def vlm(family: str, *, kv_heads: int = 2, box_spread: float = 1.0) -> VLM:
    """A VLM of random weights, larger than at the start of training, so that its preferences are clear."""
    words = tokenizer()
    eyes = {"vision": VISION}
    if family == "discrete":
        eyes = {"vqvae": IMAGE_TOKENS, "first_code": words.codes.start}  # type: ignore[dict-item]
    torch.manual_seed(1)
    model = VLM(
        VLMConfig(
            family=family,  # type: ignore[arg-type]
            language=LanguageConfig(
                vocabulary=len(words), width=32, layers=2, heads=4, kv_heads=kv_heads, hidden=48,
                qk_norm=family == "discrete",
            ),
            **eyes,  # type: ignore[arg-type]
            first_box=words.boxes.start,
            box_bins=len(words.boxes),
            box_spread=box_spread,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.language_model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
        for name, weight in model.image_path.named_parameters():
            if name.endswith("quantize.embedding.weight"):
                weight.normal_()
    return model.eval()


def vqvae() -> VQVAEModel:
    torch.manual_seed(2)
    return VQVAEModel(IMAGE_TOKENS).eval()


def parti(vocabulary: int, context: int = 16) -> PartiModel:
    """A Parti of random weights, larger than at the start of training, so that its preferences are clear."""
    torch.manual_seed(4)
    model = PartiModel(
        PartiConfig(
            vqvae=IMAGE_TOKENS,
            text=TextConfig(vocabulary=vocabulary, context=context, width=32, layers=1, heads=2),
            decoder=DecoderConfig(width=32, layers=2, heads=2, hidden=48),
            words=("an", "hearts", "owl", "two"),
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and not name.startswith("vqvae.") and "norm" not in name:
                weight.mul_(8)
        model.vqvae.quantize.embedding.weight.normal_()
    return model.eval()


def clip(vocabulary: int, context: int = 16) -> CLIPModel:
    torch.manual_seed(3)
    text = TextConfig(vocabulary=vocabulary, context=context, width=32, layers=1, heads=2)
    return CLIPModel(CLIPConfig(vision=VISION, text=text, width=16)).eval()


def picture(seed: int, size: int = PICTURE_SIZE) -> np.ndarray:
    """(size, size, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def folder(place: Path, pictures: int = 24) -> Path:
    """A data set of one's own: pictures with a caption, questions, a box, and a prompt to draw each by."""
    place.mkdir(parents=True)
    samples = []
    for index in range(pictures):
        name = f"{index}.png"
        Image.fromarray(picture(index)).save(place / name)
        what = f"picture number {index}"

        def ask(task: str, question: str, *answer: str | Box, name: str = name) -> Sample:
            messages = (Message("user", (Picture(0), question)), Message("assistant", answer))
            return Sample(f"{task}-{name}", task, "all", (name,), messages)

        samples += [
            ask("captioning", "what is in the picture?", what),
            ask("vqa", "which number?", str(index)),
            ask("grounding", "where is the owl?", Box(0.1, 0.2, 0.5, 0.9)),
            Sample(
                f"draw-{name}", "text-to-image", "all", (name,),
                (Message("user", (what,)), Message("assistant", (Picture(0),))),
            ),
        ]  # fmt: skip
    write_samples(place / "samples.jsonl", samples)
    return place


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def foreign_tokenizer() -> Tokenizer:
    """A byte-level BPE with a begin and an end token, as another tool leaves it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "user assistant system helpful"] * 4, trainer)
    return tokenizer


def chat_tokenizer(template: str = CHATML) -> ChatTokenizer:
    """The same as the tokenizer of a VLM, with eight coordinate bins."""
    chat = read_template(template, bos="<|im_start|>", eos="<|im_end|>")
    return ChatTokenizer.of_model(foreign_tokenizer(), chat, box_bins=8)


def rows(model: VLM) -> Rows:
    """Two rows of a continuous VLM, with a picture each and four words to be learnt."""
    positions = model.image_path.positions
    length = positions + 8
    tokens = torch.full((2, length), 40)
    supervised = torch.zeros(2, length, dtype=torch.bool)
    supervised[:, -4:] = True
    return Rows(
        tokens=tokens,
        positions=torch.arange(length).expand(2, -1),
        segments=torch.zeros(2, length, dtype=torch.int64),
        documents=torch.zeros(2, length, dtype=torch.int64),
        supervised=supervised,
        image_places=torch.arange(2)[:, None] * length + 1 + torch.arange(positions),
        pictures=torch.zeros(2, positions, VISION.width),
        answers=2,
    )


def eyes_and_data(place: Path) -> Path:
    """``place`` with a finished ``clip`` of random weights and a folder ``data`` in it, for a continuous VLM."""
    words = tokenizer()
    (place / "clip").mkdir()
    inference.save(place / "clip", clip(len(words)), words)
    folder(place / "data")
    return place
