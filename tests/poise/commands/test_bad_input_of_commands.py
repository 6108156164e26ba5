"""What the four evaluating commands refuse, in one line, before any work is lost."""

import json

import evaluate
import pytest
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from poise.command_line import main as poise
from poise.evaluation.metrics import metric_path

COMMANDS = ("evaluate", "robustness", "diagnose", "interpret")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """A language model that takes no images."""
    folder = tmp_path_factory.mktemp("text")
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def refusal(capsys, command, *words):
    """The one line that a command says on stderr."""
    assert poise([command, *map(str, words)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert len(lines) == 1 and lines[0].startswith(f"poise {command}: ")
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_models_without_images(command, text_model, tmp_path, capsys):
    said = refusal(capsys, command, text_model, "--data", "scenes:test,size=2", "--output", tmp_path / "out")
    assert "'llama' model, which takes no images; name one that does" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_data_sets_without_records_and_records_without_answers(command, tmp_path, capsys):
    empty, unanswered = tmp_path / "empty.jsonl", tmp_path / "unanswered.jsonl"
    empty.write_text("\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    unanswered.write_text(json.dumps({"image": "image.png", "task": "vqa", "question": "what is this ?"}) + "\n")
    # There is no such model: what is wrong with the data is found before it is looked for.
    nowhere = tmp_path / "no-model"
    said = refusal(capsys, command, nowhere, "--data", empty, "--output", tmp_path / "out")
    assert "empty.jsonl" in said and "holds no record" in said
    said = refusal(capsys, command, nowhere, "--data", unanswered, "--output", tmp_path / "out")
    assert "unanswered.jsonl line 1, field 'answers'" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_models_that_are_not_there(command, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    said = refusal(capsys, command, tmp_path / "nothing", "--data", "scenes:test,size=2", "--output", tmp_path / "out")
    assert "is a folder without config.json; name the folder of a saved model" in said


def test_metrics_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="metric 'bertscore' is not known|'bertscore'"):
        metric_path("bertscore")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate.load(str(tmp_path / "nowhere.py"))
