"""The text that the tiny language models and the tag encoder are pretrained on: scenes in words, no picture anywhere.

It comes from scenes with prior strength 0.9, so the models come to hold the prior as a language model holds that
bananas are yellow. The mixture, by share of the documents:

* 30 % a question without any context: only the prior can answer it ("question : what color is the square ? answer :
  red");
* 35 % a caption, then a question about it: the skill to read a context, without which no soft prompt would help a
  frozen model. Most of these come from scenes without a prior, as a text that speaks of a green banana means it;
* 15 % tags, then a question: the tags miss and invent as the scenes' tagger does, one in three times with their scores,
  so a tag is evidence here, not the answer;
* 10 % a picture to describe, half of them from tags;
*  5 % a box to say for a referring expression, of which only the form can be learnt;
*  5 % a caption alone.

Three documents in ten are written with tight punctuation ("square?" for "square ?"), since both will be typed.
"""

import re
from collections.abc import Iterator

import numpy as np

from poise.processing.grounding_text import box_to_text
from poise.processing.prompts import Prompts
from poise.processing.scenes import Scenes
from poise.processing.scenes_drawing import IMAGE_SIZE
from poise.processing.scenes_random import random_uniforms, stable_hash

CORPUS_SIZE = 2**30  # scenes are functions of their number, so this costs nothing: no document is seen twice
_SPACE_BEFORE_MARK = re.compile(r" ([?,.:])")
_SHARES = {
    "question": 0.30,
    "read_caption": 0.10,
    "read_news": 0.25,
    "read_tags": 0.15,
    "describe": 0.10,
    "box": 0.05,
    "caption": 0.05,
}


def tags_in_words(tags: list[list], with_scores: bool = False) -> str:
    """ "tags : red square , blue circle ." as the language models know it; "" without tags."""
    names = [f"{name} {score:.2f}" if with_scores else name for name, score in tags]
    return f"tags : {' , '.join(names)} ." if names else ""


def documents(first: int, count: int, seed: int = 0, split: str = "train") -> list[tuple[str, str]]:
    """Documents number `first` and the following as (prompt, answer); a caption alone has an empty prompt."""
    numbers = np.arange(first, first + count)
    u = random_uniforms(stable_hash("corpus", split, seed), numbers, 5)
    kinds = np.array(list(_SHARES))[
        np.searchsorted(np.cumsum(list(_SHARES.values())), u[:, 0], side="right").clip(0, len(_SHARES) - 1)
    ]
    result: list[tuple[str, str]] = [("", "")] * count
    for task, group, prior_strength in (
        ("vqa", ("question", "read_caption", "read_tags"), 0.9),
        ("vqa", ("read_news",), 0.0),
        ("caption", ("describe", "caption"), 0.9),
        ("grounding", ("box",), 0.9),
    ):
        rows = np.flatnonzero(np.isin(kinds, group))
        if not len(rows):
            continue
        scenes = Scenes(split, CORPUS_SIZE, stable_hash("corpus", seed) % 2**31, prior_strength, tasks=[task])
        for row, record in zip(rows.tolist(), scenes.records(numbers[rows], images=False), strict=True):
            prompt, answer = _document(str(kinds[row]), record, u[row, 1:4].tolist())
            result[row] = (tight(prompt), tight(answer)) if u[row, 4] < 0.3 else (prompt, answer)
    return result


def tight(text: str) -> str:
    """Spaces before punctuation left out, as people type: "what color is the square?"."""
    return _SPACE_BEFORE_MARK.sub(r"\1", text)


def _document(kind: str, record: dict, u: list[float]) -> tuple[str, str]:
    """Prompt and answer; `u` chooses scores, caption and context."""
    question = record["question"]
    tags = tags_in_words(record["tags"], with_scores=u[0] < 1 / 3)
    caption = record["captions"][int(u[1] * 4)]
    if kind == "caption":
        return "", caption
    if kind == "describe":
        return prompt_words(question, tags if u[2] < 0.5 else ""), caption
    if kind == "box":
        question = question if u[2] < 0.5 else Prompts().grounding.format(expression=question).lower()
        return prompt_words(question), box_to_text(record["bbox"], IMAGE_SIZE, IMAGE_SIZE)
    answer = record["answers"][0]
    if kind == "question":
        return prompt_words(question), answer
    if kind == "read_tags":
        return prompt_words(question, tags), answer
    # Only the caption with places can answer where something is.
    caption = record["captions"][3] if record["metadata"]["question_type"] == "place" else caption
    return prompt_words(question, f"{caption} ."), answer


def prompt_words(question: str, context: str = "") -> str:
    """What the language models read before they answer: "tags : red square . question : ... answer :"."""
    return f"{context} question : {question} answer :".lstrip()


def batches(size: int, seed: int = 0, pool: int = 8) -> Iterator[list[tuple[str, str]]]:
    """Endless batches of `size` documents, of like length: each pool of batches is sorted, cut and shuffled."""
    generator = np.random.default_rng(seed)
    first = 0
    while True:
        texts = sorted(documents(first, size * pool, seed), key=lambda text: len(text[0]) + len(text[1]))
        first += size * pool
        for part in generator.permutation(pool):
            yield texts[part * size : (part + 1) * size]
