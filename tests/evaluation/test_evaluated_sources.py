"""`--data` of the evaluating commands takes what a recipe's `data.train` takes; what it is not is one line."""

import io
import json
import re

import datasets
import pytest
from PIL import Image

from poise.command_line import main as poise
from poise.evaluation.data_sources import data_name, load_data_source
from poise.processing.scenes.scenes import Scenes
from poise.training.align.caption_pairs import load_pairs


def rows(count, task="vqa"):
    for number in range(count):
        data = io.BytesIO()
        Image.new("RGB", (20, 10), (40 * number, 0, 0)).save(data, "PNG")
        image = {"bytes": data.getvalue(), "path": None}
        said = {"vqa": {"question": "what ?", "answers": ["dog"]}, "caption": {"captions": [f"dog {number}", "a dog"]}}
        yield {"image": image, "task": task, **said[task]}


def table(count, task="vqa"):
    return datasets.Dataset.from_list(list(rows(count, task))).cast_column("image", datasets.Image())


@pytest.fixture
def saved(tmp_path):
    """A data set on disk with two splits."""
    splits = datasets.DatasetDict({"train": table(5), "validation": table(2)})
    splits.save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_data_sets_on_disk(saved, tmp_path):
    assert len(load_data_source(saved)) == 2
    train = load_data_source(f"{saved}:train", limit=3)
    assert len(train) == 3 and train[1]["image"].getpixel((0, 0)) == (40, 0, 0)
    table(4).save_to_disk(tmp_path / "whole")
    assert len(load_data_source(str(tmp_path / "whole"))) == 4
    (tmp_path / "parquet").mkdir()
    table(3).to_parquet(tmp_path / "parquet" / "validation-00000-of-00001.parquet")
    assert len(load_data_source(str(tmp_path / "parquet"), task="vqa")) == 3


def test_folders_of_splits(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    for split, count in (("train", 3), ("validation", 2)):
        row = {"image": "a.png", "task": "vqa", "question": "what ?", "answers": ["dog"]}
        (tmp_path / f"{split}.jsonl").write_text("\n".join([json.dumps(row)] * count))
    assert len(load_data_source(str(tmp_path))) == 2
    assert len(load_data_source(f"{tmp_path}:train")) == 3


@pytest.mark.parametrize(
    "source",
    ["user/dogs:test", "{name: user/dogs, split: test, task: vqa, columns: {question: query}}"],
)
def test_data_sets_of_the_hub(source, monkeypatch):
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, split))
        plain = table(2)
        return plain.rename_column("question", "query") if "query" in source else plain

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = load_data_source(source)
    assert asked == [("user/dogs", "test")] and records[0]["question"] == "what ?"


def test_scenes_in_braces_and_photos_with_a_split(shared_folder):
    drawn = load_data_source("{name: scenes, split: train, scenes: {size: 9, tasks: [vqa]}}", limit=4)
    assert [record["id"] for record in drawn] == [Scenes("train", size=9, tasks=["vqa"])[n]["id"] for n in range(4)]
    photos = str(shared_folder / "data")
    held_out, rest, every = (len(load_data_source(photos + part)) for part in (":validation", ":train", ""))
    assert 0 < held_out < rest and held_out + rest == every


def test_what_tables_and_folders_are_called(saved):
    assert data_name(f"{saved}:train") == "saved:train" and data_name(saved) == "saved"
    assert data_name("{name: user/dogs, split: test}") == "dogs:test"
    assert data_name("scenes:test,size=3") == "scenes:test,size=3"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{saved}:tset", "split='tset' is none of .*saved': it has train, validation"),
        ("{saved}:", "is neither a name nor NAME:SPLIT"),
        ("{nam: x.jsonl}", "'nam' is not known.*Did you mean 'name'"),
        ("{name: [x}", "is no mapping"),
        ("user/no-such-data-set:test", "user/no-such-data-set' is no file or folder here and could not be loaded"),
        ("nowhere.jsonl:test", "nowhere.jsonl': there is no such file"),
        ("{empty}", "empty' is no file or folder here and could not be loaded as a data set"),
        ("{parquet}:test", "split='test' of .*parquet' could not be read.*train"),
        ("{photos}:test", "split='test' is none of .*annotated photos have train, validation"),
    ],
)
def test_no_source_is_one_line(saved, tmp_path, source, message, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "parquet").mkdir()
    table(2).to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    (tmp_path / "photos" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "images" / "a.jpg")
    (tmp_path / "photos" / "captions.jsonl").write_text(json.dumps({"image": "a.jpg", "captions": ["a dog"]}))
    for name in ("saved", "empty", "parquet", "photos"):
        source = source.replace("{" + name + "}", str(tmp_path / name))
    # There is no such model: what is wrong with the data is found before it is looked for.
    assert poise(["evaluate", str(tmp_path / "no-model"), "--data", source, "--output", str(tmp_path / "out")]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iou", "2"], "--iou 2.0 is no share of an area"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--num-beams", "0"], "--num-beams is 0"),
        (["--resamples", "-1"], "--resamples is -1; it must be at least 0"),
        (["--device", "tpu"], "device='tpu' is no device of torch"),
        (["--dtype", "float31"], "dtype='float31' is no floating-point format"),
        (["--dtype", "int8"], "dtype='int8' is no floating-point format"),
        ([], "model='no/such-model' could not be loaded: name a folder"),
    ],
)
def test_options_are_read_before_the_model(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = ["evaluate", "no/such-model", "--data", "scenes:test,size=2", "--output", str(tmp_path / "out")]
    assert poise([*start, *words]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert message in said


def test_pairs_to_align_come_from_tables_too(tmp_path):
    table(4, "caption").save_to_disk(tmp_path / "pairs")
    pairs, again = (load_pairs(str(tmp_path / "pairs"), "train") for _ in range(2))
    assert len(pairs) == 4 and pairs.images([1])[0].getpixel((0, 0)) == (40, 0, 0)
    assert pairs.identity() == again.identity()
    table(3, "caption").save_to_disk(tmp_path / "others")
    assert load_pairs(str(tmp_path / "others"), "train").identity() != pairs.identity()
