"""`poise diagnose` from saved models to tables, an image, a verdict, and rows that a model card takes."""

import json

import pytest
from PIL import Image
from small_vlms import object_records, small_vlm
from transformers import LlamaConfig, LlamaForCausalLM

from poise.commands.diagnose import main
from poise.hub_cards.card.data import CardData, add_evaluation_file
from poise.processing import write_task_records


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "objects.jsonl"
    write_task_records(object_records(4), path)
    return path


@pytest.fixture(scope="module", params=["llama", "llava"])
def saved_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    vlm = small_vlm(request.param, router_type="none" if request.param == "llava" else "gate")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


def run(*words):
    return main([str(word) for word in words])


def test_everything_is_written(saved_model, records_file, tmp_path, capsys):
    words = [saved_model, "--data", records_file, "--output", tmp_path, "--device", "cpu", "--max-new-tokens", 3]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    is_llava = "llava" in str(saved_model.name)
    for part in ("Coalitions (4 samples", "Shapley share of image", "Attention of the positions", "Verdict: "):
        assert part in printed
    assert ("Router: mean weights" in printed) != is_llava
    assert (tmp_path / "diagnosis.txt").read_text() == printed
    with Image.open(tmp_path / "diagnosis.png") as image:
        assert image.width > 1000

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads((tmp_path / "diagnosis.json").read_text(), parse_constant=refuse)
    assert found["players"] == ["image", "tags", "question"]
    assert found["verdict"] and printed.rstrip().endswith(found["verdict"][-1])
    card = CardData()
    add_evaluation_file(card, tmp_path / "diagnosis.json")
    assert {"everything right", "image swapped", "attention"} <= {row.condition for row in card.dominance}
    for name in ("attention", "coalitions"):
        assert len((tmp_path / name / "predictions.jsonl").read_text().splitlines()) == 4


def test_parts_and_scenes(saved_model, tmp_path, capsys):
    words = ["--data", "scenes:prior_broken,tasks=vqa,size=3", "--only", "coalitions", "--baselines", "swap", "--json"]
    assert run(saved_model, *words, "--output", tmp_path, "--device", "cpu", "--max-new-tokens", 2) == 0
    found = json.loads(capsys.readouterr().out)
    assert "attention" not in found and "mean_accuracy_none" not in found["coalitions"]
    assert "conflict_accuracy" in found["coalitions"] or found["coalitions"]["samples"] == 3


def test_models_without_images_are_refused(tmp_path):
    text = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    )
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="is a 'llama' model, which takes no images"):
        run(tmp_path / "text", "--data", "scenes:test,size=2", "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--severity", "7"], "severity=7"),
        (["--samples", "0"], "samples=0"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--calibration", "scenes:nowhere"], "split='nowhere'"),
    ],
)
def test_bad_input_is_noticed_before_the_model_is_loaded(words, text, tmp_path):
    with pytest.raises((ValueError, OSError), match=text):
        run(tmp_path / "no-model", "--output", tmp_path / "out", *words)
