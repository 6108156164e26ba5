"""Bad data, one case a line: each ends in one line that names file, line and field, before anything is written."""

import json

import pytest
from PIL import Image

from poise.processing.image_loading import open_image
from poise.processing.records.record_sources import RecordSource, open_records, stream_records
from poise.processing.records.task_record import TaskRecordError
from poise.processing.records.task_record_files import load_task_records, write_task_records

GOOD = {"id": "a", "image": "dog.png", "task": "vqa", "question": "what ?", "answers": ["dog"]}

# What streams must find as well; tests/poise/test_bad_inputs.py has the others.
LINES = [
    ('{"id": "a", "id": "b", "image": null}', "id", "stands twice"),
    ("[" * 100_000, "(all)", "nested too deep"),
    ('{"id": "a", "image": null, "task": "vqa", "question": "\\ud800", "answers": ["x"]}', "(all)", "surrogate"),
    ("{'id': 'a'}", "(all)", "not JSON"),
    ("null", "(all)", "is not an object"),
    (json.dumps({**GOOD, "image": ["dog.png", "cat.png"]}), "image", "a list of 2 images; only poise evaluate, and"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "dog.png")
    return tmp_path


def written(folder, *rows, name="train.jsonl"):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def message_of(read, path):
    with pytest.raises((ValueError, OSError)) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize(("line", "field", "words"), LINES, ids=range(len(LINES)))
def test_a_stream_names_a_bad_line(folder, line, field, words):
    message = message_of(lambda path: stream_records(RecordSource(str(path))), written(folder, GOOD, "", line))
    assert message.startswith(f"train.jsonl line 3, field {field!r}: ") and words in message


def test_two_records_of_one_id_are_refused(folder):
    message = message_of(load_task_records, written(folder, GOOD, GOOD))
    assert "line 2, field 'id': 'a' is the id of train.jsonl line 1, too" in message
    with pytest.raises(TaskRecordError, match="'a' is the id of an earlier record"):
        write_task_records([{**GOOD, "image": None}] * 2, folder / "out.jsonl")
    assert not (folder / "out.jsonl").exists()


def test_an_empty_answer_costs_its_record_and_is_counted(folder, caplog):
    rows = [{**GOOD, "id": "1", "answers": ["dog", " "]}, {**GOOD, "id": "2"}, {**GOOD, "id": "3", "question": ""}]
    path = written(folder, *rows)
    records = load_task_records(path)
    assert [record["id"] for record in records] == ["2"] and records[0]["image"].size == (40, 30)
    (line,) = caplog.messages
    assert line.startswith(
        "2 of 3 records are left out for an empty text, the first is train.jsonl line 1, field 'answers[1]'"
    )
    assert "line 1, field 'answers[1]': empty" in message_of(lambda p: load_task_records(p, strict=True), path)
    assert "empty" in message_of(load_task_records, written(folder, rows[0]))


def test_the_image_of_a_table_row_stays_beside_its_record_when_others_are_left_out(folder):
    import datasets

    rows = [{"image": {"path": None, "bytes": png(colour)}, "task": "vqa", "question": question, "answers": ["x"]}
            for colour, question in (("red", " "), ("blue", "which ?"))]  # fmt: skip
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.save_to_disk(folder / "saved")
    (record,) = open_records(RecordSource(str(folder / "saved")))
    assert record["question"] == "which ?" and record["image"].getpixel((0, 0)) == (0, 0, 255)


def png(colour):
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_ids_that_are_one_file_name_keep_their_own_images(folder):
    colours = {"a/b": "red", "a?b": "blue", "A_B": "lime", "..": "white"}
    records = [{**GOOD, "id": name, "image": Image.new("RGB", (4, 4), colour)} for name, colour in colours.items()]
    write_task_records(records, folder / "out.jsonl")
    read = {record["id"]: record["image"].getpixel((0, 0)) for record in load_task_records(folder / "out.jsonl")}
    assert read == {"a/b": (255, 0, 0), "a?b": (0, 0, 255), "A_B": (0, 255, 0), "..": (255, 255, 255)}


LLAVA = {"id": "7", "image": "dog.png", "conversations": [
    {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."},
    {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Red."}]}  # fmt: skip
CHAT = {"id": "7", "messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "path": "dog.png"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]}  # fmt: skip


def csv_of(folder):
    path = folder / "train.csv"
    path.write_text('\ufeffimage,task,question,answers,tags\ndog.png,vqa,"what, then ?",dog,"[[""dog"", 0.5]]"\n')
    return path


def parquet_of(folder):
    import datasets

    path = folder / "train.parquet"
    row = {"image": str(folder / "dog.png"), "task": "vqa", "question": "what, then ?", "answers": ["dog"]}
    datasets.Dataset.from_list([row]).cast_column("image", datasets.Image()).to_parquet(path)
    return path


def conversations_of(folder, row, inside):
    import datasets

    path = folder / "train.parquet"
    table = datasets.Dataset.from_list([row])
    if inside == "image":
        table = table.cast_column("image", datasets.Image())
    elif inside == "images":  # as TRL has them
        table = table.cast_column("images", [datasets.Image()])
    table.to_parquet(path)
    return path


TRL = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A dog."}]


def image_folder_of(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "dog.png", "text": "a red dog"}\n')
    return folder


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda f: written(f, json.dumps([LLAVA]), name="train.json"), ["What is it?", "Which colour?"]),
        (lambda f: written(f, LLAVA, name="chat.jsonl"), ["What is it?", "Which colour?"]),
        (lambda f: written(f, CHAT, name="chat.jsonl"), ["What is it?"]),
        (lambda f: written(f, json.dumps([GOOD]), name="train.json"), ["what ?"]),
        (lambda f: written(f, "\ufeff" + json.dumps(GOOD)), ["what ?"]),
        (csv_of, ["what, then ?"]),
        (parquet_of, ["what, then ?"]),
        (
            lambda f: conversations_of(f, {**LLAVA, "image": str(f / "dog.png")}, "image"),
            ["What is it?", "Which colour?"],
        ),
        (lambda f: conversations_of(f, LLAVA, None), ["What is it?", "Which colour?"]),
        (
            lambda f: conversations_of(f, {"images": [str(f / "dog.png")], "messages": TRL}, "images"),
            ["What is it?"],
        ),
        (image_folder_of, [None]),
    ],
    ids=["llava-json", "llava-lines", "chat-lines", "json-list", "byte-order-mark", "csv", "parquet", "llava-parquet",
         "named-parquet", "chat-parquet", "image-folder"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_forms_that_people_have(folder, write, expected, stream):
    source = RecordSource(str(write(folder)))
    if stream:
        rows = stream_records(source)
        records = [rows.record(raw) for raw in rows.rows()]
    else:
        records = list(open_records(source))
    assert [record.get("question") for record in records] == expected
    for record in records:
        image = record["image"] if isinstance(record["image"], Image.Image) else open_image(record["image"])
        assert image.size == (40, 30)
    assert records[0].get("captions", records[0].get("answers")) in (["A dog."], ["dog"], ["a red dog"])
