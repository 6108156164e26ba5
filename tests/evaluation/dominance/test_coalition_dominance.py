"""Coalitions: what is asked, what is counted, and that an interrupted run goes on."""

import pytest
import torch
from small_vlms import object_records, small_vlm

from poise.evaluation.dominance import coalitions as coalition_dominance
from poise.evaluation.dominance.coalitions import CoalitionDominance, players_of
from poise.evaluation.probing.answers import answer_log_probabilities, answer_texts, answer_token_ids, greedy_answers
from poise.evaluation.probing.mean_tokens import mean_tokens
from poise.evaluation.probing.prompt_reading import read_prompts
from poise.evaluation.sample_donors import SwappableRecords

pytestmark = pytest.mark.numerics


def records_of(count=4):
    records = object_records(count)
    for record, answer in zip(records, ("red", "dog", "blue", "cat", "yes"), strict=False):
        record["answers"] = [answer]
    return records


@pytest.mark.parametrize("kind", ["llama", "t5", "llava"])
def test_answers_are_those_of_prompts_made_by_hand(kind, tmp_path):
    vlm, records = small_vlm(kind), records_of()
    evaluator = CoalitionDominance(progress=False, batch_size=3, max_new_tokens=3, output_dir=tmp_path)
    found = evaluator(vlm.model, vlm.processor, records)
    players = players_of(vlm.parts, with_tags=True)
    assert players == ("image", "tags", "question")
    assert players_of(vlm.parts) == (("image", "question") if kind == "llava" else players)  # words, if they are told
    names = {key.removeprefix("swap_accuracy_") for key in found if key.startswith("swap_accuracy_")}
    assert {"none", "image", "question"} <= names and len(
        [n for n in names if "value" in n and "_l" not in n and "_h" not in n]
    ) == len(players)

    import json

    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())}
    means = mean_tokens(vlm.model, vlm.processor, records, progress=False)
    for record in SwappableRecords(records):
        row, donors = rows[record["id"]], record["donors"]
        target = answer_token_ids(vlm.parts, vlm.processor, [record], [record["answers"][0]])
        own = read_prompts(vlm.parts, vlm.processor, [record["image"]], [record["question"]], [record["tags"]])
        swapped = read_prompts(vlm.parts, vlm.processor, [donors["image"]], [record["question"]], [record["tags"]])
        rest = "+".join(name for name in players if name != "image")
        with torch.no_grad():
            expected = {
                "+".join(players): (own, ()),
                f"swap:{rest}": (swapped, ()),
                f"mean:{rest}": (own, means.without(own, ["image"])),
            }
            for name, (prompts, changes) in expected.items():
                assert row["said"][name] == answer_texts(vlm.processor, greedy_answers(prompts, changes, 3))[0]
                likelihood = answer_log_probabilities(prompts, target, changes)
                assert row["log_likelihood"][name] == pytest.approx(float(likelihood), abs=1e-3)


def test_everything_minus_nothing_is_shared_out():
    vlm = small_vlm("llama")
    found = CoalitionDominance(progress=False, max_new_tokens=3)(vlm.model, vlm.processor, records_of())
    for baseline in ("mean", "swap"):
        for measure in ("accuracy", "log_likelihood"):
            values = [found[f"{baseline}_{measure}_value_{name}"] for name in ("image", "tags", "question")]
            difference = found[measure] - found[f"{baseline}_{measure}_none"]
            assert sum(values) == pytest.approx(difference, abs=1e-6)
            shares = [found.get(f"{baseline}_{measure}_share_{name}") for name in ("image", "tags", "question")]
            assert (difference > 0) == (None not in shares)
            if difference > 0:
                assert sum(shares) == pytest.approx(1)


def test_a_model_that_reads_the_image_alone_is_found_out(monkeypatch):
    """A stand-in that answers what is written on the first pixel."""
    vlm, records = small_vlm("llama"), records_of(5)
    names = {record["image"].getpixel((0, 0)): record["answers"][0] for record in records}

    def read(parts, processor, images, questions, tags):
        return [names[image.getpixel((0, 0))] for image in images]

    monkeypatch.setattr(coalition_dominance, "read_prompts", read)
    monkeypatch.setattr(coalition_dominance, "greedy_answers", lambda prompts, *rest: prompts)
    monkeypatch.setattr(coalition_dominance, "answer_texts", lambda processor, answers: answers)
    monkeypatch.setattr(
        coalition_dominance, "answer_log_probabilities", lambda prompts, *rest: torch.zeros(len(prompts))
    )
    evaluator = CoalitionDominance(baselines=["swap"], progress=False)
    found = evaluator(vlm.model, vlm.processor, records)
    assert found["accuracy"] == 1 and found["swap_accuracy_share_image"] == 1
    assert found["swap_accuracy_value_tags"] == found["swap_accuracy_value_question"] == 0
    assert found["swap_accuracy_tags+question"] == 0 and evaluator.primary_metric in found
    assert "swap_log_likelihood_share_image" not in found  # nothing to share


def test_conflicts_with_the_prior(monkeypatch):
    vlm, records = small_vlm("llama"), records_of(4)
    for record, prior in zip(records, ("blue", "dog", "red", None), strict=True):
        record["metadata"]["prior_answer"] = prior
    said = iter(["red", "dog", "red", "cat"])
    texts = {record["id"]: next(said) for record in records}
    ids = {record["question"] + str(record["image"].getpixel((0, 0))): record["id"] for record in records}
    monkeypatch.setattr(
        coalition_dominance,
        "read_prompts",
        lambda parts, processor, images, questions, tags: [
            texts.get(ids.get(q + str(i.getpixel((0, 0)))), "") for q, i in zip(questions, images, strict=True)
        ],
    )
    monkeypatch.setattr(coalition_dominance, "greedy_answers", lambda prompts, *rest: prompts)
    monkeypatch.setattr(coalition_dominance, "answer_texts", lambda processor, answers: answers)
    monkeypatch.setattr(
        coalition_dominance, "answer_log_probabilities", lambda prompts, *rest: torch.zeros(len(prompts))
    )
    found = CoalitionDominance(baselines=["swap"], progress=False)(vlm.model, vlm.processor, records)
    # Of four: one without a prior, one where the prior is right; "red" is right, and "red" follows the prior.
    assert found["conflict_samples"] == 2 and found["conflict_accuracy"] == 0.5 and found["conflict_prior"] == 0.5


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    vlm, records = small_vlm("llama"), records_of(4)
    whole = CoalitionDominance(progress=False, max_new_tokens=2, batch_size=2)(vlm.model, vlm.processor, records)
    plain, asked = CoalitionDominance.predict, []

    def fails_on_second(self, model, processor, records, rows):
        asked.append([record["id"] for record in records])
        if len(asked) == 2:
            raise KeyboardInterrupt
        plain(self, model, processor, records, rows)

    monkeypatch.setattr(CoalitionDominance, "predict", fails_on_second)
    with pytest.raises(KeyboardInterrupt):
        CoalitionDominance(progress=False, max_new_tokens=2, batch_size=2, output_dir=tmp_path)(
            vlm.model, vlm.processor, records
        )
    again = CoalitionDominance(progress=False, max_new_tokens=2, batch_size=2, output_dir=tmp_path)
    assert again(vlm.model, vlm.processor, records) == pytest.approx(whole)
    assert asked == [["r0", "r1"], ["r2", "r3"], ["r2", "r3"]]


def test_donors_are_others_and_stay_the_same():
    records = object_records(5)
    first, second = SwappableRecords(records), SwappableRecords(list(records))
    for index in range(5):
        donors = first[index]["donors"]
        assert donors == second[index]["donors"]
        assert donors["image"] is not records[index]["image"]
    assert any(
        first[i]["donors"]["image"] is not SwappableRecords(records, seed=1)[i]["donors"]["image"] for i in range(5)
    )


@pytest.mark.parametrize(
    ("arguments", "records", "text"),
    [
        ({"baselines": ["zero"]}, None, "baselines holds 'zero': choose among mean, swap"),
        ({"baselines": []}, None, "baselines is empty"),
        ({}, 1, "records holds 1 sample, but swapping needs another one"),
        ({}, 0, "records holds nothing for coalitions"),
    ],
)
def test_bad_input(arguments, records, text):
    vlm = small_vlm("llama")
    with pytest.raises(ValueError, match=text):
        CoalitionDominance(progress=False, **arguments)(vlm.model, vlm.processor, object_records(records or 0))


def test_missing_answers_are_named():
    vlm, records = small_vlm("llama"), records_of(2)
    records[1]["answers"] = []
    with pytest.raises(ValueError, match="record 'r1' has no answers, so nothing to score against"):
        CoalitionDominance(baselines=["swap"], progress=False)(vlm.model, vlm.processor, records)
