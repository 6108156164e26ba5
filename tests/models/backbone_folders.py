"""Pretrained backbones of random weights, saved as the Hub has them: configuration, weights, tokenizer or processor."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

WORDS = (
    "what color is the square ? red blue dog ball user assistant question answer tags : , . 0.97 0.6 one two".split()
)
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOKENIZER_SIZE = len(SPECIAL) + len(WORDS)

_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_IMAGE = {"image_size": 24, "patch_size": 8}
_WORDS_SHAPE = {**_SHAPE, "vocab_size": 50}


def save_tokenizer(folder, *extra):
    """A tokenizer of whole words; `extra` tokens are special ones at the end."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    if extra:
        fast.add_special_tokens({"additional_special_tokens": list(extra)})
    fast.save_pretrained(folder)


def _vision(name):
    """Model and image processor of a vision checkpoint."""
    square = {"height": 24, "width": 24}
    if name == "siglip":
        return SiglipVisionModel(SiglipVisionConfig(**_SHAPE, **_IMAGE)), SiglipImageProcessor(size=square)
    if name == "siglip_composite":
        text = {**_WORDS_SHAPE, "max_position_embeddings": 16}
        config = SiglipConfig(text_config=text, vision_config={**_SHAPE, **_IMAGE})
        return SiglipModel(config), SiglipImageProcessor(size=square)
    if name == "siglip2_naflex":
        text = {**_WORDS_SHAPE, "max_position_embeddings": 16}
        config = Siglip2Config(text_config=text, vision_config={**_SHAPE, "num_patches": 9, "patch_size": 8})
        return Siglip2Model(config), SiglipImageProcessor(size=square)
    if name == "clip":
        return CLIPVisionModel(CLIPVisionConfig(**_SHAPE, **_IMAGE)), CLIPImageProcessor(
            size={"shortest_edge": 24}, crop_size=square
        )
    if name == "clip_composite":
        text = {**_WORDS_SHAPE, "max_position_embeddings": 16}
        config = CLIPConfig(text_config=text, vision_config={**_SHAPE, **_IMAGE}, projection_dim=16)
        return CLIPModel(config), CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=square)
    shape = {name: value for name, value in _SHAPE.items() if name != "intermediate_size"}
    if name == "vit":
        return ViTModel(ViTConfig(**_SHAPE, **_IMAGE)), ViTImageProcessor(size=square)
    # As published: a table for one size, an image processor that makes another one.
    crop = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    if name == "dinov2":
        return Dinov2Model(Dinov2Config(**shape, **_IMAGE)), CLIPImageProcessor(**crop)
    config = Dinov2WithRegistersConfig(**shape, **_IMAGE, num_register_tokens=3)
    return Dinov2WithRegistersModel(config), CLIPImageProcessor(**crop)


def save_vision(folder, name):
    """Saves a tower: siglip, siglip_composite, siglip2_naflex, clip, clip_composite, vit, dinov2, dinov2_registers."""
    torch.manual_seed(0)
    model, processor = _vision(name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_text(folder, name):
    """
    Saves a language model: `llama` and `t5` with a padded vocabulary, `llama_full` with a row for each token and no
    more, `llama_tied` (tied, full), `llama_with_placeholder` whose tokenizer has `<image>` already.
    """
    torch.manual_seed(0)
    save_tokenizer(folder, *(["<image>"] if name == "llama_with_placeholder" else []))
    size = TOKENIZER_SIZE if name in ("llama_full", "llama_tied") else 64
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "t5":
        shape = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2}
        ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
        T5ForConditionalGeneration(T5Config(vocab_size=size, **shape, **ids)).save_pretrained(folder)
        return
    config = LlamaConfig(**_SHAPE, **ids, vocab_size=size, tie_word_embeddings=name == "llama_tied")
    LlamaForCausalLM(config).save_pretrained(folder)


def save_tag_encoder(folder):
    """Saves a BERT with its tokenizer."""
    torch.manual_seed(0)
    save_tokenizer(folder)
    BertModel(BertConfig(**_WORDS_SHAPE)).save_pretrained(folder)


class BackboneFolders:
    """Folders by name, made when first asked for."""

    def __init__(self, root):
        self.root = Path(root)

    def __call__(self, kind, name="bert"):
        folder = self.root / f"{kind}-{name}"
        if not folder.exists():
            {"vision": save_vision, "text": save_text}.get(kind, lambda f, _: save_tag_encoder(f))(folder, name)
        return str(folder)

    def arguments(self, vision="siglip", text="llama", tags=True):
        """Keyword arguments of `from_backbones`."""
        names = {"vision": self("vision", vision), "text": self("text", text)}
        return {**names, "tag_encoder": self("tag_encoder")} if tags else names
