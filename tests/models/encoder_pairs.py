"""Untrained encoders of the architectures that alignment is meant for, in the layout in which the Hub serves them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from poise.processing.scenes.layout import COLORS, SHAPES

WORDS = [*COLORS, *SHAPES, *(f"{shape}s" for shape in SHAPES), "a", "an", "of", "the", "and", "photo", "there", "is"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {"image_size": 32, "patch_size": 8}
SIDE = {"height": 32, "width": 32}


def word_tokenizer(tokens: list[str], wrap: str, **settings) -> PreTrainedTokenizerFast:
    """Words as tokens behind these special ones; `wrap` is the template around a text."""
    vocabulary = {token: number for number, token in enumerate([*tokens, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[-1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    special = [(token, vocabulary[token]) for token in tokens if token in wrap]
    tokenizer.post_processor = processors.TemplateProcessing(single=wrap, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=tokens[-1], **settings)


def dinov2(folder: Path) -> str:
    """As facebook/dinov2-large: trained on 518 pixels, shown 224; here 64 and 32."""
    Dinov2Model(Dinov2Config(**SIZES, image_size=64, patch_size=8)).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SIDE, do_center_crop=True).save_pretrained(folder)
    return str(folder)


def roberta(folder: Path) -> str:
    """As sentence-transformers/all-roberta-large-v1: padding is token 1, and positions begin behind it."""
    config = RobertaConfig(**SIZES, vocab_size=64, pad_token_id=1, max_position_embeddings=66, type_vocab_size=1)
    RobertaModel(config).save_pretrained(folder)
    tokenizer = word_tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_max_length=64,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return str(folder)


def clip(folder: Path) -> str:
    """As openai/clip-vit-base-patch32: both halves in one checkpoint, a text half that reads from left to right."""
    text = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(CLIPConfig(vision_config={**SIZES, **PATCHES}, text_config=text)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIDE).save_pretrained(folder)
    tokenizer = word_tokenizer(
        ["<bos>", "<eos>", "<unk>"], "<bos> $A <eos>", bos_token="<bos>", eos_token="<eos>", pad_token="<eos>",
        model_max_length=64,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return str(folder)


def siglip(folder: Path) -> str:
    """As google/siglip-base-patch16-224: no class token, and a tokenizer that gives no attention mask of itself."""
    text = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64}
    SiglipModel(SiglipConfig(vision_config={**SIZES, **PATCHES}, text_config=text)).to(torch.float32).save_pretrained(
        folder
    )
    SiglipImageProcessorPil(size=SIDE).save_pretrained(folder)
    tokenizer = word_tokenizer(
        ["</s>", "<unk>"], "$A </s>", eos_token="</s>", pad_token="</s>", model_input_names=["input_ids"],
        model_max_length=64,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return str(folder)


def named_pairs(folder: Path) -> dict[str, tuple[str, str]]:
    """`{name: (vision folder, text folder)}` of the pairs that the recipes and the documentation name."""
    torch.manual_seed(0)
    both = {name: make(folder / name) for name, make in (("clip", clip), ("siglip", siglip))}
    return {
        "dinov2+roberta": (dinov2(folder / "dinov2"), roberta(folder / "roberta")),
        **{name: (path, path) for name, path in both.items()},
    }
