"""A folder that is a Gradio Space: the page, its settings, what it needs, and drawn scenes to try."""

import html
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, RepoCard
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from ..card.backbone_names import hub_id

APP_FILES = ("app.py", "answers.py", "drawing.py")
SETTINGS_FILE = "space.json"
TAGGER_FOLDER, IMAGE_FOLDER = "tagger", "images"  # code of processing/ that the Space needs, and it has no Poise
NEEDED = ("transformers", "torch", "pillow", "huggingface_hub", "safetensors", "numpy")
GRADIO = "6.31.0"  # the version that the page was written against
# What the examples show: caption, degradation of the image, corruption of the tags.
EXAMPLES = (
    ("all sound", None, None),
    ("noise, right tags", "noise", None),
    ("invented tags", None, "tags_invented"),
    ("blank, right tags", "blank", None),
)
SEVERITY = 4
SENTENCE = (
    "A vision-language model with an information router between the image and its tags. "
    "Ask, and see what it says without one of them."
)


def write_space(
    folder: Path, model: str, tagger: str | None = None, title: str | None = None, max_new_tokens: int = 32
) -> list[str]:
    """
    Write a Space; files of an earlier one in the same folder are replaced.

    Args:
        folder: where to.
        model (`str`): Hub id of a published model; or a folder, for a run on this machine.
        tagger (`str`, *optional*): of a dual encoder that `poise align` trained; Hub id or folder.
        title (`str`, *optional*): of the page; the model's name by default.

    Returns:
        `list[str]`: the files, sorted.

    Raises:
        ValueError: model or tagger is neither a folder that holds one nor a name that the Hub could hold; or `folder`
            holds something else.
    """
    check_source(model, "--model", "config.json")
    if tagger is not None:
        check_source(tagger, "--tagger", "tagger.json")
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {max_new_tokens}; it must be at least 1")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"OUT {str(folder)!r} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"OUT {str(folder)!r} holds something that is no Space of poise space: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch)
        _write_files(new, model, tagger, title, max_new_tokens)
        written = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        if tagger is None:
            shutil.rmtree(folder / TAGGER_FOLDER, ignore_errors=True)
        for name in written:  # one by one: a clone of the Space's repository stays one
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / name, folder / name)
    return [name.as_posix() for name in written]


def _write_files(folder: Path, model: str, tagger: str | None, title: str | None, max_new_tokens: int) -> None:
    shown = hub_id(model) or Path(model).resolve().name
    for name in APP_FILES:
        text = (files("poise.hub_cards.space") / name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    write_published_code(folder / IMAGE_FOLDER, "processing", "image_loading")
    write_published_code(folder / IMAGE_FOLDER, "processing.degradations", "image_degradations")
    if tagger is not None:
        write_published_code(folder / TAGGER_FOLDER, "processing", "taggers")
    card = words_of_card(model)
    settings = {
        "model": _absolute(model),
        "shown_model": shown,
        "tagger": None if tagger is None else _absolute(tagger),
        "title": title or card.get("title") or shown.split("/")[-1],
        "sentence": card.get("sentence") or SENTENCE,
        "caution": card.get("caution"),
        "placeholder": "what color is the star ?",
        "max_new_tokens": max_new_tokens,
        "examples": draw_examples(folder),
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(space_card(settings, hub_id(model), hub_id(tagger)), encoding="utf-8")


def check_source(name: str, option: str, needed: str) -> None:
    """
    Raises:
        ValueError: neither a folder with the file `needed`, and without damage, nor `user/name`.
    """
    from ...evaluation.saved_models import check_saved

    if Path(name).is_dir():
        if not (Path(name) / needed).is_file():
            raise ValueError(f"{option} {name!r} is a folder without {needed}: name the folder of a saved model")
        check_saved(name, option)
    elif hub_id(name) is None or name.count("/") != 1:
        raise ValueError(f"{option} {name!r} is no folder and no name of a Hub repository: write user/name")


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def draw_examples(folder: Path) -> list[dict[str, Any]]:
    """Drawn scenes with a question and tags each, as files below `folder`; returns what `space.json` says of them."""
    from ...processing import Scenes
    from ...processing.degradations.degradations import degrade

    # Colours that contradict the prior: the answer has to come from the image or from its tags.
    scenes = Scenes("prior_broken", size=len(EXAMPLES), tasks=("vqa",), question_types=("color",))
    (folder / "examples").mkdir(exist_ok=True)
    examples = []
    for number, (caption, *degradations) in enumerate(EXAMPLES):
        record = scenes[number]
        for name in filter(None, degradations):
            record = degrade(record, name, SEVERITY)
        name = f"examples/scene_{number}.png"
        record["image"].save(folder / name)
        tags = [[tag, round(float(score), 2)] for tag, score in record["tags"]]
        examples.append({"image": name, "caption": caption, "question": record["question"], "tags": tags})
    return examples


def write_published_code(folder: Path, package: str, name: str) -> None:
    """A file of `processing/` and the files beside it that it imports."""
    folder.mkdir(exist_ok=True)
    waiting = [name]
    while waiting:
        name = waiting.pop()
        text = (files(f"poise.{package}") / f"{name}.py").read_text(encoding="utf-8")
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        waiting += re.findall(r"^\s*from \.(\w+) import", text, flags=re.MULTILINE)
    (folder / "__init__.py").write_text('"""Code of Poise, copied so that this Space needs no Poise."""\n')


def words_of_card(model: str) -> dict[str, str]:
    """Title, first sentence and first warning of a model's card; nothing where there is no card to be had."""
    try:
        if Path(model).is_dir():
            text = ModelCard.load(Path(model) / "README.md").text
        else:
            text = ModelCard.load(model).text
    except (OSError, ValueError, HTTPError, OfflineModeIsEnabled):
        return {}
    title = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    body = text[title.end() :] if title else text
    first = re.search(r"^(?![#<\-*`|\s])(.+?)(?:\n\n|\n[#*]|\Z)", body, flags=re.MULTILINE | re.DOTALL)
    caution = re.search(r"^## What it must not be used for\n+\* (.+)$", text, flags=re.MULTILINE)
    found = {"title": title, "sentence": first, "caution": caution}
    return {name: plain(match[1]) for name, match in found.items() if match}


def plain(markdown: str) -> str:
    """A line of a card without its escapes, as the page shows text and no Markdown."""
    return html.unescape(re.sub(r"\\(.)", r"\1", " ".join(markdown.split()))).replace("`", "")[:300]


def requirements() -> list[str]:
    """What the Space installs: the versions that this machine runs with, gradio as the Hub's own field says it."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in NEEDED]


def space_card(settings: dict[str, Any], model: str | None, tagger: str | None) -> str:
    """`README.md`: what the Hub needs to know to run the Space."""
    metadata = {
        "title": settings["title"],
        "emoji": "⚖️",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "pinned": False,
    }
    if models := [name for name in (model, tagger) if name]:
        metadata["models"] = models
    import yaml

    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return str(RepoCard(f"---\n{front}---\n\n# {settings['title']}\n\n{SENTENCE}\n\nRun it here: `python app.py`.\n"))
