"""Tiny Poise models of random weights with processors that know the words of scenes."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    T5Config,
)

from poise.modeling import PoiseConfig, PoiseForConditionalGeneration
from poise.processing import PoiseProcessor
from poise.processing.chat_templates import choose_chat_template
from poise.processing.scenes.scenes import Scenes

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]


def scene_words() -> list[str]:
    words: set[str] = set()
    for record in Scenes("validation", size=120):
        texts = [
            record["question"],
            *record["captions"],
            *record.get("answers", []),
            *(tag for tag, _ in record["tags"]),
        ]
        words.update(word for text in texts for word in text.split())
    return sorted(words | set("question answer tags : , . ? [ ] give the box of as x1 y1 x2 y2".split()))


def word_tokenizer(encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """One token a word; digits stand alone."""
    names = [*SPECIAL, *"0123456789", *(word for word in scene_words() if not word.isdigit())]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    if encoder_decoder:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def make_model(language: str, seed: int = 0, **fields):
    """A model and its processor. Large initial weights: random answers that differ from record to record."""
    tokenizer = word_tokenizer(language == "t5")
    size = len(tokenizer)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    if language == "llama":
        text = LlamaConfig(
            **shape, vocab_size=size, pad_token_id=0, bos_token_id=2, eos_token_id=3, initializer_range=0.3
        )
    else:
        text = T5Config(
            d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2, vocab_size=size, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, initializer_factor=3.0,
        )  # fmt: skip
    config = PoiseConfig(
        vision_config=SiglipVisionConfig(image_size=48, patch_size=16, vision_use_head=False, **shape),
        tag_encoder_config=BertConfig(**shape, vocab_size=size, max_position_embeddings=128),
        text_config=text,
        image_token_id=4,
        soft_prompt_length=2,
        **fields,
    )
    torch.manual_seed(seed)
    model = PoiseForConditionalGeneration(config).eval()
    processor = PoiseProcessor(
        SiglipImageProcessor(size={"height": 48, "width": 48}),
        tokenizer,
        word_tokenizer(encoder_decoder=False),
        chat_template=choose_chat_template(tokenizer, name="question_answer"),
        num_image_tokens=config.num_image_tokens,
        num_prompt_tokens=config.num_prompt_tokens,
    )
    return model, processor
