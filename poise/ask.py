"""`poise ask MODEL IMAGE QUESTION`: one answer about one image, from a folder or a Hub repository.

Image, question and tags are looked at before the model is loaded: a slip in them costs no waiting.
"""

import argparse
import math
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# A photo of 100 megapixels takes 300 MB when decoded, and every vision tower shrinks it to less than one.
MAX_PIXELS = 64_000_000


def parse_tags(text: str) -> list[tuple[str, float]]:
    """Reads `"dog:0.97,ball:0.6"` as `[("dog", 0.97), ("ball", 0.6)]`.

    A score is what stands behind the last colon of a tag, so a name may hold colons. Empty text means no tags.

    Raises:
        ValueError: a tag without a name or score, or a score that is no number in [0, 1].
    """
    tags = []
    for entry in text.split(",") if text.strip() else []:
        name, colon, number = (part.strip() for part in entry.rpartition(":"))
        if not colon or not name:
            raise ValueError(f"--tags has {entry.strip()!r}; write every tag as name:score, as in dog:0.97,ball:0.6")
        try:
            score = float(number)
        except ValueError:
            score = math.nan
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"--tags gives {name!r} the score {number!r}; a score is a number from 0 to 1")
        tags.append((name, score))
    return tags


def open_image(path: str) -> "Image":
    """Opens and decodes an image file, turned upright as its EXIF orientation says, as RGB.

    Raises:
        ValueError: the file is no image, is cut off, or has more than `MAX_PIXELS` pixels.
        OSError: the file is not there or must not be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with open(path, "rb") as file:  # a missing or forbidden file is the system's error, with its own clear words
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
                image = Image.open(file)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"image {path!r} has {width}x{height} pixels, more than {MAX_PIXELS:,}; make it smaller first"
                )
            return ImageOps.exif_transpose(image).convert("RGB")
        except Image.DecompressionBombError as error:
            raise ValueError(f"image {path!r} has more than {MAX_PIXELS:,} pixels; make it smaller first") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"image {path!r} is in no format that Pillow reads; give a PNG, JPEG or WebP") from error
        except (OSError, SyntaxError) as error:  # Pillow's words for data that end early or are garbled
            raise ValueError(f"image {path!r} is damaged ({error}); give an undamaged copy") from error


def check_model_name(name: str) -> None:
    """A folder must hold a config.json; anything else must at least look like the name of a Hub repository.

    Raises:
        ValueError: neither is so.
    """
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise ValueError(f"model {name!r} is a folder without config.json; name the folder of a saved model")
    elif os.path.exists(name) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"model {name!r} is no folder; name the folder of a saved model or a Hub repository")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise ask",
        description="Answer a question about an image.",
        epilog='example: poise ask outputs/demo/model photo.jpg "what color is the ball?" --tags "dog:0.97,ball:0.6"',
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or a Hub repository")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument("--tags", default="", metavar="NAME:SCORE,...", help="what a tagger saw, scores from 0 to 1")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer (default 64)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda if there is one)")
    return parser


def main(argv: list[str]) -> int:
    """Prints the answer. Returns 0; what can go wrong is raised (see `poise.command_line`)."""
    arguments = build_parser().parse_args(argv)
    if not arguments.question.strip():
        raise ValueError("QUESTION is empty; write what you want to know about the image")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {arguments.max_new_tokens}; it must be at least 1")
    tags = parse_tags(arguments.tags)
    image = open_image(arguments.image)
    check_model_name(arguments.model)
    print(answer(arguments.model, image, arguments.question, tags, arguments.max_new_tokens, arguments.device))
    return 0


def answer(
    model_name: str,
    image: "Image",
    question: str,
    tags: list[tuple[str, float]],
    max_new_tokens: int = 64,
    device: str | None = None,
) -> str:
    """Loads model and processor and generates one answer, greedily.

    model_name (`str`): folder or Hub repository.
    tags (`list[tuple[str, float]]`): names and scores in [0, 1]; may be empty.
    device (`str`, *optional*, defaults to `"cuda"` where there is one, else `"cpu"`).
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(model_name)
    model = AutoModelForImageTextToText.from_pretrained(model_name)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    content = [{"type": "image", "image": image, "tags": tags}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # (1, T)
    if not model.config.is_encoder_decoder:  # a decoder-only model repeats the prompt in front of its answer
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens[0], skip_special_tokens=True).strip()
