"""Pairs from scenes reject what the prior or an invented tag says, never what is right; JSON lines are checked."""

import json

import pytest
from PIL import Image

from poise.processing.scenes.scenes import Scenes
from poise.training.preference.pairs import (
    KINDS,
    PreferenceRecords,
    ScenePairs,
    prior_rejection,
    tag_rejection,
    with_tag,
)


def scene_pairs(kinds=KINDS, size=200, **settings):
    return ScenePairs(Scenes("train", size=size, seed=3, tasks=("vqa",), **settings), kinds)


def test_the_rejected_answer_follows_the_prior_or_an_invented_tag():
    pairs = scene_pairs(prior_strength=0.5)
    seen = set()
    for index in range(len(pairs)):
        pair = pairs[index]
        metadata = pair["metadata"]
        seen.add((metadata["rejected_for"], metadata["question_type"]))
        assert pair["chosen"] == pair["answers"][0] != pair["rejected"]
        true = {f"{item['color']} {item['shape']}" for item in metadata["objects"]}
        if metadata["rejected_for"] == "prior":
            assert pair["rejected"] == metadata["prior_answer"]
        else:
            names = [name for name, _ in pair["tags"]]
            assert metadata["misleading_tag"] in names and metadata["misleading_tag"] not in true
            suggested = metadata["misleading_tag"].split()
            assert pair["rejected"] in suggested or (pair["rejected"], metadata["question_type"]) == ("yes", "presence")
            assert [score for _, score in pair["tags"]] == sorted((s for _, s in pair["tags"]), reverse=True)
    assert seen == {("prior", "color"), ("prior", "shape"), ("tag", "color"), ("tag", "shape"), ("tag", "presence")}


def test_where_the_prior_is_right_only_a_tag_misleads():
    right = scene_pairs(prior_strength=1.0, question_types=("color",))
    assert {kind for _, kind in right.pairs} == {"tag"}
    assert all(right[i]["chosen"] == right[i]["metadata"]["prior_answer"] != right[i]["rejected"] for i in range(20))
    with pytest.raises(ValueError, match="prior_strength below 1"):
        scene_pairs(("prior",), prior_strength=1.0, question_types=("color",))


def test_pairs_are_a_function_of_scene_and_seed():
    first, again = scene_pairs(prior_strength=0.5), scene_pairs(prior_strength=0.5)
    assert first.pairs == again.pairs
    assert first[3]["tags"] == again[3]["tags"] and first[3]["rejected"] == again[3]["rejected"]
    other = ScenePairs(first.scenes, KINDS, seed=1)
    assert other.pairs != first.pairs


def test_an_invented_tag_that_is_there_keeps_its_score():
    tags = [["red square", 0.9], ["blue star", 0.2]]
    assert with_tag(tags, "blue star", 0.8) == tags
    assert with_tag(tags, "green cross", 0.5) == [["red square", 0.9], ["green cross", 0.5], ["blue star", 0.2]]
    assert tags == [["red square", 0.9], ["blue star", 0.2]]


@pytest.mark.parametrize("kinds", [["priors"], [], "prior"])
def test_unknown_kinds_are_refused(kinds):
    with pytest.raises(ValueError, match="prior, tag"):
        scene_pairs(kinds)


def test_json_lines_of_pairs(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "question": "what color ?", "chosen": "red", "rejected": "blue", "tags": [["red", 0.9]]},
        {"question": "why ?", "chosen": "because", "rejected": "no"},
        {"image": "a.png", "task": "caption", "chosen": "a red square", "rejected": "a blue square"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    pairs = PreferenceRecords(str(tmp_path / "pairs.jsonl"))
    assert len(pairs) == 3
    assert pairs[0]["image"].size == (8, 8) and pairs[0]["tags"][0].name == "red"
    assert (pairs[1]["image"], pairs[1]["chosen"], pairs[1]["rejected"]) == (None, "because", "no")
    assert pairs[2]["captions"] == ["a red square"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "why ?", "chosen": "a"}, "line 1, field 'rejected'"),
        ({"question": "why ?", "chosen": " ", "rejected": "b"}, "field 'chosen'"),
        ({"question": "why ?", "chosen": "a", "rejected": "a "}, "nothing to prefer"),
        ({"chosen": "a", "rejected": "b"}, "field 'question'"),
        ({"question": "the dog", "task": "grounding", "chosen": "a", "rejected": "b"}, "'grounding'"),
        ({"question": "why ?", "chosen": "a", "rejected": "b", "image": "nowhere.png"}, "field 'image'"),
        ({"question": "why ?", "chosen": "a", "rejected": "b", "tags": [["dog", 2.0]]}, "[0, 1]"),
        (["a"], "not an object"),
    ],
)
def test_a_bad_line_names_line_and_field(tmp_path, row, message):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError) as caught:
        PreferenceRecords(str(tmp_path / "pairs.jsonl"))
    assert message in str(caught.value) and "line 1" in str(caught.value) and "\n" not in str(caught.value)


def test_a_right_answer_is_never_rejected():
    def record(answer, question_type="color"):
        metadata = {"prior_answer": "red", "misleading_tag": "red square", "question_type": question_type}
        return {"answers": [answer], "metadata": metadata}

    assert prior_rejection(record("blue")) == tag_rejection(record("blue")) == "red"
    assert prior_rejection(record("red")) is None and tag_rejection(record("red")) is None
    assert tag_rejection(record("square", "shape")) is None and tag_rejection(record("star", "shape")) == "square"
    assert tag_rejection(record("no", "presence")) == "yes" and tag_rejection(record("yes", "presence")) is None
    nothing = record("blue")
    nothing["metadata"]["prior_answer"] = None
    assert prior_rejection(nothing) is None
