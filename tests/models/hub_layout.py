"""Untrained backbones of true widths but two layers, saved the way the Hub serves them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = "what color is the thing in describe image one sentence . , : ? a red dog ball 0 1 2 3 4 5 6 7 8 9".split()


def word_tokenizer(special: dict[str, str], wrap: str | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with these special tokens; `wrap` is its template around a single text."""
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(special.values()), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if wrap is not None:
        named = [(token, vocabulary[token]) for token in special.values() if token in wrap]
        tokenizer.post_processor = processors.TemplateProcessing(single=wrap, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)


def siglip2_base(folder: Path) -> str:
    """google/siglip2-base-patch16-224: both halves in one checkpoint."""
    config = SiglipConfig(
        vision_config={"num_hidden_layers": 2, "image_size": 224, "patch_size": 16},
        text_config={"num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 768},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)
    return str(folder)


def clip_large(folder: Path) -> str:
    """openai/clip-vit-large-patch14, with layers enough for the recipe's choice of middle layers."""
    config = CLIPConfig(
        vision_config={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14,
        },
        text_config={"num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 64, "num_attention_heads": 2},
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return str(folder)


def smollm2_135m(folder: Path) -> str:
    """HuggingFaceTB/SmolLM2-135M-Instruct: grouped queries, tied embeddings, a chat template without images."""
    end = "<|im_end|>"
    special = {"unk_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": end, "pad_token": end}
    tokenizer = word_tokenizer(special)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + '\n' + m['content'] + ' <|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        max_position_embeddings=8192,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def flan_t5_base(folder: Path) -> str:
    """google/flan-t5-base: gated feed-forward, untied head, a vocabulary padded beyond its tokenizer."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=2048, num_layers=2, num_decoder_layers=2, num_heads=12,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    word_tokenizer(special, wrap="$A </s>").save_pretrained(folder)
    return str(folder)


def _bert(folder: Path, **shape: int) -> str:
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    BertModel(BertConfig(num_hidden_layers=2, **shape)).save_pretrained(folder)
    word_tokenizer(special, wrap="[CLS] $A [SEP]").save_pretrained(folder)
    return str(folder)


def minilm(folder: Path) -> str:
    """sentence-transformers/all-MiniLM-L6-v2."""
    return _bert(folder, hidden_size=384, intermediate_size=1536, num_attention_heads=12)


def bert_base(folder: Path) -> str:
    """google-bert/bert-base-uncased."""
    return _bert(folder, hidden_size=768, intermediate_size=3072, num_attention_heads=12)
