import json

import pytest
from PIL import Image

from poise.processing.records.photo_annotations import (
    convert_photo_annotations,
    main,
    records_from_annotations,
    simulated_tags,
)
from poise.processing.records.task_record import TaskRecordError
from poise.processing.records.task_record_files import load_task_records

ROWS = {
    "captions": [{"image": f"{n}.jpg", "captions": ["a dog", "the dog"], "source": "someone"} for n in range(10)],
    "vqa": [{"image": "0.jpg", "question": "what ?", "answers": ["dog"], "source": "okvqa"}],
    # Over the edge by a fraction of a pixel, as published boxes are.
    "refexp_derived": [{"image": "1.jpg", "expression": "the dog", "bbox": [-0.2, 5, 80.5, 55.3]}],
    "tags": [{"image": "0.jpg", "labels": ["dog"]}, {"image": "1.jpg", "labels": ["cat", "ball"]}],
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "published"
    (folder / "images").mkdir(parents=True)
    for number in range(10):
        Image.new("RGB", (80, 60)).save(folder / "images" / f"{number}.jpg")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def test_every_kind_becomes_records(folder):
    records = {record["id"]: record for record in records_from_annotations(folder)}
    assert len(records) == 12
    assert records["captions-0"]["captions"] == ["a dog", "the dog"]
    assert records["vqa-0"]["metadata"] == {
        "source": "okvqa", "image_id": "0.jpg", "annotation": "vqa.jsonl line 1", "tag_scores": "simulated",
    }  # fmt: skip
    assert records["refexp_derived-0"]["bbox"] == [0.0, 5, 80, 55]
    assert "tags" not in records["captions-5"]  # not searched for all categories: nothing is claimed
    assert "dog" in [name for name, _ in records["vqa-0"]["tags"]]


def test_the_files_load_and_keep_photos_apart(folder, tmp_path):
    counts = convert_photo_annotations(folder, tmp_path / "out", validation_share=0.3, seed=1)
    parts = {name: load_task_records(tmp_path / "out" / f"{name}.jsonl") for name in counts}
    assert {name: len(part) for name, part in parts.items()} == counts and sum(counts.values()) == 12
    photos = {name: {record["image"] for record in part.records} for name, part in parts.items()}
    assert len(photos["validation"]) == 3 and not photos["train"] & photos["validation"]
    assert parts["train"][0]["image"].size == (80, 60)
    assert not list((tmp_path / "out").rglob("*.jpg"))
    first = (tmp_path / "out" / "train.jsonl").read_text()
    convert_photo_annotations(folder, tmp_path / "out", validation_share=0.3, seed=1)
    assert (tmp_path / "out" / "train.jsonl").read_text() == first


def test_simulated_scores_tell_true_tags_from_invented_ones_mostly():
    vocabulary = [f"thing {number}" for number in range(80)]
    true, invented = [], []
    for number in range(300):
        for name, score in simulated_tags(vocabulary[:3], vocabulary, str(number)):
            (true if name in vocabulary[:3] else invented).append(score)
    assert len(true) == 900 and 350 < len(invented) < 550
    assert sum(true) / len(true) == pytest.approx(0.8, abs=0.02)
    assert sum(invented) / len(invented) == pytest.approx(0.25, abs=0.02)
    assert simulated_tags(["a"], vocabulary, "x") == simulated_tags(["a"], vocabulary, "x")


def test_the_command(folder, tmp_path, capsys):
    main([str(folder), str(tmp_path / "out"), "--tasks", "caption", "vqa", "--validation-share", "0"])
    assert capsys.readouterr().out == f"11 records in {tmp_path / 'out' / 'train'}.jsonl\n"


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no sub-folder images"):
        records_from_annotations(tmp_path)
    with pytest.raises(ValueError, match="tasks holds 'captions'"):
        records_from_annotations(folder, tasks=["captions"])
    (folder / "vqa.jsonl").write_text('{"image": "0.jpg", "question": "what ?"}')
    with pytest.raises(TaskRecordError, match="vqa.jsonl line 1, field 'answers'"):
        records_from_annotations(folder)
    (folder / "vqa.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="holds none of vqa.jsonl"):
        records_from_annotations(folder, tasks=["vqa"])
    with pytest.raises(ValueError, match="validation_share=1.0"):
        convert_photo_annotations(folder, tmp_path / "out", validation_share=1.0)


def test_real_photos(shared_folder, tmp_path):
    counts = convert_photo_annotations(shared_folder / "data", tmp_path)
    for name, count in counts.items():
        records = load_task_records(tmp_path / f"{name}.jsonl")
        assert len(records) == count > 20
        assert {record["task"] for record in records.records} == {"caption", "vqa", "grounding"}
    assert records[0]["image"].mode == "RGB"


def test_what_the_metrics_of_questions_read_reaches_the_metadata(folder):
    from poise.evaluation.generation_evaluator import GenerationEvaluator

    scored = {"image": "2.jpg", "question": "which ?", "answers": ["rack", "shelf"], "source": "okvqa"}
    scored["answer_scores"] = {"rack": 1, "shelf": 0.667}
    chosen = {"image": "2.jpg", "question": "who ?", "answers": ["a dog"] * 10, "source": "aokvqa", "question_id": "q7"}
    chosen.update(choices=["a cat", "a dog"], correct_choice_idx=1)
    (folder / "vqa.jsonl").write_text(json.dumps(scored) + "\n" + json.dumps(chosen))
    soft, choice = records_from_annotations(folder, tasks=["vqa"])
    row = GenerationEvaluator(task="vqa").row(soft)
    assert row["answer_scores"] == {"rack": 1, "shelf": 0.667} and row["group"] == "2.jpg"
    row = GenerationEvaluator(task="multiple_choice").row(choice)
    assert (row["choices"], row["correct_choice_idx"], row["group"]) == (["a cat", "a dog"], 1, "2.jpg")
    assert choice["metadata"]["question_id"] == "q7"
    assert GenerationEvaluator(task="multiple_choice").row(soft) is None
