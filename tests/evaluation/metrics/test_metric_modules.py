"""The metrics as `evaluate` modules: loaded by path, without the network and without Poise."""

import json
import subprocess
import sys

import evaluate
import pytest

import poise.evaluation.metrics as metrics

INPUTS = {
    "captions": {"predictions": ["A dog.", "a cat"], "references": [["a dog"], ["a cat", "one cat"]]},
    "vqa_accuracy": {"predictions": ["red"], "references": [["red", "red", "blue"]]},
    "pope": {"predictions": ["yes", "no"], "references": ["yes", "yes"]},
    "multiple_choice": {"predictions": [[-1.0, -2.0]], "references": [0]},
    "grounding_accuracy": {"predictions": [[0.0, 0.0, 2.0, 2.0]], "references": [[0.0, 0.0, 2.0, 2.0]]},
    "zero_shot_classification": {"predictions": [[0.1, 0.9]], "references": [[1]]},
    "retrieval_recall": {"predictions": [[0.9, 0.1], [0.1, 0.9]], "references": [[0], [1]]},
    "triplet_cosine": {"predictions": [[1.0, 0.0]], "positives": [[1.0, 0.0]], "negatives": [[0.0, 1.0]]},
}
# The parser of boxes is one of Poise's, so that metric needs it installed.
NEEDS_POISE = {"grounding_accuracy"}

LOAD_WITHOUT_POISE = """
import json, socket, sys
sys.modules["poise"] = None
def refuse(*arguments, **options):
    raise AssertionError("the network was asked")
socket.socket.connect = refuse
import evaluate
results = {}
for path, inputs in json.load(sys.stdin):
    results[path] = evaluate.load(path).compute(**inputs)
print(json.dumps(results))
"""


def test_metrics_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="'bertscore'"):
        metrics.metric_path("bertscore")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate.load(str(tmp_path / "nowhere.py"))


def test_every_metric_has_a_path():
    assert set(metrics.METRICS) == set(INPUTS)


@pytest.mark.parametrize("name", INPUTS)
def test_loads_by_path(name):
    metric = evaluate.load(metrics.metric_path(name))
    result = metric.compute(**INPUTS[name])
    assert result and all(isinstance(value, float) for value in result.values())
    assert metric.description and metric.citation and metric.inputs_description


@pytest.mark.slow  # a new process, in which evaluate imports transformers
def test_loads_where_poise_is_not_installed(tmp_path):
    wanted = [[metrics.metric_path(name), inputs] for name, inputs in INPUTS.items() if name not in NEEDS_POISE]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_POISE],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])) == len(wanted)


def test_batches_add_up():
    metric = evaluate.load(metrics.metric_path("captions"))
    inputs = INPUTS["captions"]
    for prediction, reference in zip(inputs["predictions"], inputs["references"], strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == evaluate.load(metrics.metric_path("captions")).compute(**inputs)


def test_caption_metric_tokenizes_and_gives_samples():
    metric = evaluate.load(metrics.metric_path("captions"))
    result = metric.compute(**INPUTS["captions"], per_sample=True)
    assert result["rouge_l"] == pytest.approx(1.0)
    assert len(result["cider_d_per_sample"]) == 2
    # Without tokenization "A" and "dog." are other words.
    assert metric.compute(**INPUTS["captions"], tokenized=True)["rouge_l"] == pytest.approx(0.5)


def test_unknown_metric():
    with pytest.raises(ValueError, match="'caption' .*captions"):
        metrics.metric_path("caption")
