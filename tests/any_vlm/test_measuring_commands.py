"""`poise diagnose` and `poise interpret` on folders of families that are neither Poise nor LLaVA."""

import json

import folders
import pytest
from folders import small_image

from poise.command_line import main
from poise.processing import write_task_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    write_task_records(
        [
            {
                "id": f"r{number}", "image": small_image(60, 30, seed=number), "task": "vqa",
                "tags": [["red square", 0.9]],
                "question": "what color is the square ?", "answers": ["red"], "bbox": [20, 5, 10, 10],
                "metadata": {"object": "red square"},
            }
            for number in range(3)
        ],
        path,
    )  # fmt: skip
    return path


def run(command, name, folder, records, *words):
    model = folders.folder(name, folder / name)
    output = folder / f"{command}-{name}"
    line = [command, model, "--data", records, "--output", output, "--device", "cpu", "--batch-size", 2, *words]
    return main([str(word) for word in line]), output


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", ["idefics3", "gemma3", "blip2_opt", "mllama"])
def test_diagnose(name, models, records, capsys):
    code, output = run("diagnose", name, models, records, "--max-new-tokens", 2)
    assert code == 0
    found = json.loads((output / "diagnosis.json").read_text())
    assert found["players"] == ["image", "tags", "question"] and found["coalitions"]["samples"] == 3
    assert "swap_log_likelihood_value_image" in found["coalitions"]
    printed = capsys.readouterr()
    if name == "mllama":
        assert "attention" not in found and "mean_log_likelihood_none" not in found["coalitions"]
        assert "not asked: model=MllamaForConditionalGeneration" in printed.err
    else:
        # Told in words, they are a modality like the others: the words that name them, without those of the question.
        assert found["attention"]["tokens_tag_words"] > 4 and "mean_log_likelihood_image+tags" in found["coalitions"]
        assert found["attention"]["mdi"] > 0 and "mean_log_likelihood_none" in found["coalitions"]
        assert "not asked" not in printed.err


def test_interpret_a_tiled_image(models, records, capsys):
    words = ["--forms", "vqa", "--buffers", 0, "--pictures", 1, "--window", 2]
    code, output = run("interpret", "idefics3", models, records, *words)
    assert code == 0, capsys.readouterr().err
    found = json.loads((output / "interpret.json").read_text())
    # The box lies on both tiles of the wide image: as a mosaic of 2 × 4 patches, two of them are under it.
    assert found["logit_lens"]["samples"] == 3 and found["token_ablation"]["vqa_samples"] == 3
    page = (output / "logit_lens.html").read_text()
    assert '"grid":[2,4]' in page


@pytest.mark.parametrize("name", ["blip2_opt", "mllama"])
def test_what_cannot_be_interpreted_is_one_line(name, models, records, capsys):
    code, _ = run("interpret", name, models, records)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 1 and lines[-1].startswith("poise interpret: model=") and "Traceback" not in "".join(lines)


def test_tags_can_be_left_out(models, records):
    code, output = run("diagnose", "idefics3", models, records, "--max-new-tokens", 2, "--tags", "drop", "--restart")
    found = json.loads((output / "diagnosis.json").read_text())
    assert code == 0 and found["players"] == ["image", "question"]
    assert found["attention"]["tokens_tag_words"] == 0
