"""Answers, boxes and captions are derived again from the objects, independently of the code that wrote them."""

import re

import numpy as np
import pytest

from poise.processing.scenes import layout as scenes_layout
from poise.processing.scenes.drawing import draw_images, object_boxes
from poise.processing.scenes.layout import COLORS, PRIOR_COLOR_OF_SHAPE, QUESTION_TYPES, SHAPES, SPLITS
from poise.processing.scenes.scenes import Scenes

COUNT = 1500


def singular(word: str) -> str:
    return "cross" if word == "crosses" else word.removesuffix("s") if word != "cross" else word


def possible_answers(question: str, objects: list[dict]) -> set[str]:
    """Every answer that some reading of the question allows."""
    words = question.removesuffix(" ?").split()
    if question.startswith("what color"):
        return {o["color"] for o in objects if o["shape"] == words[-1]}
    if question.startswith("what shape"):
        return {o["shape"] for o in objects if o["color"] == words[-2]}
    if question.startswith("how many"):
        return {str(sum(o["shape"] == singular(words[2]) for o in objects))}
    if question.startswith("where is"):
        return {o["place"] for o in objects if (o["color"], o["shape"]) == (words[-2], words[-1])}
    assert question.startswith(("is there a ", "is there an "))
    return {"yes" if any((o["color"], o["shape"]) == (words[-2], words[-1]) for o in objects) else "no"}


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_exactly_one_answer_and_it_is_given(split):
    records = Scenes(split, size=COUNT, tasks=["vqa"]).records(range(COUNT), images=False)
    for record in records:
        assert possible_answers(record["question"], record["metadata"]["objects"]) == set(record["answers"])
    assert {record["metadata"]["question_type"] for record in records} == set(QUESTION_TYPES)


def test_prior_answers():
    shape_of = {color: shape for shape, color in PRIOR_COLOR_OF_SHAPE.items()}
    for record in Scenes("prior_broken", size=400, tasks=["vqa"]).records(range(400), images=False):
        words, prior = record["question"].split(), record["metadata"]["prior_answer"]
        kind = record["metadata"]["question_type"]
        assert prior == {"color": PRIOR_COLOR_OF_SHAPE.get(words[-2]), "shape": shape_of.get(words[-3])}.get(kind)
        assert prior not in record["answers"]


def test_targets():
    for record in Scenes(size=600).records(range(600), images=False):
        metadata = record["metadata"]
        target = None if metadata["target"] is None else metadata["objects"][metadata["target"]]
        if record["task"] == "grounding":
            assert record["bbox"] == target["bbox"]
        elif record["task"] == "caption":
            assert target is None
        elif metadata["question_type"] in ("color", "shape", "place"):
            assert record["answers"] == [target[metadata["question_type"]]]
        elif record["answers"][0] in ("no", "0"):
            assert target is None


def test_referring_expressions_mean_one_object():
    for record in Scenes("prior_broken", size=600, tasks=["grounding"]).records(range(600), images=False):
        match = re.fullmatch(r"the (.+?)(?: (?:at|on|in) the (.+))?", record["question"])
        words, place = match[1].split(), match[2]
        meant = [
            item
            for item in record["metadata"]["objects"]
            if (words[-1] in ("thing", item["shape"]))
            and (len(words) == 1 or words[0] == item["color"])
            and place in (None, item["place"])
        ]
        assert [item["bbox"] for item in meant] == [record["bbox"]]


def test_captions_name_exactly_the_objects():
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
    pattern = re.compile(rf"\b({'|'.join(numbers)}) ({'|'.join(COLORS)}) (\w+)")
    for record in Scenes("prior_broken", size=400, tasks=["caption"]).records(range(400), images=False):
        assert len(record["captions"]) == 4
        expected = sorted((item["color"], item["shape"]) for item in record["metadata"]["objects"])
        for caption in record["captions"]:
            named = [[(color, singular(shape))] * numbers[n] for n, color, shape in pattern.findall(caption)]
            assert sorted(pair for pairs in named for pair in pairs) == expected


def test_boxes_fit_the_drawn_pixels():
    """The difference to the same scene without its objects shows where they are."""
    scenes = Scenes("prior_broken", size=200)
    layout = scenes.layout(range(200))
    boxes, drawn = object_boxes(scenes.key, layout), draw_images(scenes.key, layout).astype(int)
    empty = scenes.layout(range(200))
    empty.shape[:] = -1
    changed = np.abs(drawn - draw_images(scenes.key, empty)).max(axis=-1)  # (B, 48, 48)
    for row in range(200):
        outside = changed[row].copy()
        for slot in range(layout.num_objects[row]):
            x, y, width, height = boxes[row, slot]
            assert 0 <= x and x + width <= 48 and 0 <= y and y + height <= 48
            inside = changed[row, y : y + height, x : x + width] > 20
            ys, xs = np.nonzero(inside)
            # Every side of the box touches the object, up to a pixel that is half covered by a pale colour.
            assert xs.min() <= 1 and ys.min() <= 1 and xs.max() >= width - 2 and ys.max() >= height - 2
            outside[y : y + height, x : x + width] = 0
        assert outside.max() <= 130  # only rims that are covered by less than a half are left outside


def test_prior_statistics():
    for strength in (0.0, 0.5, 0.9, 1.0):
        layout = Scenes(size=4000, prior_strength=strength, tasks=["vqa"], question_types=["color"]).layout(range(4000))
        prior = np.array([COLORS.index(PRIOR_COLOR_OF_SHAPE[shape]) for shape in SHAPES])
        share = (layout.color[:, 0] == prior[layout.shape[:, 0]]).mean()
        expected = strength + (1 - strength) / 8
        assert abs(share - expected) < 4 * np.sqrt(0.25 / 4000)
        assert np.bincount(layout.shape[:, 0], minlength=8).min() > 400
    broken = Scenes("prior_broken", size=4000).layout(range(4000))
    there = broken.shape >= 0
    assert (broken.color[there] != prior[broken.shape[there]]).all()


def test_words_alone_do_not_answer_presence_and_count():
    records = Scenes(size=6000, tasks=["vqa"], question_types=["presence"]).records(range(6000), images=False)
    usual = [PRIOR_COLOR_OF_SHAPE[r["question"].split()[-2]] == r["question"].split()[-3] for r in records]
    yes = np.array([record["answers"] == ["yes"] for record in records])
    assert abs(yes.mean() - 0.5) < 0.03
    assert abs(yes[np.array(usual)].mean() - 0.5) < 0.03
    records = Scenes(size=3000, tasks=["vqa"], question_types=["count"]).records(range(3000), images=False)
    counts = np.bincount([int(record["answers"][0]) for record in records], minlength=5)
    assert len(counts) == 5 and counts.min() > 500


def test_objects_lie_in_distinct_cells_and_reading_order_hides_the_target():
    records = Scenes(size=2000, tasks=["grounding"]).records(range(2000), images=False)
    for record in records:
        cells = [item["cell"] for item in record["metadata"]["objects"]]
        assert cells == sorted(set(cells)) and 1 <= len(cells) <= 4
    first = np.mean([r["metadata"]["target"] == 0 for r in records if len(r["metadata"]["objects"]) == 4])
    assert 0.15 < first < 0.35


@pytest.mark.parametrize("candidates", [1, 8])
@pytest.mark.parametrize("kind", ["color", "shape", "place"])
def test_questions_stay_unambiguous_where_candidates_fail(monkeypatch, kind, candidates):
    """With one candidate an object the fallback is needed in one scene of three, with eight practically never."""
    monkeypatch.setattr(scenes_layout, "_CANDIDATES", candidates)
    prior = np.array([COLORS.index(PRIOR_COLOR_OF_SHAPE[shape]) for shape in SHAPES])
    for split in ("train", "prior_broken"):
        layout = Scenes(split, size=5000, prior_strength=1.0, tasks=["vqa"], question_types=[kind]).layout(range(5000))
        same = {"color": layout.shape, "shape": layout.color, "place": layout.shape * 8 + layout.color}[kind]
        there = layout.shape >= 0
        assert not ((same[:, 1:] == same[:, :1]) & there[:, 1:]).any()
        if split == "prior_broken":
            assert (layout.color[there] != prior[layout.shape[there]]).all()
