"""Tiny Llavas and Chameleons as transformers writes them, and what is compared between it and us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

import bifocal
import tiny
from bifocal import inference
from bifocal.data.chat import read_messages
from bifocal.data.text import code_name
from interop.foreign import fill, pictures, sizes

LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
}  # fmt: skip
VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CODES = 40
VQ = {
    "embed_dim": 6, "num_embeddings": CODES, "latent_channels": 16, "resolution": 32, "base_channels": 32,
    "channel_multiplier": [1, 2, 2], "num_res_blocks": 1,
}  # fmt: skip


def sentence_pieces() -> Tokenizer:
    """Of Llama's kind: spaces are a mark, every text begins with one, bytes stand for what has no piece."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=[f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    words = [f"▁{text.replace(' ', '▁')}" for text in [*tiny.TEXTS, "USER: ASSISTANT: what is in the owl?"]]
    tokenizer.train_from_iterator(words * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def llava_directory(place: Path, decoder: str = "llama", **settings: Any) -> nn.Module:
    """A tiny LLaVA-1.5: the last layer but one of a QuickGELU CLIP, Vicuna's turns, pictures cropped."""
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=sentence_pieces(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    # more rows than tokens, as published
    text = {**LLAMA, "vocab_size": len(words) + 7, **settings.pop("text", {})}
    if decoder == "qwen3":
        text["head_dim"] = 8
    vision = sizes(image_size=32, patch_size=8, hidden_act="quick_gelu")
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config={"model_type": decoder, **text},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        **settings,
    )
    model = fill(transformers.LlavaForConditionalGeneration(config))
    model.save_pretrained(place)
    square = {"height": 32, "width": 32}
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    ).save_pretrained(place)
    return model


def chameleon_directory(place: Path) -> nn.Module:
    """A tiny Chameleon whose codes do not stand in their order, as in the published one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [
        code_name(code) for code in torch.randperm(CODES, generator=torch.Generator().manual_seed(3)).tolist()
    ]
    special = ["<s>", "<pad>", "</s>", "<unk>", *names, "<racm3:break>", "<eoss>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny.TEXTS * 4, trainer)
    tokenizer.add_special_tokens(["<reserved08706>", "<image>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        sep_token="<reserved08706>",
    )  # fmt: skip
    config = transformers.ChameleonConfig(
        **LLAMA, vocab_size=len(words), vq_config=VQ, vocabulary_map=words.get_vocab(), bos_token_id=0,
        eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    model = transformers.ChameleonForConditionalGeneration(config)
    spread(fill(model).model.vqmodel)
    model.save_pretrained(place)
    images = transformers.ChameleonImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.ChameleonProcessor(images, words, image_seq_length=64).save_pretrained(place)
    return model


def spread(vqmodel: Any) -> None:
    """Codes that pictures differ in: random ones all lie far from what a random encoder says."""
    with torch.no_grad():
        vqmodel.quantize.embedding.weight.normal_()
        vqmodel.quant_conv.weight.mul_(20)


def asked(text: str = "what is in the picture?", shown: int = 1) -> list[dict[str, Any]]:
    """A user's turn about pictures of several shapes."""
    parts = [{"type": "image", "image": picture} for picture in pictures()[:shown]]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def opened(place: Path) -> inference.VLM:
    vlm = bifocal.load(place, dtype="float32")
    assert isinstance(vlm, inference.VLM)
    return vlm


@torch.no_grad()
def logits_of(vlm: inference.VLM, messages: list[dict[str, Any]]) -> tuple[list[int], Tensor]:
    """The ids of a conversation, and the logits (T, V) at each."""
    shown, ours = read_messages(messages)
    prompt = vlm._prompt(ours, 0)
    encoded = vlm.encode(shown)
    assert encoded is not None
    span = torch.arange(vlm.model.image_path.positions)
    places = torch.stack([start + span for start, _ in prompt.pictures])
    x_BTD, _ = vlm.model.embed(
        torch.tensor([prompt.tokens]), places, encoded[[row for _, row in prompt.pictures]]
    )
    tokens = len(prompt.tokens)
    causal = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
    hidden = vlm.model.language_model(x_BTD, torch.arange(tokens)[None], causal)
    return prompt.tokens, vlm.model.language_model.lm_head(hidden)[0]
