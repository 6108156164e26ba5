"""Tiny models of many families with processors that belong to them, as folders that the Auto classes load."""

from pathlib import Path

import torch
import transformers as T
from more_families import MORE
from PIL import Image
from tiny_families import FAMILIES, IMG
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = "what color is the a red blue green square circle star ? : . , there yes no USER ASSISTANT this describe in"
# Words that processors write around and between tiles.
MARKS = (
    "<fake_token_around_image> <global-img> <row_1_col_1> <row_1_col_2> <row_2_col_1> <row_2_col_2> <end_of_utterance>"
)
TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT :"
)


def tokenizer(marks_images=True):
    """One token a word; 99 is the image's, as in the models."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *WORDS.split(), *MARKS.split()]
    names += [f"w{number}" for number in range(len(names), IMG)] + ["<image>"]
    names += ["<start_of_image>", "<end_of_image>", "<loc0000>"]
    names += [f"w{number}" for number in range(len(names), 120)]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    extra = {"image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    if not marks_images:
        extra = {}
    return T.PreTrainedTokenizerFast(
        tokenizer_object=words, **special, extra_special_tokens=extra, additional_special_tokens=MARKS.split()
    )


def _clip(**changes):
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return T.CLIPImageProcessor(**{**size, **changes})


def _siglip(side=28):
    return T.SiglipImageProcessor(size={"height": side, "width": side})


def llava():
    return T.LlavaProcessor(_clip(), tokenizer(), patch_size=14, vision_feature_select_strategy="default",
                            num_additional_image_tokens=1)  # fmt: skip


def llava_next():
    pixels = T.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )  # fmt: skip
    return T.LlavaNextProcessor(pixels, tokenizer(), patch_size=14, vision_feature_select_strategy="default",
                                num_additional_image_tokens=1)  # fmt: skip


def idefics3():
    pixels = T.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return T.Idefics3Processor(pixels, tokenizer(), image_seq_len=4)


def gemma3():
    pixels = T.Gemma3ImageProcessor(size={"height": 28, "width": 28}, do_pan_and_scan=False)
    return T.Gemma3Processor(pixels, tokenizer(), image_seq_length=4)


def paligemma():
    pixels = _siglip()
    pixels.image_seq_length = 4
    return T.PaliGemmaProcessor(pixels, tokenizer())


def blip2_opt():
    pixels = T.BlipImageProcessor(size={"height": 28, "width": 28})
    return T.Blip2Processor(pixels, tokenizer(marks_images=False), num_query_tokens=4)


blip2_t5 = blip2_opt


def mllama():
    pixels = T.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=2)
    return T.MllamaProcessor(pixels, tokenizer())


PROCESSORS = {f.__name__: f for f in (llava, llava_next, idefics3, gemma3, paligemma, blip2_opt, mllama)}
PROCESSORS["blip2_t5"] = blip2_opt
WITHOUT_TEMPLATE = ("paligemma", "blip2_opt", "blip2_t5")


def processor(name):
    made = PROCESSORS[name]()
    if name not in WITHOUT_TEMPLATE:
        made.chat_template = TEMPLATE.replace("IMAGE", "<start_of_image>" if name == "gemma3" else "<image>")
    return made


def model(name):
    torch.manual_seed(0)
    made, _ = {**FAMILIES, **MORE}[name]()
    made.generation_config.eos_token_id = 2
    made.generation_config.pad_token_id = 0
    return made.eval()


def folder(name, path: Path) -> Path:
    """A saved model with its processor."""
    if not path.is_dir():
        model(name).save_pretrained(path)
        processor(name).save_pretrained(path)
    return path


def small_image(width=40, height=30, seed=0):
    """An image of random colours with one red square."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (height, width, 3), generator=generator, dtype=torch.uint8).numpy()
    pixels[5:15, 20:30] = (250, 20, 20)
    return Image.fromarray(pixels)
