"""`poise ask`: answers about an image, and finds every slip before a model is loaded."""

import functools
import inspect

import pytest

import poise.commands.ask
from poise.command_line import main

QUESTION = "what color is the square ?"


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test when the command gets as far as loading a model."""

    def answer(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(poise.commands.ask, "answer", answer)


@pytest.mark.parametrize("tags", [[], ["--tags", ""], ["--tags", "dog:0.97,ball:0.6"]], ids=["none", "empty", "two"])
def test_it_prints_one_answer(tags, poise_folder, image, capsys):
    assert (
        main(["ask", str(poise_folder), str(image), QUESTION, "--max-new-tokens", "3", "--device", "cpu", *tags]) == 0
    )
    output = capsys.readouterr().out
    assert output.endswith("\n") and output.count("\n") == 1
    assert "<image>" not in output and len(output.split()) <= 3  # not the prompt, only the new words


def test_tags_reach_the_model(poise_folder, image, monkeypatch):
    from poise import PoiseModel

    seen = []
    encode = PoiseModel.get_image_features

    @functools.wraps(encode)
    def watch(self, *arguments, **inputs):
        seen.append(inspect.signature(encode).bind(self, *arguments, **inputs).arguments)
        return encode(self, *arguments, **inputs)

    monkeypatch.setattr(PoiseModel, "get_image_features", watch)
    arguments = ["ask", str(poise_folder), str(image), QUESTION, "--max-new-tokens", "1", "--device", "cpu"]
    assert main([*arguments, "--tags", "ball:0.6,dog:0.97"]) == 0
    assert {0.6, 0.97} <= {round(score, 4) for score in seen[0]["tag_scores"].flatten().tolist()}


def test_the_folder_of_a_run_is_asked_like_its_model(poise_folder, image, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(poise_folder)
    for folder in (tmp_path / "run", poise_folder):
        assert main(["ask", str(folder), str(image), QUESTION, "--max-new-tokens", "3", "--device", "cpu"]) == 0
    of_run, of_model = capsys.readouterr().out.splitlines()
    assert of_run == of_model


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"question": " "}, ["QUESTION"]),
        ({"tags": "dog:high"}, ["tags", "'dog:high'", "name:score"]),
        ({"tags": "dog:nan"}, ["tags", "dog", "[0, 1]"]),
        ({"tags": "dog:1.5"}, ["tags", "dog", "[0, 1]"]),
        ({"tags": ":0.5"}, ["tags", "name"]),
        ({"tags": "dog:often"}, ["tags", "dog:often", "name:score"]),
        ({"image": "nowhere.png"}, ["nowhere.png", "no such file"]),
        ({"image": "text.png"}, ["text.png", "image"]),
        ({"image": "empty.png"}, ["empty.png", "empty"]),
        ({"image": "cut.png"}, ["cut.png", "truncated"]),
        ({"image": "."}, ["file"]),
        ({"model": "no/such/folder"}, ["no/such/folder", "folder"]),
        ({"model": "text.png"}, ["text.png", "folder"]),
        ({"model": "."}, ["config.json"]),
        ({"max_new_tokens": "0"}, ["--max-new-tokens", "0"]),
        ({"device": "toaster"}, ["device='toaster'", "write cpu"]),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_slip_is_one_line(changed, words, no_model, poise_folder, image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:60])
    given = {"model": str(poise_folder), "image": str(image), "question": QUESTION, "tags": "", "max_new_tokens": "4"}
    given |= {"device": "cpu", **changed}
    code = main(
        ["ask", given["model"], given["image"], given["question"]]
        + ["--tags", given["tags"], "--max-new-tokens", given["max_new_tokens"], "--device", given["device"]]
    )
    output = capsys.readouterr()
    assert code == 1 and output.out == ""
    assert output.err.startswith("poise ask: ") and output.err.count("\n") == 1
    assert [word for word in words if word not in output.err] == []
