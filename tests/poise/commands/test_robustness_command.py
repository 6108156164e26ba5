"""`poise robustness` from a saved model to a table, an image and rows that a model card takes."""

import json

import pytest
from PIL import Image
from small_vlms import object_records, small_vlm

from poise.commands.robustness import main
from poise.hub_cards.card.data import CardData, add_evaluation_file
from poise.model_loading import output_folder
from poise.processing import write_task_records


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "objects.jsonl"
    write_task_records(object_records(4), path)
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """As `poise sft` leaves it: the model below the run."""
    folder = tmp_path_factory.mktemp("run")
    vlm = small_vlm("llama")
    vlm.model.save_pretrained(folder / "model")
    vlm.processor.save_pretrained(folder / "model")
    CardData().save(folder / "card_data.json")
    return folder


def run(*words):
    return main([str(word) for word in words])


def test_everything_is_written_beside_the_run(run_folder, records_file, capsys):
    few = ["--degradations", "blur", "tags_removed", "typos", "--severities", 1, 5, "--max-new-tokens", 3]
    assert run(run_folder / "model", "--data", records_file, "--device", "cpu", *few) == 0
    printed = capsys.readouterr().out
    assert "clean 0." in printed and "area / clean" in printed and "severity 5" in printed
    folder = run_folder / "robustness"
    assert (folder / "robustness.txt").read_text() == printed
    with Image.open(folder / "robustness.png") as image:
        assert image.width > 1000
    found = json.loads((folder / "robustness.json").read_text())
    assert found["primary_metric"] == "area" in found["scores"] and found["scores"]["samples"] == 4
    card = CardData()
    add_evaluation_file(card, folder / "robustness.json")
    assert [row.condition for row in card.robustness][:2] == ["clean", "blur"]
    assert card.robustness[1].metric == "vqa_accuracy, mean over severities"
    assert {row.dataset for row in card.robustness} == {"objects.jsonl"}
    assert run(run_folder / "model", "--data", records_file, "--device", "cpu", *few, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found  # asked nothing again, and says the same


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--degradations", "smoke"], "degradation='smoke'"),
        (["--severities", "9"], "severity=9"),
        (["--samples", "0"], "samples=0"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "scenes:nowhere"], "split='nowhere' is no split"),
    ],
)
def test_bad_input_is_noticed_before_the_model_is_loaded(words, text, tmp_path):
    with pytest.raises((ValueError, OSError), match=text):
        run(tmp_path / "no-model", "--output", tmp_path / "out", *words)


def test_where_results_go(tmp_path):
    assert output_folder("user/name", "robustness").as_posix() == "outputs/robustness/user-name"
    assert output_folder(str(tmp_path), "diagnosis", "here").as_posix() == "here"
    (tmp_path / "model").mkdir()
    assert output_folder(str(tmp_path / "model"), "diagnosis").parts[0] == "outputs"
    (tmp_path / "recipe.yaml").write_text("model: {}\n")
    assert output_folder(str(tmp_path / "model"), "diagnosis") == tmp_path / "diagnosis"
    with pytest.raises(ValueError, match="recipe.yaml' is a file: name a folder"):
        output_folder("user/name", "robustness", str(tmp_path / "recipe.yaml"))
