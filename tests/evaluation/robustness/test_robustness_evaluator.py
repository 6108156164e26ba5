"""Robustness: scores by hand, resuming, streams, and what is refused."""

import json

import numpy as np
import pytest
from small_vlms import object_records, small_vlm

from poise.evaluation.evaluator import Evaluator
from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.evaluation.robustness.evaluator import RobustnessEvaluator
from poise.evaluation.robustness.report import robustness_table

pytestmark = pytest.mark.numerics

FEW = {"degradations": ["blur", "tags_removed", "typos"], "severities": [1, 3], "progress": False}


def rows_by_hand(**right):
    """Rows of three samples; `right` says by cell which of them are answered right."""
    rows = []
    for cell, answers in {"clean_0": "111", **right}.items():
        name, severity = cell.rsplit("_", 1)
        for number, is_right in enumerate(answers):
            rows.append(
                {
                    "id": f"{number} {name} {severity}", "task": "vqa", "answers": ["red"], "question": "?",
                    "prediction": "red" if is_right == "1" else "blue", "group": number, "source": str(number),
                    "degradation": name, "severity": int(severity),
                }
            )  # fmt: skip
    return rows


def test_scores_by_hand():
    evaluator = RobustnessEvaluator(degradations=["blur", "typos"], severities=[1, 2], progress=False)
    rows = rows_by_hand(clean_0="110", blur_1="100", blur_2="000", typos_1="110", typos_2="011")
    found = evaluator.score(rows)
    assert found["clean"] == pytest.approx(2 / 3) and found["samples"] == 3
    assert found["blur_1"] == pytest.approx(1 / 3) and found["blur_1_relative"] == pytest.approx(1 / 2)
    assert found["blur_2"] == 0 and found["blur_2_relative"] == 0
    # Trapezoids between severities 0, 1 and 2, as a share of the width 2.
    area = ((2 / 3 + 1 / 3) / 2 + (1 / 3 + 0) / 2) / 2
    assert found["blur_area"] == pytest.approx(area) and found["blur_area_relative"] == pytest.approx(area / (2 / 3))
    assert found["image_area"] == pytest.approx(area) and "tags_area" not in found
    typos = ((2 / 3 + 2 / 3) / 2 + (2 / 3 + 2 / 3) / 2) / 2
    assert found["question_area"] == pytest.approx(typos) and found["area"] == pytest.approx((area + typos) / 2)
    assert found["blur_area_low"] <= area <= found["blur_area_high"]
    assert [row["scores"]["accuracy"] for row in rows[:3]] == [1, 1, 0]
    lines = robustness_table(found, ["blur", "typos"], [1, 2]).splitlines()
    assert lines[0].startswith("clean 0.667") and "3 samples" in lines[0]
    assert lines[3].split()[:6] == ["image", "blur", "0.333", "50%", "0.000", "0%"]
    assert lines[3].split()[-1] == f"{area / (2 / 3):.0%}"


def test_relative_to_nothing():
    """With no right answer there is no share of it, and no interval where a resample may have none."""
    evaluator = RobustnessEvaluator(degradations=["blur"], severities=[1], progress=False)
    found = evaluator.score(rows_by_hand(clean_0="000", blur_1="100"))
    assert found["blur_1"] > 0 and "blur_1_relative" not in found and "blur_area_relative" not in found
    assert robustness_table(found, ["blur"], [1]).startswith("nothing is right with nothing degraded, so this says")
    found = evaluator.score(rows_by_hand(clean_0="100", blur_1="100"))
    assert found["blur_1_relative"] == 1 and "blur_1_relative_low" not in found
    assert robustness_table(found, ["blur"], [1]).startswith("clean 0.333")
    assert all(np.isfinite(value) for value in found.values())


def test_samples_that_cannot_be_degraded_are_not_compared():
    """Sample 2 has no tags: it counts as clean, but not where tags are removed."""
    evaluator = RobustnessEvaluator(degradations=["tags_removed"], severities=[1], progress=False)
    found = evaluator.score(rows_by_hand(clean_0="110", tags_removed_1="10"))
    assert found["clean"] == pytest.approx(2 / 3)
    assert found["tags_removed_1"] == 0.5 and found["tags_removed_1_relative"] == 0.5


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_models_run_and_go_on_where_they_stopped(kind, tmp_path, monkeypatch):
    vlm, records = small_vlm(kind), object_records(4)
    options = {**FEW, "batch_size": 8, "max_new_tokens": 3}
    whole = RobustnessEvaluator(**options)(vlm.model, vlm.processor, records)
    assert whole["samples"] == 4 and {"area", "image_area", "tags_area", "question_area"} <= set(whole)
    plain, batches = RobustnessEvaluator.predict, []

    def fails_on_third(self, model, processor, records, rows):
        batches.append([row["id"] for row in rows])
        if len(batches) == 3:
            raise KeyboardInterrupt
        plain(self, model, processor, records, rows)

    monkeypatch.setattr(RobustnessEvaluator, "predict", fails_on_third)
    with pytest.raises(KeyboardInterrupt):
        RobustnessEvaluator(**options, output_dir=tmp_path)(vlm.model, vlm.processor, records)
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 16
    again = RobustnessEvaluator(**options, output_dir=tmp_path)(vlm.model, vlm.processor, iter(records))
    assert again == pytest.approx(whole) and batches[3] == batches[2]
    asked = [name for batch in (*batches[:2], *batches[3:]) for name in batch]
    assert len(asked) == len(set(asked)) == 4 * 7 - 2  # the third record has no tags to remove
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert all({"prediction", "degradation", "severity", "source", "scores"} <= set(row) for row in rows)
    with pytest.raises(ValueError, match="holds predictions made with degradation_seed=0, now it is 1"):
        RobustnessEvaluator(**options, degradation_seed=1, output_dir=tmp_path)(vlm.model, vlm.processor, records)


def test_what_says_nothing_new_is_asked_once(monkeypatch):
    """A sample's tags are either gone or not: two prompts in six cells."""
    vlm, asked = small_vlm("llama"), []
    plain = GenerationEvaluator.predict

    def count(self, model, processor, records, rows):
        asked.extend(record["id"] for record in records)
        plain(self, model, processor, records, rows)

    monkeypatch.setattr(GenerationEvaluator, "predict", count)
    options = {"degradations": ["tags_removed"], "progress": False, "max_new_tokens": 3}
    for batch_size in (2, 64):
        asked.clear()
        evaluator = RobustnessEvaluator(batch_size=batch_size, **options)
        found = evaluator(vlm.model, vlm.processor, object_records(5))
        assert found["samples"] == 5
        assert len(asked) == 5 + 4  # each clean, and once without tags; one has none to remove
        again = evaluator(vlm.model, vlm.processor, object_records(5))
        assert again == found and len(asked) == 2 * 9


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"task": None}, "task=None, but scores of different tasks have no common mean"),
        ({"task": "poetry"}, "task='poetry' is not known"),
        ({"degradations": ["smoke"]}, "degradation='smoke' is no degradation"),
        ({"degradations": []}, "name at least one of each"),
        ({"severities": [6]}, "severity=6 is not 1, 2, 3, 4 or 5"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        RobustnessEvaluator(**arguments)


def test_empty_data_and_missing_answers():
    vlm = small_vlm("llama")
    with pytest.raises(ValueError, match="records holds nothing for robustness: check the data and the task"):
        RobustnessEvaluator(**FEW)(vlm.model, vlm.processor, [])
    records = object_records(2)
    records[1]["answers"] = []
    with pytest.raises(ValueError, match="has no answers, so nothing to score against"):
        RobustnessEvaluator(**FEW)(vlm.model, vlm.processor, records)


def every_evaluator(kind=Evaluator):
    """All classes of the habit, below `Evaluator`."""
    for child in kind.__subclasses__():
        yield child
        yield from every_evaluator(child)


def test_evaluators_share_one_habit():
    from poise.evaluation.dominance import attention as attention_dominance
    from poise.evaluation.dominance import coalitions as coalition_dominance
    from poise.evaluation.interpretability import attention_knockout, token_ablation
    from poise.evaluation.robustness import router_weights

    assert attention_dominance and attention_knockout and coalition_dominance and router_weights and token_ablation
    found = {kind for kind in every_evaluator() if kind.__module__.startswith("poise.")}
    assert len(found) >= 7
    for kind in found:
        assert isinstance(kind.greater_is_better, bool)
        assert isinstance(kind.primary_metric, str | property)
