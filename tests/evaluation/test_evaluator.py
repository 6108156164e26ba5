"""The habit that all evaluators share: what they say of themselves, what they return, how they cut their work up."""

import importlib
import json
import math
import pkgutil

import pytest
from small_vlms import object_records, small_vlm

import poise.evaluation
from poise.evaluation.dominance.attention import AttentionDominance
from poise.evaluation.dominance.coalitions import CoalitionDominance
from poise.evaluation.evaluator import Evaluator
from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.evaluation.interpretability.attention_knockout import AttentionKnockout
from poise.evaluation.interpretability.token_ablation import TokenAblation
from poise.evaluation.robustness.evaluator import RobustnessEvaluator
from poise.evaluation.robustness.router_weights import RouterByCondition
from poise.training.preference.prior_following import PriorFollowing

pytestmark = pytest.mark.numerics

# Each with the least work that still holds every part of its result.
OPTIONS = {
    GenerationEvaluator: {"task": "vqa"},
    PriorFollowing: {"task": "vqa"},
    RobustnessEvaluator: {"degradations": ["blur"], "severities": [3]},
    RouterByCondition: {"degradations": ["low_light"]},
    AttentionDominance: {"max_new_tokens": 3},
    CoalitionDominance: {"baselines": ["swap"]},
    TokenAblation: {
        "buffers": (0,),
        "forms": ("polling", "vqa"),
        "rivals": ("random", "gradient"),
        "gradient_steps": 1,
    },
    AttentionKnockout: {"window": 3, "pairs": (("last", "image_object"),)},
}
EVALUATORS = list(OPTIONS)


def every_evaluator(kind=Evaluator):
    return {kind, *(found for sub in kind.__subclasses__() for found in every_evaluator(sub))}


@pytest.fixture(scope="module")
def vlm():
    return small_vlm("llama", router_type="gate")


@pytest.fixture(scope="module")
def records(vlm, tmp_path_factory):
    """Three records whose right answers are what the model says, so that there is something to lose."""
    folder, records = tmp_path_factory.mktemp("answers"), object_records(3)
    GenerationEvaluator(task="vqa", output_dir=folder, progress=False)(vlm.model, vlm.processor, records)
    rows = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    said = {row["id"]: row["prediction"] for row in rows}
    return [{**record, "answers": [said[record["id"]]]} for record in records]


@pytest.fixture(scope="module")
def results(vlm, records):
    """kind -> what it finds in one go."""
    return {kind: evaluator_of(kind)(vlm.model, vlm.processor, records) for kind in EVALUATORS}


def evaluator_of(kind, **options):
    return kind(**OPTIONS[kind], **{"progress": False, "batch_size": 2, **options})


def test_no_evaluator_is_forgotten():
    for module in pkgutil.iter_modules(poise.evaluation.__path__, "poise.evaluation."):
        importlib.import_module(module.name)
    ours = {kind for kind in every_evaluator() - {Evaluator} if kind.__module__.startswith("poise.")}
    assert ours == set(EVALUATORS)


@pytest.mark.parametrize("kind", EVALUATORS, ids=lambda kind: kind.__name__)
def test_a_flat_dict_of_numbers_with_the_primary_metric(kind, results):
    evaluator, found = evaluator_of(kind), results[kind]
    assert isinstance(evaluator.primary_metric, str) and isinstance(evaluator.greater_is_better, bool)
    assert all(isinstance(name, str) and isinstance(value, float) for name, value in found.items())
    assert all(map(math.isfinite, found.values())) and evaluator.primary_metric in found


@pytest.mark.parametrize("kind", EVALUATORS, ids=lambda kind: kind.__name__)
def test_batches_and_streams_give_the_same_under_a_bar(kind, vlm, records, results, capsys):
    evaluator = evaluator_of(kind, batch_size=1, progress=True)
    assert evaluator(vlm.model, vlm.processor, iter(records)) == pytest.approx(results[kind], rel=1e-3, abs=1e-5)
    assert f"{evaluator.describe()}: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", EVALUATORS, ids=lambda kind: kind.__name__)
def test_an_interrupted_run_goes_on_and_a_finished_one_asks_nothing(kind, vlm, records, results, tmp_path, capsys):
    asked, whole = [], results[kind]

    def run(breaks_at=None):
        evaluator = evaluator_of(kind, output_dir=tmp_path)
        plain = evaluator.predict

        def predict(model, processor, some, rows):
            if len(asked) == breaks_at:
                raise KeyboardInterrupt
            asked.append([row["id"] for row in rows])
            plain(model, processor, some, rows)

        evaluator.predict = predict
        return evaluator(vlm.model, vlm.processor, records)

    with pytest.raises(KeyboardInterrupt):
        run(breaks_at=1)
    assert len(asked) == 1 and run() == pytest.approx(whole)
    names = [name for batch in asked for name in batch]
    assert len(names) == len(set(names)) and all(len(batch) <= 2 for batch in asked)
    kept = [json.loads(line)["id"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert sorted(kept) == sorted(names)
    batches = len(asked)
    assert run() == pytest.approx(whole) and len(asked) == batches
    assert capsys.readouterr().err == ""  # nobody asked for a bar
