"""Tiny tokenizers and processors, built on the spot: whole words for the language models, WordPiece for the tags."""

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipImageProcessor

from poise.processing.chat_templates import choose_chat_template
from poise.processing.processing_poise import PoiseProcessor

WORDS = (
    "question answer tags : , . ? what color is the a dog ball cat red blue green long word describe image in one "
    "sentence give box of as [ ] x1 y1 x2 y2 yes no"
)
NUM_IMAGE_TOKENS, NUM_PROMPT_TOKENS = 4, 2


def word_tokenizer(encoder_decoder=False, **options):
    """One token a word; every character of digits is a word. An encoder-decoder's texts end with </s>."""
    names = ["<pad>", "<unk>", "<s>", "</s>", *WORDS.split(), *"0123456789"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    if encoder_decoder:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    settings = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "image_token": "<image>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**settings, **options})


def piece_tokenizer(max_length=64):
    """A WordPiece tokenizer of BERT's make."""
    names = "[PAD] [UNK] [CLS] [SEP] dog ball cat red blue traffic light , . ##s ##gy 0 1 2 3 4 5 6 7 8 9".split()
    names += ["##" + digit for digit in "0123456789"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    )


def make_processor(**options):
    """A processor for 48×48 images with 4 image tokens and 2 soft-prompt tokens."""
    settings = {
        "image_processor": SiglipImageProcessor(size={"height": 48, "width": 48}),
        "tokenizer": word_tokenizer(),
        "tag_tokenizer": piece_tokenizer(),
        "num_image_tokens": NUM_IMAGE_TOKENS,
        "num_prompt_tokens": NUM_PROMPT_TOKENS,
        "question_length": 64,
    }
    settings["chat_template"] = choose_chat_template(settings["tokenizer"], name="question_answer")
    return PoiseProcessor(**{**settings, **options})


@pytest.fixture
def processor():
    return make_processor()


@pytest.fixture
def photo():
    """An image with a left and a right half, larger than the model's."""
    image = Image.new("RGB", (80, 60), "red")
    image.paste("blue", (40, 0, 80, 60))
    return image
