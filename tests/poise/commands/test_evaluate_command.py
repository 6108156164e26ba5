"""`poise evaluate`: from a saved folder and a source of records to files, table and JSON."""

import json

import pytest

from poise.command_line import main as poise
from poise.commands.evaluate import TASKS, main
from poise.evaluation.data_sources import load_data_source
from poise.evaluation.generation_evaluator import TASKS as EVALUATOR_TASKS
from poise.evaluation.intervals import score_table
from poise.processing.records.task_record_files import write_task_records
from poise.processing.scenes.scenes import Scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory, models_by_language):
    """A saved model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model, processor = models_by_language["llama"]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "scenes.jsonl"
    write_task_records((dict(record) for record in Scenes("test", size=9)), path)
    return path


def test_writes_scores_predictions_and_a_table(folder, records_file, tmp_path, capsys):
    command = [str(folder), "--data", str(records_file), "--output", str(tmp_path / "run"), "--max-new-tokens", "3"]
    assert main(command) == 0
    printed = capsys.readouterr()
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert summary["primary_metric"] in summary["metrics"]
    assert sum(value for name, value in summary["metrics"].items() if name.endswith("_samples")) == 9
    assert score_table(summary["metrics"]) + "\n" == printed.out
    assert "95% interval" in printed.out and "vqa_accuracy" in printed.out
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and all("prediction" in row and "scores" in row for row in rows)
    # Once more, everything is there already: the same scores, now as JSON.
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary


def test_options_reach_the_evaluator(folder, tmp_path):
    options = ["--task", "vqa", "--samples", "4", "--group-by", "question_type", "--resamples", "0", "--num-beams", "2"]
    source = "scenes:prior_broken,size=6,tasks=vqa+caption"
    assert main([str(folder), "--data", source, "--output", str(tmp_path), "--max-new-tokens", "2", *options]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert metrics["vqa_samples"] <= 4
    assert not [name for name in metrics if name.endswith(("_low", "caption"))]
    assert [name for name in metrics if name.startswith("vqa_accuracy/")]
    assert json.loads((tmp_path / "run.json").read_text())["generation"] == {"num_beams": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "scenes:tset"], "tset"),
        (["--data", "scenes:test,size"], "write name=value"),
        (["--data", "scenes:test,colour=3"], "colour"),
        (["--data", "scenes:test", "--samples", "0"], "samples=0"),
        (["--data", "scenes:test", "--batch-size", "0"], "batch_size=0"),
        (["--data", "scenes:test", "--task", "multiple_choice", "--samples", "2"], "holds nothing for multiple_choice"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, arguments, message):
    assert poise(["evaluate", str(folder), "--output", str(tmp_path / "out"), *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("poise evaluate: ") and message in lines[-1]


def test_folders_that_hold_no_image_text_model(tmp_path, capsys, models_by_language):
    (tmp_path / "empty").mkdir()
    assert poise(["evaluate", str(tmp_path / "empty"), "--data", "scenes:test"]) == 1
    assert "without config.json" in capsys.readouterr().err
    model, processor = models_by_language["llama"]
    model.model.language_model.save_pretrained(tmp_path / "text")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    assert poise(["evaluate", str(tmp_path / "text"), "--data", "scenes:test"]) == 1
    assert "'llama' model, which takes no images" in capsys.readouterr().err


def test_another_model_does_not_go_on_with_these_predictions(folder, tmp_path, tiny_model_factory, capsys):
    command = ["--data", "scenes:test", "--samples", "2", "--max-new-tokens", "2", "--output", str(tmp_path / "run")]
    assert main([str(folder), *command]) == 0
    model, processor = tiny_model_factory("llama", seed=1)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    assert poise(["evaluate", str(tmp_path / "other"), *command]) == 1
    assert "made with other weights of the model: name another folder" in capsys.readouterr().err
    assert main([str(tmp_path / "other"), *command, "--restart"]) == 0


def test_sources(records_file, shared_folder):
    assert len(load_data_source(str(records_file), limit=2)) == 2
    assert load_data_source("scenes:validation,size=3,seed=5")[0]["id"] == Scenes("validation", size=3, seed=5)[0]["id"]
    photos = load_data_source(str(shared_folder / "data"), limit=3)
    assert len(photos) == 3 and photos[0]["image"].mode == "RGB"


def test_sources_of_one_task(records_file, shared_folder):
    every = load_data_source(str(records_file))
    for task in ("vqa", "caption", "grounding"):
        places = [place for place in range(len(every)) if every[place]["task"] == task]
        some = load_data_source(str(records_file), limit=2, task=task)
        assert [record["id"] for record in some] == [every[place]["id"] for place in places[:2]]
        assert {record["task"] for record in load_data_source("scenes:test,size=9", task=task)} == {task}
    assert {record["task"] for record in load_data_source("scenes:test,size=20,tasks=vqa+caption", task="vqa")} == {
        "vqa",
        "caption",
    }
    photos = load_data_source(str(shared_folder / "data"), limit=3, task="vqa")
    assert [photos[place]["task"] for place in range(3)] == ["vqa"] * 3


def test_tasks_are_those_of_the_evaluator():
    assert TASKS == EVALUATOR_TASKS


def test_table_aligns_and_pairs_bounds():
    metrics = {"vqa_accuracy": 0.5, "vqa_samples": 1200.0, "vqa_accuracy_low": 0.25, "vqa_accuracy_high": 0.75}
    assert score_table(metrics).splitlines() == [
        "score          value     95% interval",
        "------------  ------  ---------------",
        "vqa_accuracy  0.5000  0.2500 – 0.7500",
        "vqa_samples     1200",
    ]
