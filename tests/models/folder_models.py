"""Poise models of random weights whose backbones lie in folders, as the tests of publishing need them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from poise.modeling import PoiseForConditionalGeneration
from poise.processing import PoiseProcessor

WORDS = "what color is the square circle ? red blue green yellow dog ball question answer tags : , .".split()
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def word_tokenizer(folder: Path, special_tokens: dict[str, str]) -> int:
    """Saves a tokenizer of whole words; returns the size of its vocabulary."""
    vocabulary = {word: place for place, word in enumerate([*special_tokens.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special_tokens["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)
    return len(vocabulary)


def save_backbones(folder: Path, shape: dict[str, int] = SHAPE) -> dict[str, str]:
    """Backbones of random weights, each in a folder in the Hub's layout."""
    backbones = {part: str(folder / part) for part in ("vision", "text", "tag_encoder")}
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **shape)).save_pretrained(backbones["vision"])
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(backbones["vision"])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    size = word_tokenizer(folder / "text", special)
    # Large weights: an untrained model of the usual scale answers everything with one and the same word.
    llama = LlamaConfig(vocab_size=size, bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.3, **shape)
    LlamaForCausalLM(llama).save_pretrained(backbones["text"])
    size = word_tokenizer(folder / "tag_encoder", {**special, "cls_token": "[CLS]", "sep_token": "[SEP]"})
    BertModel(BertConfig(vocab_size=size, max_position_embeddings=64, **shape)).save_pretrained(
        backbones["tag_encoder"]
    )
    return backbones


@dataclass(frozen=True)
class Built:
    """A model and its processor, and the folder into which both were saved."""

    model: PoiseForConditionalGeneration
    processor: PoiseProcessor
    folder: Path


def build(backbones: dict[str, str], **fields):
    """Model and processor around the backbones, named as if they came from the Hub."""
    torch.manual_seed(0)
    model = PoiseForConditionalGeneration.from_backbones(**backbones, soft_prompt_length=2, **fields)
    processor = PoiseProcessor.from_backbones(**backbones, config=model.config)
    model.config.backbones = {"vision": "acme/tower", "text": "acme/words", "tag_encoder": "acme/tags"}
    return model, processor
