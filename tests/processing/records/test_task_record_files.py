import json
import os

import datasets
import pytest
from PIL import Image

from poise.processing.records.task_record import TaskRecordError
from poise.processing.records.task_record_files import TaskRecords, load_task_records, write_task_records
from poise.processing.tags import Tag

VQA = {"id": "a", "image": "dog.png", "task": "vqa", "question": "what ?", "answers": ["dog"], "tags": [["dog", 0.5]]}
OTHER = {**VQA, "id": "other"}
GROUNDING = {"id": "g", "image": "dog.png", "task": "grounding", "question": "the dog", "bbox": [10, 5, 30, 20]}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "dog.png")
    return tmp_path


def write_lines(folder, *rows):
    path = folder / "train.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_records_are_checked_at_once_and_opened_when_read(folder, monkeypatch):
    opened = []
    real = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: (opened.append(image), real(image))[1])
    records = load_task_records(write_lines(folder, VQA, "", GROUNDING))
    assert len(records) == 2 and not opened
    assert records[0]["image"].size == (40, 30) and records[0]["tags"] == [Tag("dog", 0.5)]
    assert records[-1]["bbox"] == [10, 5, 30, 20]
    assert [record["id"] for record in records] == ["a", "g"]
    with pytest.raises(IndexError):
        records[2]


def test_images_are_looked_for_beside_the_file_or_in_the_folder_given(folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    path = write_lines(folder, VQA)
    os.rename(folder / "dog.png", elsewhere / "dog.png")
    with pytest.raises(TaskRecordError, match="no such file"):
        load_task_records(path)
    assert load_task_records(path, image_folder=elsewhere)[0]["image"].size == (40, 30)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**VQA, "image": "cat.png"}, "train.jsonl line 3, field 'image': .*cat.png.*no such file"),
        ({**VQA, "image": "empty.png"}, "train.jsonl line 3, field 'image': .*empty file"),
        ({**VQA, "image": "words.png"}, "train.jsonl line 3, field 'image': .*not an image"),
        ({**GROUNDING, "bbox": [20, 0, 30, 5]}, "line 3, field 'bbox': .*reaches outside the 40×30 image"),
        ({**VQA, "answers": []}, "train.jsonl line 3, field 'answers': empty"),
        ("{'id': 1}", "train.jsonl line 3, field '.all.': not JSON .* column 2"),
        ("[1, 2]", "train.jsonl line 3, field '.all.': .*not an object"),
    ],
)
def test_errors_name_file_line_and_field(folder, row, words):
    (folder / "empty.png").touch()
    (folder / "words.png").write_text("no image")
    with pytest.raises(TaskRecordError, match=words):
        load_task_records(write_lines(folder, OTHER, "", row))


def test_what_only_decoding_shows_is_told_when_the_record_is_read(folder):
    whole = (folder / "dog.png").read_bytes()
    (folder / "dog.png").write_bytes(whole[: len(whole) // 2])
    records = load_task_records(write_lines(folder, OTHER, VQA))
    with pytest.raises(TaskRecordError, match="train.jsonl line 2, field 'image': .*truncated or damaged"):
        records[1]


def test_too_large_images(folder):
    with pytest.raises(TaskRecordError, match="line 1, field 'image': .*more than max_pixels"):
        load_task_records(write_lines(folder, VQA), max_pixels=1000)


def test_no_file_and_an_empty_file(folder):
    with pytest.raises(FileNotFoundError, match="no such file of task records"):
        load_task_records(folder / "nothing.jsonl")
    with pytest.raises(TaskRecordError, match="holds no record"):
        load_task_records(write_lines(folder, "", ""))


def test_rows_of_a_dataset(folder):
    rows = [
        {"image": str(folder / "dog.png"), "task": "vqa", "question": "what ?", "answers": ["dog"], "bbox": None},
        {"image": None, "task": "grounding", "question": "dog", "answers": None, "bbox": [1.0, 2.0, 30.0, 4.0]},
    ]
    for row in rows:
        row["tags"] = [{"name": "dog", "score": 0.5}]
    rows[1]["image"] = rows[0]["image"]
    dataset = datasets.Dataset.from_list(rows)
    for table in (dataset, dataset.cast_column("image", datasets.Image())):
        records = TaskRecords(table, source="photos")
        assert [type(record["image"]) for record in records] == [Image.Image] * 2
        assert records[0]["tags"] == [Tag("dog", 0.5)] and "bbox" not in records[0]
        assert records[1]["bbox"] == [1, 2, 30, 4]
    rows[1]["question"] = None
    with pytest.raises(TaskRecordError, match="photos row 1, field 'question'"):
        TaskRecords(datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()), source="photos")


def test_writing_and_reading_back(folder, monkeypatch):
    monkeypatch.chdir(folder)
    drawn = {**GROUNDING, "id": "with/slash", "image": Image.new("RGB", (50, 40), "blue")}
    text_only = {"id": "t", "image": None, "task": "vqa", "question": "what ?", "answers": ["no"]}
    assert write_task_records([VQA, drawn, text_only], "out/records.jsonl") == 3
    records = load_task_records("out/records.jsonl")
    assert records[0]["image"].size == (40, 30) and records[1]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert records[2]["image"] is None
    assert [record["task"] for record in records] == ["vqa", "grounding", "vqa"]
    assert (folder / "out/records_images/with_slash.png").is_file()


def test_nothing_half_written_is_left(folder):
    path = folder / "records.jsonl"
    with pytest.raises(TaskRecordError, match="record 1, field 'answers'"):
        write_task_records([VQA, {**VQA, "answers": []}], path)
    assert not path.exists() and list(folder.iterdir()) == [folder / "dog.png"]
