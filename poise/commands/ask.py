"""`poise ask MODEL IMAGE QUESTION`: one answer about one image, from a folder or a Hub repository.

Image, question and tags are looked at before the model is loaded: a slip in them costs no waiting.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from poise.commands.options import check_at_least

if TYPE_CHECKING:
    from PIL.Image import Image

    from poise.processing.tags import Tag


EXAMPLE = 'poise ask outputs/demo/reliability/model photo.jpg "what color is the star ?" --tags "yellow star:0.9"'


# What a saved model, an adapter or the run around one of them holds.
MODEL_FILES = ("config.json", "adapter_config.json", "model/config.json", "model/adapter_config.json")


def check_model_name(name: str) -> None:
    """A folder must hold a model or a run; anything else must at least look like the name of a Hub repository.

    Raises:
        ValueError: neither is so.
    """
    if os.path.isdir(name):
        if not any(os.path.isfile(os.path.join(name, file)) for file in MODEL_FILES):
            raise ValueError(f"model {name!r} is a folder without config.json; name the folder of a saved model")
    elif os.path.exists(name.partition("/")[0] or "/") or name.count("/") > 1 or name.startswith((".", "~")):
        raise ValueError(f"model {name!r} is no folder; name the folder of a saved model or a Hub repository")


def check_question(question: str) -> None:
    """
    Raises:
        ValueError: it is empty, or longer than any text of a record may be.
    """
    from poise.processing.records.task_record import MAX_CHARACTERS

    if not question.strip():
        raise ValueError("QUESTION is empty; write what you want to know about the image")
    if len(question) > MAX_CHARACTERS:
        raise ValueError(f"QUESTION has {len(question):,} characters, more than {MAX_CHARACTERS:,}; cut it")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise ask",
        description="Answer a question about an image.",
        epilog=f"example: {EXAMPLE}",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model or a run, or a Hub repository")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument(
        "--tags", default="", metavar="NAME[:SCORE],...", help="what a tagger saw, scores from 0 to 1 (default 1)"
    )
    parser.add_argument("--tagger", metavar="FOLDER", help="let this dual encoder tag the image (see poise align)")
    parser.add_argument(
        "--task", metavar="NAME", help="vqa, caption or grounding, for a model with task-routed adapters"
    )
    parser.add_argument(
        "--abstain",
        action="store_true",
        help="do not answer about an image that the model's reliability router distrusts, rather than warn",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer (default 64)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda if there is one)")
    return parser


def main(argv: list[str]) -> int:
    """Prints the answer. Returns 0; what can go wrong is raised (see `poise.command_line`)."""
    arguments = build_parser().parse_args(argv)
    from poise.processing.image_loading import open_image
    from poise.processing.tags import parse_tags

    check_question(arguments.question)
    check_at_least(arguments, 1, "max_new_tokens")
    tags = parse_tags(arguments.tags)
    image = open_image(arguments.image)
    check_model_name(arguments.model)
    if arguments.device is not None:
        from poise.model_loading import chosen_device

        chosen_device(arguments.device)
    if arguments.tagger is not None:
        if tags:
            raise ValueError("--tags and --tagger both say what is in the image: give one of them")
        tags = tags_by(arguments.tagger, image)
        print("tags:", ", ".join(f"{name} {score:.2f}" for name, score in tags) or "none")
    settings = (arguments.max_new_tokens, arguments.device, arguments.task, arguments.abstain)
    print(answer(arguments.model, image, arguments.question, tags, *settings))
    return 0


def tags_by(tagger: str, image: "Image") -> "list[Tag]":
    """What the dual encoder of a folder says about an image.

    Raises:
        ValueError: the folder holds no tagger.
    """
    from transformers.utils import logging

    from poise.evaluation.saved_models import loading_errors
    from poise.processing.taggers import DualEncoderTagger

    logging.disable_progress_bar()
    with loading_errors(tagger, "tagger"):
        found = DualEncoderTagger.from_pretrained(tagger)
    return found([image])[0]


def answer(
    model_name: str,
    image: "Image",
    question: str,
    tags: "list[Tag]",
    max_new_tokens: int = 64,
    device: str | None = None,
    task: str | None = None,
    abstain: bool = False,
) -> str:
    """Loads model and processor and generates one answer, greedily; warns of an image that its router distrusts.

    Raises:
        ValueError: torch knows no such device, the model takes no images, or knows no such task.
        OSError: there is no such model within reach.

    model_name (`str`): folder of a model or of a run, or Hub repository.
    tags (`list[Tag]`): names and scores in [0, 1]; may be empty.
    device (`str`, *optional*, defaults to `"cuda"` where there is one, else `"cpu"`).
    task (`str`, *optional*): of a model with task-routed adapters; its first one by default.
    abstain (`bool`, *optional*, defaults to `False`): give no answer where it would warn.
    """
    from transformers.utils import logging

    from poise.evaluation.decoding import without_prompts
    from poise.model_loading import load_model

    logging.disable_progress_bar()
    model, processor = load_model(model_name, device)
    doubt = warning_about(model, processor, image, question, tags)
    if doubt and abstain:
        return f"(no answer: {doubt})"
    if doubt:
        print(f"warning: {doubt}; do not rely on the answer", file=sys.stderr)
    if model.config.model_type != "poise":
        if task is not None:
            raise ValueError(f"--task {task!r}: {type(model).__name__} has no task-routed adapters; leave it out")
        return answer_in_words(model, processor, image, question, tags, max_new_tokens)
    content = [{"type": "image", "image": image, "tags": tags}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content, **({} if task is None else {"task": task})}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # (1, T)
    answers = without_prompts(model, inputs["input_ids"], tokens)  # (1, A)
    return processor.decode(answers[0], skip_special_tokens=True).strip()


def warning_about(model: Any, processor: Any, image: "Image", question: str, tags: "list[Tag]") -> str:
    """What is wrong with an image by the model's own reliability router; empty where nothing is, or there is none."""
    from poise.evaluation.robustness.router_weights import image_trust
    from poise.modeling.image_reliability import DISTRUSTED

    trust = image_trust(model, processor, image, question, tags)
    if trust is None or trust >= DISTRUSTED:
        return ""
    return f"the image is unlike those that the router has seen, trust {trust:.2f} of 1"


def answer_in_words(
    model: Any, processor: Any, image: "Image", question: str, tags: "list[Tag]", max_new_tokens: int
) -> str:
    """The answer of a model that knows no tags: where there are some, the question tells them in words."""
    from poise.evaluation.probing.answers import answer_text, greedy_answers
    from poise.evaluation.probing.parts import model_parts
    from poise.evaluation.probing.prompt_reading import read_prompts

    prompts = read_prompts(model_parts(model), processor, [image], [question], [tags])
    return answer_text(processor, greedy_answers(prompts, max_new_tokens=max_new_tokens)[0])
