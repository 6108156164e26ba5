"""`poise interpret` from saved models and a file of records to JSON, images and a page."""

import json

import pytest
from PIL import Image
from small_vlms import object_records, small_vlm
from transformers import LlamaConfig, LlamaForCausalLM

from poise.commands.interpret import main, read_window
from poise.model_loading import short_name
from poise.processing import write_task_records


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "objects.jsonl"
    write_task_records(object_records(3), path)
    return path


@pytest.fixture(scope="module", params=["llama", "llava"])
def saved_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    vlm = small_vlm(request.param)
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


def run(*words):
    return main([str(word) for word in words])


def test_everything_is_written(saved_model, records_file, tmp_path, capsys):
    arguments = [saved_model, "--data", records_file, "--output", tmp_path, "--device", "cpu"]
    smaller = ["--pictures", 1, "--buffers", 0, "--words", "red", "--forms", "polling", "vqa"]
    assert run(*arguments, *smaller) == 0
    printed = capsys.readouterr().out
    for headline in (
        "Logit lens: patches whose likeliest word",
        "Token ablation: share of 3 objects identified",
        "Attention knockout: fall",
    ):
        assert headline in printed

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads((tmp_path / "interpret.json").read_text(), parse_constant=refuse)
    assert found["settings"]["buffers"] == [0] and found["logit_lens"]["samples"] == 3
    assert found["token_ablation"]["vqa_samples"] == found["attention_knockout"]["samples"] == 3
    for name in ("token_ablation.png", "attention_knockout.png", "logit_lens/r0-red.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 300
    assert "data:image/png;base64," in (tmp_path / "logit_lens.html").read_text(encoding="utf-8")
    assert len((tmp_path / "token_ablation" / "predictions.jsonl").read_text().splitlines()) == 3


@pytest.fixture(scope="module")
def photo_records(tmp_path_factory):
    """As annotated photos give them: captions first, then questions, none with a box, then expressions."""
    folder = tmp_path_factory.mktemp("photos")
    boxed = [{**record, "task": "grounding", "question": "the red ball"} for record in object_records(2)]
    plain = [{"id": f"c{n}", "image": boxed[0]["image"], "task": "caption", "captions": ["a ball"]} for n in range(3)]
    asked = {"id": "q", "image": boxed[0]["image"], "task": "vqa", "question": "what ?", "answers": ["a ball"]}
    write_task_records([*plain, asked, *boxed], folder / "all.jsonl")
    write_task_records([*plain, asked], folder / "none.jsonl")
    return folder


@pytest.mark.parametrize("saved_model", ["llama"], indirect=True)
def test_photos_are_read_with_the_defaults(saved_model, photo_records, tmp_path, capsys):
    common = ["--output", tmp_path, "--device", "cpu", "--samples", "2", "--pictures", "1", "--buffers", "0"]
    assert run(saved_model, "--data", photo_records / "all.jsonl", *common) == 0
    found = json.loads((tmp_path / "interpret.json").read_text())
    assert found["attention_knockout"]["samples"] == found["token_ablation"]["polling_samples"] == 2
    assert "vqa_samples" not in found["token_ablation"] and "not asked" not in capsys.readouterr().err
    # Others' leftovers are told by the setting, in words where a run keeps a digest.
    with pytest.raises(ValueError, match=r"made with forms=\['generative', 'polling'\], now it is \['polling'\]"):
        run(saved_model, "--data", photo_records / "all.jsonl", *common, "--forms", "polling")
    with pytest.raises(ValueError, match=r"made with other replaced tokens \(zero, or the mean"):
        run(saved_model, "--data", photo_records / "all.jsonl", *common, "--replacement", "zero", "--only", "ablation")


@pytest.mark.parametrize("saved_model", ["llama"], indirect=True)
def test_what_no_record_can_be_asked_is_said(saved_model, photo_records, tmp_path, capsys):
    common = ["--output", tmp_path, "--device", "cpu", "--samples", "2", "--pictures", "1"]
    assert run(saved_model, "--data", photo_records / "none.jsonl", *common) == 0
    found = json.loads((tmp_path / "interpret.json").read_text())
    assert "logit_lens" in found and "attention_knockout" not in found and "token_ablation" not in found
    error = capsys.readouterr().err
    assert error.count("not asked: data=") == 1 and "holds no record with a box, which token ablation" in error
    with pytest.raises(ValueError, match="holds no record with a box"):
        run(saved_model, "--data", photo_records / "none.jsonl", *common, "--only", "knockout")
    with pytest.raises(ValueError, match=r"--form vqa: the records with boxes of data=.* by generative, polling"):
        run(saved_model, "--data", photo_records / "all.jsonl", *common, "--only", "knockout", "--form", "vqa")


def test_one_study_on_scenes(saved_model, tmp_path, capsys):
    words = ["--data", "scenes:test,size=4", "--only", "knockout", "--layers", "0-1", "2", "--tags", "drop", "--json"]
    assert run(saved_model, *words, "--output", tmp_path, "--device", "cpu") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"model", "data", "settings", "attention_knockout"}
    assert not (tmp_path / "logit_lens.html").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--layers", "2-1"], "--layers holds '2-1'; write windows as FIRST-LAST"),
        (["--layers", "0-3"], "window 0-3 =.* reaches outside of the 3 layers"),
        (["--window", "7"], "window=7 does not fit: give 1 to 3"),
        (["--samples", "0"], "--samples is 0; it must be at least 1"),
        (["--words", "zebra", "--only", "lens"], "words holds 'zebra'"),
        (["--top-k", "1000", "--only", "lens"], "top_k=1000"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--buffers", "-1"], "buffers"),
    ],
)
def test_bad_input(saved_model, records_file, tmp_path, words, text):
    with pytest.raises((ValueError, OSError), match=text):
        run(saved_model, "--data", records_file, "--output", tmp_path, "--device", "cpu", *words)
    assert not list(tmp_path.rglob("predictions.jsonl"))


def test_a_model_without_images(tmp_path, records_file):
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.save_pretrained(tmp_path)
    small_vlm("llama").processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes no images"):
        run(tmp_path, "--data", records_file, "--output", tmp_path / "out", "--device", "cpu")


def test_windows_of_the_command_line():
    assert read_window("8-15") == (8, 15) and read_window("3") == (3, 3)
    for text in ("a", "1-", "-1", "5-4"):
        with pytest.raises(ValueError, match="--layers holds"):
            read_window(text)


def test_default_names_say_which_model():
    assert short_name("outputs/demo/reliability/model") == "demo-reliability"
    assert short_name("org/name", "photo 1") == "org-name-photo-1" and short_name("/model") == "model"
