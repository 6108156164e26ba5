"""The text that the tiny language models are pretrained on: scenes in words, no image anywhere.

The mixture, by share of the documents:

* 20 % a question without any context: only the prior can answer it ("question : what color is the square ? answer :
  red"). These come from scenes with prior strength 0.9, so the models come to hold the prior as a language model holds
  that bananas are yellow;
* 35 % a caption, then up to four questions about it: the skill to read a context, without which no soft prompt would
  help a frozen model. Three of four of these come from scenes without a prior, as a text that speaks of a green banana
  means it;
* 18 % a caption of a scene without a prior, then the same again in other words: object by object ("the square is red",
  "the red thing is a square") and as another caption;
* 16 % tags, then up to three questions, half of them from scenes without a prior: the tags miss and invent as the
  scenes' tagger does, one in three times with their scores, so a tag is evidence here, not the answer;
*  5 % an image to describe, half of them from tags;
*  3 % a box to say for a referring expression, of which only the form can be learnt;
*  3 % a caption alone.

Three documents in ten are written with tight punctuation ("square?" for "square ?"), since both will be typed.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from ...processing.degradations.stateless_random import random_ranks, random_uniforms, stable_hash
from ...processing.grounding_text import box_to_text
from ...processing.prompts import Prompts
from ...processing.scenes.drawing import IMAGE_SIZE
from ...processing.scenes.layout import COLORS, SHAPES
from ...processing.scenes.scenes import Scenes
from ...processing.scenes.text import question_text

CORPUS_SIZE = 2**30  # scenes are functions of their number, so this costs nothing: no document is seen twice
END = "</s>"
POOL = 8  # batches that are sorted together
_SPACE_BEFORE_MARK = re.compile(r" ([?,.:])")

# Kind of document: its share, the task and the prior strength of its scenes.
_KINDS = {
    "question": (0.20, "vqa", 0.9),
    "read": (0.08, "caption", 0.9),
    "read_news": (0.27, "caption", 0.0),
    "retell_news": (0.18, "caption", 0.0),
    "tags": (0.07, "caption", 0.9),
    "tags_news": (0.09, "caption", 0.0),
    "describe": (0.05, "caption", 0.9),
    "box": (0.03, "grounding", 0.9),
    "caption": (0.03, "caption", 0.9),
}

#: A document in pieces, in order: its words, and whether they are for the model to say (they weigh more in training).
Document = list[tuple[str, bool]]


def tags_in_words(tags: list[list], with_scores: bool = False) -> str:
    """ "tags : red square , blue circle ." as the language models know it; "" without tags."""
    names = [f"{name} {score:.2f}" if with_scores else name for name, score in tags]
    return f"tags : {' , '.join(names)} ." if names else ""


def prompt_words(question: str, context: str = "") -> str:
    """What the language models read before they answer: "tags : red square . question : ... answer :"."""
    return f"{context} question : {question} answer :".lstrip()


def tight(text: str) -> str:
    """Spaces before punctuation left out, as people type: "what color is the square?"."""
    return _SPACE_BEFORE_MARK.sub(r"\1", text)


def documents(first: int, count: int, seed: int = 0) -> list[Document]:
    """Documents number `first` to `first + count - 1` of the corpus `seed`."""
    numbers = np.arange(first, first + count)
    key = stable_hash("corpus", seed)
    u = random_uniforms(key, numbers, 5)
    order = random_ranks(stable_hash(key, "order"), numbers, 8).tolist()
    names, bounds = list(_KINDS), np.cumsum([share for share, _, _ in _KINDS.values()])
    kinds = np.searchsorted(bounds, u[:, 0], side="right").clip(0, len(names) - 1)
    result: list[Document] = [[] for _ in range(count)]
    for number, name in enumerate(names):
        _, task, prior_strength = _KINDS[name]
        rows = np.flatnonzero(kinds == number)
        scenes = Scenes("train", CORPUS_SIZE, key % 2**31, prior_strength, tasks=[task])
        for row, record in zip(rows.tolist(), scenes.records(numbers[rows], images=False), strict=True):
            document = _document(name, record, u[row, 1:4].tolist(), order[row])
            if u[row, 4] < 0.3:
                document = [(tight(words), said) for words, said in document]
            result[row] = document
    return result


def _document(kind: str, record: dict, u: list[float], order: list[int]) -> Document:
    """One document; `u` chooses scores, caption and context, `order` (a permutation of 0..7) captions and questions."""
    caption = record["captions"][order[0] % 4]
    if kind == "caption":
        return [(caption + END, True)]
    if kind == "question":
        return [(prompt_words(record["question"]), False), (record["answers"][0] + END, True)]
    if kind == "box":
        question = record["question"]
        question = question if u[2] < 0.5 else Prompts().grounding.format(expression=question).lower()
        box = box_to_text(record["bbox"], IMAGE_SIZE, IMAGE_SIZE)
        return [(prompt_words(question), False), (box + END, True)]
    if kind == "retell_news":
        told = [record["captions"][order[0] % 4], *statements_about(record, order), record["captions"][order[1] % 4]]
        return [(words + (" ." if place < len(told) - 1 else END), True) for place, words in enumerate(told)]
    tags = tags_in_words(record["tags"], with_scores=u[0] < 1 / 3)
    if kind == "describe":
        return [(prompt_words(record["question"], tags if u[2] < 0.5 else ""), False), (caption + END, True)]
    reads_tags = kind.startswith("tags")
    turns = questions_about(record, u[1])
    # Only the caption with places can answer where something is.
    turns = [turn for turn in turns if order[0] % 4 == 3 and not reads_tags or not turn[0].startswith("where")]
    turns = [turns[turn] for turn in order if turn < len(turns)][: 3 if reads_tags else 4]
    document = [(tags if reads_tags else f"{caption} .", False)]
    for question, answer in turns:
        document += [(prompt_words(question), False), (answer + END, True)]
    return [piece for piece in document if piece[0]]


def statements_about(record: dict, order: list[int]) -> list[str]:
    """What is true of single objects, in the order of a permutation of 0..7, so that no place in a caption tells it."""
    objects = record["metadata"]["objects"]
    shapes, colors = (Counter(item[kind] for item in objects) for kind in ("shape", "color"))
    statements = [f"the {item['shape']} is {item['color']}" for item in objects if shapes[item["shape"]] == 1]
    statements += [f"the {item['color']} thing is a {item['shape']}" for item in objects if colors[item["color"]] == 1]
    return [statements[number] for number in order if number < len(statements)]


def questions_about(record: dict, u: float) -> list[tuple[str, str]]:
    """Questions that a scene's objects answer, with their answers: at most eight; `u` in [0, 1) chooses some words."""
    objects = record["metadata"]["objects"]
    shapes, colors = (Counter(item[kind] for item in objects) for kind in ("shape", "color"))
    pairs = Counter((item["color"], item["shape"]) for item in objects)
    chosen = objects[int(u * len(objects))]
    found = [
        (question_text("color", item["shape"], None), item["color"]) for item in objects if shapes[item["shape"]] == 1
    ][:3]
    found += [
        (question_text("shape", None, item["color"]), item["shape"]) for item in objects if colors[item["color"]] == 1
    ][:2]
    if pairs[chosen["color"], chosen["shape"]] == 1:
        found.append((question_text("place", chosen["shape"], chosen["color"]), chosen["place"]))
    # Half of the counted shapes and of the pairs asked for are there; an absent pair mixes two of the scene's words.
    turn = int(u * 997)
    counted = chosen["shape"] if turn % 2 else SHAPES[turn % 8]
    found.append((question_text("count", counted, None), str(shapes[counted])))
    color, shape = chosen["color"], objects[turn % len(objects)]["shape"]
    if turn % 4 == 0:
        color, shape = COLORS[turn // 4 % 8], SHAPES[turn // 32 % 8]
    found.append((question_text("presence", shape, color), "yes" if pairs[color, shape] else "no"))
    return found


def batches(size: int, seed: int = 0) -> Iterator[list[Document]]:
    """Endless batches of `size` documents, of like length: each pool of batches is sorted, cut and shuffled."""
    generator = np.random.default_rng(seed)
    first = 0
    while True:
        texts = documents(first, size * POOL, seed)
        texts.sort(key=lambda document: sum(len(words) for words, _ in document))
        first += size * POOL
        for part in generator.permutation(POOL):
            yield texts[part * size : (part + 1) * size]
