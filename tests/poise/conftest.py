"""A Poise model of random weights, small enough to be made in a second, saved with its processor."""

from pathlib import Path

import pytest

WORDS = "what color is the square ? red blue dog ball user assistant question answer tags : , . 0.97 0.6".split()


def word_tokenizer(folder: Path, special_tokens: dict[str, str]) -> None:
    """Saves a tokenizer of words and punctuation marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate([*special_tokens.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special_tokens["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)


@pytest.fixture(scope="session")
def poise_folder(tmp_path_factory) -> Path:
    """Folder as `save_pretrained` of model and processor leave it."""
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    from poise import PoiseForConditionalGeneration, PoiseProcessor

    folder = tmp_path_factory.mktemp("poise_folder")
    backbones = {part: str(folder / part) for part in ("vision", "text", "tag_encoder")}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **shape)).save_pretrained(backbones["vision"])
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(backbones["vision"])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    word_tokenizer(folder / "text", special)
    llama = LlamaConfig(vocab_size=64, bos_token_id=2, eos_token_id=3, pad_token_id=0, **shape)
    LlamaForCausalLM(llama).save_pretrained(backbones["text"])
    word_tokenizer(folder / "tag_encoder", {**special, "cls_token": "[CLS]", "sep_token": "[SEP]"})
    BertModel(BertConfig(vocab_size=64, max_position_embeddings=64, **shape)).save_pretrained(backbones["tag_encoder"])

    model = PoiseForConditionalGeneration.from_backbones(**backbones, router_type="reliability", soft_prompt_length=2)
    processor = PoiseProcessor.from_backbones(**backbones, config=model.config)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def image(tmp_path_factory) -> Path:
    """A small image file."""
    from PIL import Image

    path = tmp_path_factory.mktemp("image") / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path
