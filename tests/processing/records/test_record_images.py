"""Paths of images stay inside the folder of their records, as they are read and as they are written."""

import json
import os

import pytest
from PIL import Image

from poise.processing.records.photo_annotations import records_from_annotations
from poise.processing.records.published_formats import converted_records
from poise.processing.records.record_sources import RecordSource, open_records, published_rows, stream_records
from poise.processing.records.task_record_files import TaskRecords, load_task_records, write_task_records
from poise.training.curation.record_stream import RecordStream
from poise.training.preference.pairs import PreferenceRecords

VQA = {"id": "a", "task": "vqa", "question": "what ?", "answers": ["dog"]}
CHAT = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what ?"}]},
                     {"role": "assistant", "content": "dog"}]}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """`records/`, and beside it an image that is nobody's business: in red, and by absolute path too."""
    monkeypatch.chdir(tmp_path)
    for name in ("records", "records/a", "records-private", "elsewhere"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), "red").save(tmp_path / name / "dog.png")
    return tmp_path


def written(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def opened(source):
    return open_records(source)[0]["image"]


def streamed(source):
    rows = stream_records(source)
    return rows.record(next(iter(rows.rows())))["image"]


def parquet_of(place, image):
    import datasets

    table = datasets.Dataset.from_list([{**VQA, "image": str(place / "records" / image)}])
    table.cast_column("image", datasets.Image()).to_parquet(place / "records" / "train.parquet")  # paths, not bytes
    return str(place / "records" / "train.parquet")


OUTSIDE = ["../elsewhere/dog.png", "../records-private/dog.png", "{place}/elsewhere/dog.png",
           "a/../../elsewhere/dog.png"]  # fmt: skip
READERS = {
    "json lines": lambda p, image: opened(RecordSource(written(p / "records/train.jsonl", {**VQA, "image": image}))),
    "stream": lambda p, image: streamed(RecordSource(written(p / "records/train.jsonl", {**VQA, "image": image}))),
    "chat": lambda p, image: opened(RecordSource(written(p / "records/train.jsonl", {**CHAT, "image": image}))),
    "parquet": lambda p, image: opened(RecordSource(parquet_of(p, image))),
    "published rows": lambda p, image: [*published_rows(os.path.dirname(parquet_of(p, image)), "train")][0]["image"],
    "load_task_records": lambda p, image: load_task_records(
        written(p / "records/train.jsonl", {**VQA, "image": image}), check_images=False
    )[0],
    "published form": lambda p, image: list(
        converted_records("pope", [{"question_id": 1, "image": image, "text": "?", "label": "no"}], p / "records")
    ),
    "curation": lambda p, image: RecordStream(written(p / "records/train.jsonl", VQA), 1).image(
        {**VQA, "image": image}
    ),
    "preference": lambda p, image: PreferenceRecords(
        written(p / "records/train.jsonl", {**VQA, "image": image, "chosen": "dog", "rejected": "cat"})
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("image", OUTSIDE, ids=["beside", "alike", "absolute", "through"])
def test_a_path_that_leaves_the_folder_is_refused(place, reader, image):
    with pytest.raises(ValueError, match=r"lies outside of '[^']*records': set image_folder to a folder") as caught:
        READERS[reader](place, image.format(place=place))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_path_inside_is_read(place, reader):
    assert READERS[reader](place, "dog.png") is not None


def test_a_published_table_names_its_row_and_annotations_their_line(place):
    (place / "records" / "images").mkdir()
    written(place / "records" / "captions.jsonl", {"image": "../dog.png", "captions": ["a dog"]})
    with pytest.raises(ValueError, match="captions.jsonl line 1, field 'image': '../dog.png' lies outside of 'records"):
        records_from_annotations("records")


@pytest.mark.parametrize("read", [opened, streamed])
def test_a_wider_image_folder_allows_it(place, read):
    file = written(place / "records" / "train.jsonl", {**VQA, "image": str(place / "elsewhere" / "dog.png")})
    assert read(RecordSource(file, image_folder=str(place))) is not None
    (inner,) = TaskRecords([{**VQA, "image": "records/../elsewhere/dog.png"}])  # a program's own rows may name any file
    assert inner["image"].size == (4, 4)


def test_files_elsewhere_are_linked_and_not_copied(place):
    (place / "more" / "elsewhere").mkdir(parents=True)
    Image.new("RGB", (4, 4), "blue").save(place / "more" / "elsewhere" / "dog.png")
    drawn = Image.new("RGB", (4, 4), "lime")
    images = ["elsewhere/dog.png", str(place / "more/elsewhere/dog.png"), "records/dog.png", drawn]
    given = [{**VQA, "id": str(n), "image": image} for n, image in enumerate(images)]
    for _ in range(2):  # the second time over the first
        write_task_records(given, "records/new.jsonl")
    rows = [json.loads(line)["image"] for line in (place / "records/new.jsonl").read_text().splitlines()]
    assert rows[0] == "new_images/elsewhere/dog.png" and rows[2:] == ["dog.png", "new_images/3.png"]
    links = [path for path in (place / "records/new_images").iterdir() if path.is_symlink()]
    assert len(links) == 2 and not any(os.path.isabs(os.readlink(link)) for link in links)
    os.rename(place, place.with_name("moved"))  # links are relative, so the whole may move
    records = load_task_records(place.with_name("moved") / "records" / "new.jsonl")
    colours = [record["image"].getpixel((0, 0)) for record in records]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 0, 0), (0, 255, 0)]
    os.rename(place.with_name("moved"), place)


def test_an_error_leaves_a_former_file_and_its_images(place):
    red = {**VQA, "image": Image.new("RGB", (4, 4), "red")}
    write_task_records([red], "records/new.jsonl")
    with pytest.raises(ValueError, match="record 2, field 'question'"):
        write_task_records(
            [{**VQA, "image": Image.new("RGB", (4, 4), "blue")}, {**VQA, "id": "b", "image": "elsewhere/dog.png"},
             {**VQA, "id": "c", "question": 3, "image": None}],
            "records/new.jsonl",
        )  # fmt: skip
    assert sorted(path.name for path in (place / "records").iterdir()) == ["a", "dog.png", "new.jsonl", "new_images"]
    assert [path.name for path in (place / "records" / "new_images").iterdir()] == ["a.png"]
    assert load_task_records("records/new.jsonl")[0]["image"].getpixel((0, 0)) == (255, 0, 0)


def test_where_links_are_not_possible_the_remedy_is_said(place, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(OSError, match=r"cannot become a link to .*: write the records into a folder above"):
        write_task_records([{**VQA, "image": "elsewhere/dog.png"}], "records/new.jsonl")
    assert sorted(path.name for path in (place / "records").iterdir()) == ["a", "dog.png"]
