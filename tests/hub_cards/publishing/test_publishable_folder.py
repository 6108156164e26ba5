"""What a publishable folder holds, that it replaces an earlier one only when it is sound, and what its card says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from poise.hub_cards.card.data import CardData, EvaluationRow
from poise.hub_cards.publishing import publishable_folder
from poise.hub_cards.publishing.publishable_folder import write_publishable_folder
from poise.hub_cards.publishing.self_check import SelfCheckError

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "evaluation_results.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_poise.py",
    "processing_poise.py",
    "processor_config.json",
    "recipe.yaml",
    "sample.json",
    "sample.png",
    "tokenizer.json",
    "tokenizer_config.json",
    "versions.json",
}


@pytest.fixture
def card_data():
    rows = [EvaluationRow("clean", "vqa_accuracy", 0.9, 0.85, 0.93, 300, "scenes")]
    return CardData(
        license="apache-2.0",
        evaluation=rows,
        robustness=[*rows, EvaluationRow("image blank", "vqa_accuracy", 0.4, 0.3, 0.5, 300, "scenes")],
        losses=[[1, 3.0], [50, 1.0], [100, 0.5]],
    )


@pytest.fixture
def recipe(backbones):
    return {
        "model": {**backbones, "router_type": "reliability"},
        "data": {"train": "/home/somebody/records/train.jsonl"},
        "training": {"output_dir": "outputs/run", "hub_token": "hf_secretsecretsecret"},
    }


@pytest.fixture
def unchecked(monkeypatch):
    """Stands in for the self-check, which takes a process of its own."""
    monkeypatch.setattr(publishable_folder, "check_loads_without_poise", lambda *args, **kwargs: ["red"])


def every_text(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*") if path.is_file())


def test_holds_everything_and_the_answer_of_the_check(built, recipe, card_data, tmp_path, unchecked):
    folder = write_publishable_folder(built.model, built.processor, tmp_path / "out", card_data, recipe)
    assert {path.name for path in folder.iterdir()} >= FILES
    assert {path.name for path in (folder / "plots").iterdir()} == {"robustness.png", "loss.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    sample = json.loads((folder / "sample.json").read_text())
    assert sample["answer"] == "red"
    results = json.loads((folder / "evaluation_results.json").read_text())
    assert results["robustness"][1]["condition"] == "image blank"
    card = (folder / "README.md").read_text()
    assert sample["question"] in card and "**red**" in card


def test_nothing_of_this_machine_and_no_secret_is_in_it(built, backbones, recipe, card_data, tmp_path, unchecked):
    folder = write_publishable_folder(built.model, built.processor, tmp_path / "out", card_data, recipe)
    text = every_text(folder)
    assert "hf_secret" not in text
    for place in (str(Path(backbones["text"]).parent), "/home/somebody", str(tmp_path), str(built.folder)):
        assert place not in text
    shown = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert shown["data"]["train"] == "train.jsonl" and shown["model"]["vision"] is None
    assert built.model.config.backbones["vision"] == "acme/tower"


def test_card_is_accepted_by_the_hubs_own_parser(built, recipe, card_data, tmp_path, unchecked):
    folder = write_publishable_folder(
        built.model, built.processor, tmp_path / "out", card_data, recipe, repository="user/name"
    )
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == ["acme/words", "acme/tower", "acme/tags"]
    assert card.data.base_model_relation == "finetune"
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-text-to-text"
    assert card.data.license == "apache-2.0" and "poise" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.9, "scenes")
    assert "plots/robustness.png" in card.text and 'repository = "user/name"' in card.text


def test_an_earlier_folder_survives_a_failed_one(built, card_data, tmp_path, monkeypatch, unchecked):
    folder = write_publishable_folder(built.model, built.processor, tmp_path / "out", card_data)
    (folder / "stale.txt").write_text("from before")

    def fails(*args, **kwargs):
        raise SelfCheckError("self-check failed: reasons")

    monkeypatch.setattr(publishable_folder, "check_loads_without_poise", fails)
    with pytest.raises(SelfCheckError, match="reasons"):
        write_publishable_folder(built.model, built.processor, folder, card_data)
    assert (folder / "stale.txt").is_file() and [path.name for path in tmp_path.iterdir()] == ["out"]

    monkeypatch.setattr(publishable_folder, "check_loads_without_poise", lambda *args, **kwargs: ["blue"])
    write_publishable_folder(built.model, built.processor, folder, card_data)
    assert not (folder / "stale.txt").exists()
    assert json.loads((folder / "sample.json").read_text())["answer"] == "blue"


def test_foreign_folders_are_left_alone(built, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="was not written for publishing"):
        write_publishable_folder(built.model, built.processor, tmp_path / "photos")
    with pytest.raises(ValueError, match="is a file"):
        write_publishable_folder(built.model, built.processor, tmp_path / "photos" / "holiday.jpg")


def test_weights_are_sharded_by_size(built, tmp_path, unchecked):
    folder = write_publishable_folder(built.model, built.processor, tmp_path / "out", max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").is_file()


def test_the_same_content_gives_the_same_bytes(built, card_data, recipe, tmp_path, unchecked):
    folders = [
        write_publishable_folder(
            built.model, built.processor, tmp_path / name, card_data, recipe, repository="user/name"
        )
        for name in ("one", "two")
    ]
    content = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    ]
    assert content[0] == content[1]


def test_only_registered_benchmarks_are_written_for_the_leaderboards(tmp_path):
    from huggingface_hub import parse_eval_result_entries

    from poise.hub_cards.publishing.publishable_folder import write_benchmark_results

    write_benchmark_results(tmp_path, [EvaluationRow("clean", "vqa_accuracy", 0.5)])
    assert not list(tmp_path.iterdir())
    write_benchmark_results(tmp_path, [EvaluationRow("clean", "pope_f1", 0.8, benchmark="acme/pope#random")])
    (path,) = (tmp_path / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (path.name, entry.dataset_id, entry.task_id, entry.value) == ("acme-pope.yaml", "acme/pope", "random", 0.8)
    with pytest.raises(ValueError, match="benchmark='pope' must be owner/dataset#task"):
        EvaluationRow("clean", "pope_f1", 0.8, benchmark="pope")


def test_importing_the_self_check_imports_no_torch():
    # The demo and the command line import it before they know whether they need a model.
    code = "import sys, poise.hub_cards.publishing.self_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_poise_card_writes_the_card_of_a_published_folder_anew(built, tmp_path, monkeypatch, capsys):
    from poise.command_line import main

    monkeypatch.setattr(publishable_folder, "check_loads_without_poise", lambda *args, **kwargs: ["red"])
    rows = [EvaluationRow("clean", "vqa_accuracy", 0.9, n=3, dataset="d")]
    folder = write_publishable_folder(built.model, built.processor, tmp_path / "name", CardData(evaluation=rows))
    first = (folder / "README.md").read_text()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "README.md").write_text("lost")
    assert main(["card", str(folder)]) == 0
    assert (folder / "README.md").read_text() == first and capsys.readouterr().out == f"{folder / 'README.md'}\n"

    (tmp_path / "more.json").write_text(json.dumps({"robustness": [{"condition": "c", "metric": "f1", "value": 0.25}]}))
    options = ["--evaluation", str(tmp_path / "more.json"), "--repo", "user/other", "--name", "A *name*"]
    assert main(["card", str(folder), *options, "--license", "mit"]) == 0
    card = ModelCard.load(folder / "README.md")
    assert "| c | 0.250 |" in card.text and 'repository = "user/other"' in card.text and card.data.license == "mit"
    assert "# A \\*name\\*" in card.text and (folder / "plots" / "robustness.png").is_file()
    assert (folder / "model.safetensors").read_bytes() == weights
    assert main(["card", str(tmp_path)]) == 1 and "holds neither a finished model" in capsys.readouterr().err
