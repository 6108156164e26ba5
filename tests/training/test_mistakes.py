"""Mistakes of recipes and data: one line with the remedy, through the real commands, before any weight is read."""

import json

import pytest
from PIL import Image
from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from poise.command_line import main
from poise.modeling import PoiseConfig

GOOD = {"image": "a.png", "task": "vqa", "question": "what ?", "answers": ["dog"], "tags": [["dog", 0.9]]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Away from the checkout, whose outputs/ may hold a finished demo that a run would refuse to write over."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Fails the test as soon as weights would be read."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read before the mistake was found")

    for model_class in (_BaseAutoModelClass, PreTrainedModel):
        monkeypatch.setattr(model_class, "from_pretrained", classmethod(refuse))


def check(words, message, capsys):
    assert main(words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and message in lines[0], lines


FINE_TUNING = {
    "batch 0": (["--per_device_train_batch_size", "0"], "per_device_train_batch_size=0 must be at least 1"),
    "batch as a word": (["--per_device_train_batch_size", "two"], "='two' must be a whole number"),
    "steps as a word": (["--max_steps", "many"], "training.max_steps='many' must be a whole number"),
    "seed as a word": (["--seed", "x"], "training.seed='x' must be a whole number"),
    "a switch as a word": (["--bf16", "maybe"], "training.bf16='maybe' must be true or false"),
    "workers": (["--dataloader_num_workers", "-1"], "dataloader_num_workers=-1 must be at least 0"),
    "sampling": (["--train_sampling_strategy", "by_length"], "'by_length' is not known: did you mean 'group_by"),
    "tracker": (["--report_to", "trakio"], "report_to: 'trakio' is not known: did you mean 'trackio'?"),
    "tracker not installed": (["--report_to", "wandb"], "report_to='wandb' needs wandb: pip install wandb"),
    "strategy": (["--eval_strategy", "step"], "training: step is not a valid IntervalStrategy"),
    "half precision on a CPU": (["--fp16", "true"], "training.fp16=true needs a GPU"),
    "nothing to evaluate on": (["--data.evaluation", "null", "--eval_strategy", "steps", "--eval_steps", "2"],
                               "has nothing to evaluate on: name data.evaluation"),
    "scenes": (["--data.scenes", "{sizes: 3}"], "data.scenes: 'sizes' is not known: did you mean 'size'?"),
    "scenes of a mixture": (["--data.train", "[{name: scenes, scenes: {sizes: 3}}]"], "data.train: scenes: 'sizes'"),
    "configuration": (["--router_type", "3"], "model.router_type=3 must be a name"),
    "dropout": (["--stream_dropout", "2"], "stream_dropout=2.0 must lie in [0, 1)"),
    "layers": (["--vision_feature_layer", "last"], "model.vision_feature_layer='last' must be a whole number"),
    "no such backbone": (["--model.vision", "nobody/nothing"], "model.vision='nobody/nothing' cannot be read"),
    "language model": (["--model.text", "tiny:vision"], "model.text='tiny:vision' is a 'siglip_vision_model'"),
    "tag encoder": (["--model.tag_encoder", "tiny:vision"], "model.tag_encoder='tiny:vision' is a 'siglip_vision_m"),
    "targets": (["--lora.target_modules", "[q_prj]"], "fits no layer of the language model: name some of down_proj"),
    "targets everywhere": (["--lora.target_modules", "all-linear"], "would also take the projector's"),
    "packing t5": (["--data.packing", "512", "--model.text", "tiny:seq2seq_lm"], "leave packing out"),
    "tags": (["--processor.max_tags", "-1"], "processor.max_tags=-1 must be a whole number of at least 1"),
    "not yaml": (["--processor.chat_template", "{% x"], "put quotes around it"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", sorted(FINE_TUNING))
def test_of_a_fine_tuning_recipe(mistake, capsys, tmp_path):
    words, message = FINE_TUNING[mistake]
    check(["sft", "--config", "demo", "--output_dir", str(tmp_path), *words], message, capsys)


def test_folders_that_are_files(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for words, message in (
        (["--output_dir", str(tmp_path / "file")], "is a file: name a folder"),
        (["--output_dir", str(tmp_path / "file" / "run")], "cannot be made"),
        (["--data.feature_cache", str(tmp_path / "file")], "is a file: name a folder"),
    ):
        check(["sft", "--config", "demo", *words], message, capsys)


RECORDS = {
    "header": ({"image": "cut.jpg"}, "line 1, field 'image': image=", "is truncated or damaged"),
    "box without image": (
        {"image": None, "task": "grounding", "bbox": [1, 1, 2, 2]}, "field 'image': null, but a box lies in an image",
    ),
    "placeholder": ({"question": "<image> what ?"}, "field 'question'", "would ask for one more picture"),
    "placeholder in an answer": ({"answers": ["a <image>"]}, "field 'answers[0]'", "leave it out of the text"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", sorted(RECORDS))
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_of_a_record(mistake, streaming, capsys, tmp_path):
    change, *messages = RECORDS[mistake]
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:100])
    (tmp_path / "train.jsonl").write_text(json.dumps({**GOOD, **change}) + "\n")
    words = ["sft", "--config", "demo", "--data", str(tmp_path / "train.jsonl"), "--data.evaluation", "null"]
    words += ["--align_pictures", "0"]  # which a stream cannot give
    assert main([*words, "--data.streaming", streaming]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.strip())
    assert all(message in line for message in (messages if streaming == "false" else messages[1:]))


def test_of_a_file(capsys, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "tags.jsonl").write_text(json.dumps({"id": "another", "tags": []}) + "\n")
    words = ["sft", "--config", "demo", "--data.evaluation", "null", "--data"]
    check([*words, str(tmp_path / "a.png")], "not text in UTF-8", capsys)
    tagger = ["--data.tagger", str(tmp_path / "tags.jsonl")]
    check([*words, str(tmp_path / "train.jsonl"), *tagger], "no tags were written down for record 'train-0'", capsys)


@pytest.mark.parametrize("stage", ["align", "preference", "tag-encoder"])
def test_of_the_other_stages(stage, capsys, tmp_path):
    PoiseConfig().save_pretrained(tmp_path / "model")
    config = {"align": "align", "preference": "preference_scenes", "tag-encoder": "tag_encoder_scenes"}[stage]
    words = [stage, "--config", config, "--output_dir", str(tmp_path / "run")]
    words += ["--model", str(tmp_path / "model")] if stage == "preference" else []
    for wrong, message in (
        (["--max_steps", "many"], "training.max_steps='many' must be a whole number"),
        (["--per_device_train_batch_size", "two"], "must be a whole number"),
        (["--fp16", "true"], "training.fp16=true needs a GPU"),
        (["--report_to", "trakio"], "did you mean 'trackio'?"),
        (["--eval_strategy", "step"], "training: step is not a valid"),
        (["--data.scenes", "{sizes: 3}"], "did you mean 'size'?"),
    ):
        check([*words, *wrong], message, capsys)
    named = {"align": "model.vision", "tag-encoder": "model.tag_encoder"}.get(stage)
    if named is not None:
        check([*words, f"--{named}", "nobody/nothing"], f"{named}='nobody/nothing' cannot be read", capsys)
