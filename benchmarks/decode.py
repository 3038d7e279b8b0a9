"""Times decoding beside transformers' ``generate``, on this machine, and says how near it is to what memory allows.

    python benchmarks/decode.py
    python benchmarks/decode.py --llama-cpp --page docs/decoding.md
    python benchmarks/decode.py --batches 1 --tokens 32 --rounds 3 --no-compiled

The model has the shape of SmolLM2-135M and random weights, the same for everyone, in bf16: ours as it is and with int8
weights, transformers' with its dynamic cache and with its static cache and a compiled step, and, where llama-cpp-python
is installed, llama.cpp's from a GGUF file in bf16 and in Q8_0. All are run in turn (A B C D A B C D ...), so that a
machine that grows slower or busier slows all alike; a line gives the median tokens a second with the range from the
first to the third quartile, over whole calls, the prompts' prefill included. Before them stands how near each peer's
logits of one text are to ours: that it is the same model.

Every step of a batch reads every weight of the layers and of the head once. The last columns say how many bytes a
second that is, and what share of what a sum over a large array reads in the same minutes; the last holds everyone, int8
and llama.cpp too, against the faster of transformers' settings.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from llama_cpp_peer import MISSING, Kind, LlamaCpp, is_there, write_gguf
from page import Page
from torch import Tensor

from bifocal.generation.decode import generate
from bifocal.generation.prompt import Prompt
from bifocal.generation.sampling import Sampling
from bifocal.models.int8 import to_int8
from bifocal.models.language import LanguageConfig
from bifocal.models.precision import set_precision
from bifocal.models.vision import VisionConfig
from bifocal.models.vlm import VLM, VLMConfig

SMOLLM2 = LanguageConfig(
    vocabulary=49152, width=576, layers=30, heads=9, kv_heads=3, hidden=1536, rotary_base=100000.0, tied=True
)
THEIRS = "transformers"
HEADS = ("batch", "", "tokens/s", "quartiles", "GB/s", "of the memory's speed", "times transformers' best")
Line = tuple[str, ...]  # a cell for each of HEADS
Say = Callable[[Tensor, int], Tensor]  # (B, T) prompts, how many tokens -> (B, tokens)


@dataclass(frozen=True)
class Setting:
    """A way to decode, and the bytes of weights that a step reads."""

    name: str
    say: Say
    octets: int


def ours(language: LanguageConfig) -> VLM:
    """A VLM around the decoder; its image encoder is not used."""
    torch.manual_seed(0)
    vision = VisionConfig(picture_size=32, patch_size=16, width=32, layers=1, heads=1)
    model = VLM(VLMConfig(language=language, vision=vision, box_bins=0)).eval()
    set_precision(model, torch.bfloat16)
    return model


def say_with(model: VLM) -> Say:
    """Greedy decoding with bifocal."""
    nothing = torch.zeros(model.config.language.vocabulary, dtype=torch.bool)

    def say(tokens_BT: Tensor, count: int) -> Tensor:
        prompts = [Prompt(row) for row in tokens_BT.tolist()]
        said = generate(
            model, prompts, None, stop=-1, forbidden=nothing, sampling=Sampling(max_new_tokens=count)
        )
        return torch.tensor([one.tokens for one in said])

    return say


def theirs(model: VLM) -> Any:
    """transformers' Llama with the same weights."""
    import transformers

    sizes = model.config.language
    made = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            intermediate_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            rms_norm_eps=sizes.norm_eps,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rotary_base},
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
    )
    own = {f"model.{name}": value for name, value in model.language_model.state_dict().items()}
    made.load_state_dict({**own, "lm_head.weight": own["model.embed_tokens.weight"]})
    return made.to(torch.bfloat16).eval()


@torch.inference_mode()
def logits_of(model: VLM, tokens_BT: Tensor) -> Tensor:
    """(B, T) -> (B, T, V): what our model says, without a cache."""
    length = tokens_BT.shape[1]
    causal = torch.full((length, length), float("-inf")).triu(1)
    language = model.language_model
    return language.lm_head(language(language.embed_tokens(tokens_BT), torch.arange(length)[None], causal))


def likeness(own: Tensor, others: Tensor) -> float:
    """The smallest cosine of two models' logits: that they are the same model, up to rounding."""
    return torch.nn.functional.cosine_similarity(own.float(), others.float(), dim=-1).min().item()


def say_with_theirs(model: Any, *, compiled: bool) -> Say:
    """Greedy decoding with transformers."""
    from transformers import CompileConfig

    extra: dict[str, Any] = {}
    if compiled:
        compiling = CompileConfig(fullgraph=False, mode="default")
        compiling._compile_all_devices = True  # else only a GPU's step is compiled
        extra = {"cache_implementation": "static", "compile_config": compiling}

    @torch.inference_mode(not compiled)
    @torch.no_grad()
    def say(tokens_BT: Tensor, count: int) -> Tensor:
        out = model.generate(
            tokens_BT,
            attention_mask=torch.ones_like(tokens_BT),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            **extra,
        )
        return out[:, tokens_BT.shape[1] :]

    return say


def read_speed(repeats: int = 3) -> float:
    """Bytes a second of a sum over 256 MiB, at best."""
    array = torch.ones(64 * 2**20)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        array.sum()
        best = max(best, array.numel() * 4 / (time.perf_counter() - began))
    return best


def weights_read(model: VLM) -> int:
    """Bytes of the layers' weights and of the head: what a step of decoding reads."""
    language = model.language_model
    parts = [*language.layers.parameters(), *language.layers.buffers()]
    parts += [*language.lm_head.parameters(), *language.lm_head.buffers()]
    return sum(part.numel() * part.element_size() for part in parts)


def main(
    batches: tuple[int, ...] = (1, 8),
    prompt: int = 32,
    tokens: int = 96,
    rounds: int = 7,
    peer: bool = True,
    compiled: bool = True,
    llama_cpp: bool = False,
    layers: int = SMOLLM2.layers,
    page: Path | None = None,
) -> None:
    """Print a line for each setting and batch.

    Args:
        batches: sequences at once.
        prompt: tokens of each prompt.
        tokens: new tokens of each sequence.
        rounds: how often each setting is timed, after a run that is not counted.
        peer: time transformers too.
        compiled: time transformers' static cache with a compiled step too; compiling takes a minute or more.
        llama_cpp: time llama.cpp too, where llama-cpp-python is installed.
        layers: of the decoder, fewer for a trial.
        page: a Markdown page with the marks <!-- decode --> and <!-- /decode -->, to write them between too.
    """
    report = None if page is None else Page(page, "decode")
    model = ours(LanguageConfig(**{**vars(SMOLLM2), "layers": layers}))
    rounded = copy.deepcopy(model)
    to_int8(rounded.language_model)
    about = (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {layers} layers, prompts of {prompt} tokens, "
        f"{tokens} new ones, {rounds} rounds"
    )
    print(about)
    settings = [
        Setting("bifocal bf16", say_with(model), weights_read(model)),
        Setting("bifocal int8", say_with(rounded), weights_read(rounded)),
    ]
    if peer:
        settings += of_transformers(model, compiled=compiled)
    with tempfile.TemporaryDirectory() as place:
        if llama_cpp:
            settings += of_llama_cpp(model, Path(place), prompt + tokens)
        lines = [line for batch in batches for line in measure(settings, batch, prompt, tokens, rounds)]
    print(text_table(lines))
    if report is not None:
        report.fill(f"{about}.\n\n{markdown(lines)}")


def of_transformers(model: VLM, *, compiled: bool) -> list[Setting]:
    """Its settings, after a line that says how near its logits are."""
    judge, whole = theirs(model), weights_read(model)
    text = some_text(1, 16)
    with torch.inference_mode():
        print(
            f"transformers' logits: cosine of at least {likeness(logits_of(model, text), judge(text).logits):.5f}"
        )
    settings = [Setting(f"{THEIRS} dynamic", say_with_theirs(judge, compiled=False), whole)]
    if compiled:
        say = say_with_theirs(theirs(model), compiled=True)
        settings.append(Setting(f"{THEIRS} static, compiled", say, whole))
    return settings


def of_llama_cpp(model: VLM, place: Path, longest: int) -> list[Setting]:
    """Its settings where it is installed, each after a line about how near its logits are; else in words why not."""
    if not is_there():
        print(MISSING)
        return []
    settings = []
    text = some_text(1, 16)
    for kind in get_args(Kind):
        octets = write_gguf(model.language_model, place / f"{kind}.gguf", kind)
        peer = LlamaCpp(place / f"{kind}.gguf", model.config.language.vocabulary, longest)
        near = likeness(logits_of(model, text)[:, -1], torch.from_numpy(peer.logits(text)))
        print(f"llama.cpp's logits in {kind}: cosine of at least {near:.5f}")
        settings.append(Setting(f"llama.cpp {kind}", peer, octets))
    return settings


def some_text(batch: int, length: int) -> Tensor:
    """(B, T) random tokens."""
    return torch.randint(SMOLLM2.vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def measure(settings: Sequence[Setting], batch: int, prompt: int, tokens: int, rounds: int) -> list[Line]:
    """Time all settings in turn: a line for each."""
    asked = some_text(batch, prompt)
    # what is made once is made before the clock runs; a static cache is compiled for its length
    for setting in settings:
        setting.say(asked, tokens)
    speeds: dict[str, list[float]] = {setting.name: [] for setting in settings}
    reads = []
    for _ in range(rounds):
        reads.append(read_speed())
        for setting in settings:
            began = time.perf_counter()
            setting.say(asked, tokens)
            speeds[setting.name].append(batch * tokens / (time.perf_counter() - began))
    read = statistics.median(reads)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rivals = [medians[one.name] for one in settings if one.name.startswith(THEIRS)]
    print(f"batch {batch}, memory read at {read / 1e9:.1f} GB/s", flush=True)
    lines = []
    for setting in settings:
        values, middle = speeds[setting.name], medians[setting.name]
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (middle, middle, middle)
        used = setting.octets * middle / batch
        lines.append(
            (
                str(batch),
                setting.name,
                f"{middle:.1f}",
                f"{low:.1f} to {high:.1f}",
                f"{used / 1e9:.1f}",
                f"{used / read:.0%}",
                f"{middle / max(rivals):.2f}" if rivals else "",
            )
        )
    return lines


def text_table(lines: Sequence[Line]) -> str:
    """For people."""
    widths = [max(len(line[column]) for line in (HEADS, *lines)) for column in range(len(HEADS))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (HEADS, *lines)
    )


def markdown(lines: Sequence[Line]) -> str:
    """For a page."""
    ruled = (HEADS, ("---:", "---", *["---:"] * (len(HEADS) - 2)), *lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


if __name__ == "__main__":
    tyro.cli(main)
