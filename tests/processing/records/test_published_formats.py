"""Converters on small files of the published forms. Every file and image here is made up; only the forms are real."""

import io
import json
import pickle

import datasets
import pytest
from PIL import Image

from poise.processing.records.published_formats import converted_records, read_document, read_published
from poise.processing.records.task_record_files import TaskRecords, load_task_records, write_task_records

NAMES = {
    1: ("COCO_train2014_000000000001.jpg", "000000000001.jpg"),
    2: ("COCO_train2014_000000000002.jpg", "000000000002.jpg"),
}


@pytest.fixture
def images(tmp_path):
    """Two images, 80×60 and 50×40, under the names of the 2014 release, one folder down."""
    folder = tmp_path / "images" / "train2014"
    folder.mkdir(parents=True)
    Image.new("RGB", (80, 60), "red").save(folder / NAMES[1][0])
    Image.new("RGB", (50, 40), "blue").save(folder / NAMES[2][0])
    return tmp_path / "images"


def published(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def converted(name, *paths, **options):
    return list(converted_records(name, read_published(paths), **options))


COCO = {
    "info": {"year": 2017}, "licenses": [],
    "images": [{"id": 1, "file_name": NAMES[1][1], "width": 80, "height": 60},
               {"id": 2, "file_name": NAMES[2][1], "width": 50, "height": 40}],
    "annotations": [{"image_id": 2, "id": 10, "caption": "A blue wall.\n"},
                    {"image_id": 1, "id": 11, "caption": "A red wall"},
                    {"image_id": 2, "id": 12, "caption": "Nothing but blue."}],
}  # fmt: skip


def test_coco_captions_as_published(tmp_path, images):
    records = converted("coco-captions", published(tmp_path, "captions_val2017.json", COCO), images=images)
    assert [record["captions"] for record in records] == [["A red wall"], ["A blue wall.", "Nothing but blue."]]
    assert records[0]["image"].endswith("train2014/COCO_train2014_000000000001.jpg")
    assert records[1]["metadata"] == {"source": "coco_captions", "image_id": "2"}


def test_coco_captions_in_karpathys_split(tmp_path, images):
    row = {"filepath": "train2014", "imgid": 0, "cocoid": 1, "sentids": [5], "filename": NAMES[1][0]}
    row["sentences"] = [{"tokens": ["a", "red", "wall"], "raw": "A red wall.", "imgid": 0, "sentid": 5}]
    other = {**row, "filename": NAMES[2][0], "cocoid": 2, "split": "restval"}
    path = published(tmp_path, "dataset_coco.json", {"images": [{**row, "split": "test"}, other], "dataset": "coco"})
    (record,) = converted("coco-captions", path, images=images, split="test")
    assert record["captions"] == ["A red wall."] and record["id"] == "coco-1"
    with pytest.raises(ValueError, match="no record of split 'val'"):
        converted("coco-captions", path, images=images, split="val")


def encoded(color, size=(30, 20)):
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def table(rows):
    """A table as the Hub holds it: the images inside, encoded. Rows come undecoded."""
    made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))
    return list(made)


def test_caption_tables_with_all_captions_or_one_a_row(tmp_path):
    whole = table([{"image": encoded("red"), "question_id": "x.jpg", "id": 7, "answer": ["a wall", "red"]}])
    (record,) = converted_records("coco-captions", whole)
    assert record["captions"] == ["a wall", "red"] and record["image"].size == (30, 20)
    split = table([{"image": encoded("red"), "cocoid": 7, "caption": text} for text in ("a wall", "red")])
    (record,) = converted_records("coco-captions", split)
    assert record["captions"] == ["a wall", "red"] and record["metadata"]["image_id"] == "7"


def test_textcaps_as_published(tmp_path):
    folder = tmp_path / "textcaps"
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(folder / "0054c91397f2fe05.jpg")
    references = ["A sign that says stop.", "A stop sign."]
    entry = {"image_id": "0054c91397f2fe05", "image_name": "0054c91397f2fe05", "set_name": "val", "image_width": 30,
             "image_height": 20, "image_path": "train/0054c91397f2fe05.jpg", "image_classes": ["Sign"],
             "reference_strs": references, "reference_tokens": [["a"], ["a"]]}  # fmt: skip
    rows = [{**entry, "caption_str": text, "caption_id": number} for number, text in enumerate(references)]
    path = published(tmp_path, "TextCaps_0.1_val.json", {"dataset_name": "textcaps", "data": rows})
    (record,) = converted("textcaps", path, images=folder)
    assert record["captions"] == references and record["id"] == "textcaps-0054c91397f2fe05"
    hub = table([{"image": encoded("red"), "image_id": "a", "caption_str": references, "reference_strs": references}])
    (record,) = converted_records("textcaps", hub)
    assert record["captions"] == references


OKVQA_ANSWERS = ["rack", "rack", "shelf", "rack", "rack", "tree", "rack", "rack", "rack", "shelf"]


def okvqa_files(tmp_path):
    questions = {"info": {}, "data_type": "mscoco", "data_subtype": "train2014", "task_type": "Open-Ended",
                 "questions": [{"image_id": 1, "question": "What is it?", "question_id": 15},
                               {"image_id": 2, "question": "And this?", "question_id": 25}]}  # fmt: skip
    annotation = {"image_id": 1, "question_type": "four", "answer_type": "other", "question_id": 15, "confidence": 3}
    annotation["answers"] = [{"answer_id": n, "raw_answer": text + "s", "answer_confidence": "yes", "answer": text}
                             for n, text in enumerate(OKVQA_ANSWERS, start=1)]  # fmt: skip
    return (published(tmp_path, "OpenEnded_mscoco_train2014_questions.json", questions),
            published(tmp_path, "mscoco_train2014_annotations.json", {"annotations": [annotation]}))  # fmt: skip


def test_okvqa_as_published(tmp_path, images, caplog):
    questions, annotations = okvqa_files(tmp_path)
    caplog.set_level("INFO")
    for paths in ((questions, annotations), (annotations, questions)):
        (record,) = converted("okvqa", *paths, images=images)
        assert record["answers"] == OKVQA_ANSWERS and record["question"] == "What is it?"
        assert record["image"].endswith(NAMES[1][0]) and record["metadata"]["question_id"] == 15
    assert "1 records without anything to answer with were left out" in caplog.text
    with pytest.raises(ValueError, match="needs two files"):
        converted("okvqa", questions, images=images)


def test_okvqa_tables(tmp_path):
    answers = [{"answer": text, "raw_answer": text, "answer_confidence": "yes", "answer_id": n}
               for n, text in enumerate(OKVQA_ANSWERS)]  # fmt: skip
    rows = table(
        [{"image": encoded("red"), "id_image": 3, "question_id": 35, "question": "what ?", "answers": answers}]
    )
    (record,) = converted_records("okvqa", rows)
    assert record["answers"] == OKVQA_ANSWERS and record["metadata"]["image_id"] == "3"
    rows = table([{"image": encoded("red"), "question_id": "35", "question": "what ?", "answers": OKVQA_ANSWERS}])
    assert next(converted_records("okvqa", rows))["answers"] == OKVQA_ANSWERS


def aokvqa_entry(**changes):
    entry = {"split": "val", "image_id": 2, "question_id": "22MexNkBPpdZGX6sxbxVBH", "question": "What color ?",
             "choices": ["red", "blue", "green", "grey"], "correct_choice_idx": 1,
             "direct_answers": ["blue"] * 9 + ["sky"],
             "difficult_direct_answer": False, "rationales": ["It is blue.", "Blue.", "The wall is blue."]}  # fmt: skip
    return {**entry, **changes}


def test_aokvqa_as_published(tmp_path, images):
    withheld = aokvqa_entry(question_id="t", split="test", direct_answers=None, correct_choice_idx=None)
    path = published(tmp_path, "aokvqa_v1p0_val.json", [aokvqa_entry(), withheld])
    (record,) = converted("aokvqa", path, images=images)
    assert record["answers"] == ["blue"] * 9 + ["sky"] and record["image"].endswith(NAMES[2][0])
    assert record["metadata"]["choices"][record["metadata"]["correct_choice_idx"]] == "blue"
    rows = table([{"image": encoded("blue"), **aokvqa_entry(direct_answers="['blue', 'sky']")}])
    (record,) = converted_records("aokvqa", rows)
    assert record["answers"] == ["blue", "sky"]


def test_pope_as_published(tmp_path, images):
    lines = [{"question_id": 1, "image": NAMES[1][0], "text": "Is there a dog in the image?", "label": "no"},
             {"question_id": 2, "image": NAMES[2][0], "text": "Is there a cat in the image?", "label": "yes"},
             ]  # fmt: skip
    paths = [published(tmp_path, f"coco_pope_{name}.json", "\n".join(map(json.dumps, lines)))
             for name in ("random", "popular")]  # fmt: skip
    records = converted("pope", *paths, images=images)
    assert [record["answers"] for record in records] == [["no"], ["yes"]] * 2
    assert len({record["id"] for record in records}) == 4 and records[2]["metadata"]["category"] == "popular"
    rows = table([{"image": encoded("red"), "id": "0", "question_id": "1", "question": "Is there a dog ?",
                   "answer": "no", "image_source": "COCO_val2014_000000310196", "category": "adversarial"},
                  ])  # fmt: skip
    (record,) = converted_records("pope", rows, split="adversarial")
    assert record["id"] == "pope-adversarial-1" and record["answers"] == ["no"]


INSTANCES = {
    "info": {}, "categories": [{"id": 1, "name": "wall", "supercategory": "x"}],
    "images": [{"id": 1, "file_name": NAMES[1][0], "width": 80, "height": 60}],
    # Reaches over the left edge by a fraction of a pixel, as published boxes do.
    "annotations": [{"id": 1719310, "image_id": 1, "category_id": 1, "bbox": [-0.4, 10.0, 30.0, 20.5], "iscrowd": 0}],
}  # fmt: skip
REFERENCE = {
    "ref_id": 0, "ann_id": 1719310, "image_id": 1, "category_id": 1, "split": "testA", "sent_ids": [0, 1],
    "file_name": "COCO_train2014_000000000001_0.jpg",
    "sentences": [{"tokens": ["the", "wall"], "raw": "THE wall", "sent_id": 0, "sent": "the wall"},
                  {"tokens": ["left"], "raw": "left", "sent_id": 1, "sent": "left"}],
}  # fmt: skip


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_references_as_published(tmp_path, images, name):
    references = tmp_path / "refs(unc).p"
    # Protocol 0, as Python 2 wrote them.
    references.write_bytes(pickle.dumps([REFERENCE, {**REFERENCE, "ref_id": 9, "split": "train"}], protocol=0))
    instances = published(tmp_path, "instances.json", INSTANCES)
    records = converted(name, references, instances, images=images, split="testA")
    assert [record["question"] for record in records] == ["the wall", "left"]
    assert records[0]["bbox"] == [0.0, 10.0, 29.6, 20.5] and records[0]["image"].endswith(NAMES[1][0])
    assert [record["id"] for record in records] == ["ref-0-0", "ref-0-1"]


def test_reference_tables_of_both_forms(tmp_path, images):
    # Corners in `bbox`, corner and size in the original annotation: only that is read.
    row = {**REFERENCE, "bbox": [0.0, 10.0, 29.6, 30.5], "raw_anns": json.dumps(INSTANCES["annotations"][0]),
           "raw_image_info": "{}", "image_path": f"coco/train2014/{NAMES[1][0]}", "raw_sentences": "[]"}  # fmt: skip
    records = list(converted_records("refcoco", [row], images=images))
    assert [record["bbox"] for record in records] == [[0.0, 10.0, 29.6, 20.5]] * 2
    rows = table([{"image": encoded("red"), "question_id": "0", "question": "box ?", "answer": ["wall", "the wall"],
                   "segmentation": [1.0], "bbox": [2.0, 3.0, 10.0, 9.0], "iscrowd": 0,
                   "file_name": "COCO_train2014_000000000001_0.jpg"}])  # fmt: skip
    records = list(converted_records("refcoco", rows))
    assert [record["question"] for record in records] == ["wall", "the wall"]
    assert records[0]["bbox"] == [2.0, 3.0, 10.0, 9.0]
    assert records[0]["metadata"]["image_id"] == "COCO_train2014_000000000001.jpg"


def test_corners_in_place_of_a_size_are_refused(images):
    row = {"answer": ["wall"], "bbox": [40.0, 30.0, 79.0, 59.0], "file_name": NAMES[1][0], "question_id": "0"}
    with pytest.raises(ValueError, match=r"reaches outside the 80×60 image: give \[x, y, w, h\] \(not two corners\)"):
        list(converted_records("refcoco", [row], images=images))


def test_a_pickle_that_would_run_code_is_not_read(tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Harm()]))
    with pytest.raises(ValueError, match="could run code: only plain data is read"):
        read_document(path)


def test_a_missing_image_ends_it_unless_it_may_be_left_out(tmp_path, images, caplog):
    (images / "train2014" / NAMES[2][0]).unlink()
    path = published(tmp_path, "captions_val2017.json", COCO)
    with pytest.raises(FileNotFoundError, match="holds no '000000000002.jpg'.*--skip-missing"):
        converted("coco-captions", path, images=images)
    caplog.set_level("INFO")
    assert len(converted("coco-captions", path, images=images, skip_missing=True)) == 1
    assert "1 records without their image were left out" in caplog.text
    with pytest.raises(ValueError, match="images is not given"):
        converted("coco-captions", path)


def test_converted_records_are_written_and_read_back(tmp_path, images):
    rows = table([{"image": encoded("green"), "question_id": "0", "answer": ["wall"], "bbox": [2.0, 3.0, 10.0, 9.0],
                   "file_name": "x.jpg"}])  # fmt: skip
    original = rows[0]["image"]["bytes"]
    assert write_task_records(converted_records("refcoco", rows), tmp_path / "out" / "ref.jsonl") == 1
    records = load_task_records(tmp_path / "out" / "ref.jsonl")
    assert isinstance(records, TaskRecords) and records[0]["image"].getpixel((3, 3)) == (0, 128, 0)
    (stored,) = (tmp_path / "out" / "ref_images").iterdir()
    assert stored.read_bytes() == original  # as it came, not encoded anew
