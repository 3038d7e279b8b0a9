"""llama.cpp as one more that decodes: our weights as a GGUF file, and greedy decoding through llama-cpp-python's C API.

The API of C is used rather than the class ``Llama``, which decodes one sequence at a time and looks at every logit in
Python: what is timed is llama.cpp. Batches are sequences of one context, as its server has them; the largest logit is
found by numpy. Everything else (kernels, flash attention, a cache in float16) is what llama.cpp chooses.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bifocal.interop.gguf import LAYER, ROWS
from bifocal.models.language import LanguageModel

Kind = Literal["bf16", "q8_0"]
BLOCK = 256  # tokens: a sequence's part of a cache is a multiple of it
MISSING = (
    "llama.cpp is left out: llama_cpp cannot be imported (pip install llama-cpp-python builds it, with a C++ compiler "
    "and CMake)"
)


def is_there() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def write_gguf(model: LanguageModel, path: Path, kind: Kind, context: int = 2048) -> int:
    """Write a decoder as llama.cpp reads it, without a tokenizer; returns the bytes of weights that a step reads.

    Matrices are bf16 or Q8_0 (blocks of 32 weights in 8 bits, with a scale in float16), norms float32.
    """
    import gguf

    sizes = model.config
    if not sizes.tied or sizes.qk_norm:
        raise ValueError("only a Llama with a tied head and without QK-norm is written")
    names = {**ROWS, **LAYER}
    theirs = {ours: name for name, ours in names.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(context)
    writer.add_embedding_length(sizes.width)
    writer.add_feed_forward_length(sizes.hidden)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_rope_dimension_count(sizes.head_size)
    writer.add_rope_freq_base(sizes.rotary_base)
    writer.add_layer_norm_rms_eps(sizes.norm_eps)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_tokenizer_model("none")
    matrix = gguf.GGMLQuantizationType.BF16 if kind == "bf16" else gguf.GGMLQuantizationType.Q8_0
    octets = 0
    for name, weight in model.state_dict().items():
        parts = name.removesuffix(".weight").split(".", 2)
        place = f"blk.{parts[1]}.{theirs[parts[2]]}" if parts[0] == "layers" else theirs[parts[0]]
        value = weight.float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            value = interleaved(value, sizes.heads if "q_proj" in name else sizes.kv_heads)
        stored = gguf.GGMLQuantizationType.F32 if value.ndim == 1 else matrix
        data = gguf.quants.quantize(value.numpy(), stored)
        octets += data.nbytes
        writer.add_tensor(f"{place}.weight", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return octets


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection as GGUF has them: the two halves of a head's rotary pairs side by side."""
    size = weight.shape[0] // heads
    halves = weight.view(heads, 2, size // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


class LlamaCpp:
    """Greedy decoding of whole batches with llama.cpp, sequences of at most ``longest`` tokens."""

    def __init__(self, path: Path, vocabulary: int, longest: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.vocabulary, self.longest = vocabulary, longest
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # its warnings count as errors
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot open {path}")
        self.contexts: dict[int, tuple[Any, Any]] = {}

    def context(self, batch: int) -> tuple[Any, Any]:
        """A context for so many sequences and what it is given tokens in, made once."""
        if batch not in self.contexts:
            params = self.api.llama_context_default_params()
            params.n_ctx = batch * -(-self.longest // BLOCK) * BLOCK
            params.n_batch = batch * self.longest
            params.n_seq_max = batch
            params.n_threads = params.n_threads_batch = torch.get_num_threads()
            context = self.api.llama_init_from_model(self.model, params)
            if not context:
                raise RuntimeError(f"llama.cpp has no room for {batch} sequences of {self.longest} tokens")
            self.contexts[batch] = context, self.api.llama_batch_init(batch * self.longest, 0, 1)
        return self.contexts[batch]

    def __call__(self, tokens_BT: Tensor, count: int) -> Tensor:
        """(B, T) prompts -> (B, count) tokens."""
        said = [self.logits(tokens_BT).argmax(axis=1)]
        for place in range(tokens_BT.shape[1], tokens_BT.shape[1] + count - 1):
            said.append(self.step(said[-1][:, None].tolist(), place).argmax(axis=1))
        return torch.from_numpy(np.stack(said, axis=1))

    def logits(self, tokens_BT: Tensor) -> np.ndarray:
        """(B, T) prompts -> (B, V) logits behind the last token of each, there until the next step."""
        context, _ = self.context(len(tokens_BT))
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
        return self.step(tokens_BT.tolist(), 0)

    def step(self, tokens: Sequence[Sequence[int]], start: int) -> np.ndarray:
        """Some tokens more of each sequence, from position ``start``: (B, V) logits behind the last of each."""
        context, given = self.context(len(tokens))
        at = 0
        for sequence, row in enumerate(tokens):
            for place, token in enumerate(row):
                given.token[at], given.pos[at] = token, start + place
                given.n_seq_id[at], given.seq_id[at][0] = 1, sequence
                given.logits[at] = place == len(row) - 1
                at += 1
        given.n_tokens = at
        if (failed := self.api.llama_decode(context, given)) != 0:
            raise RuntimeError(f"llama.cpp could not decode ({failed})")
        logits = self.api.llama_get_logits(context)
        return np.ctypeslib.as_array(logits, shape=(len(tokens), self.vocabulary))
