"""Training on mixtures, streams and packed rows: lengths, padding, and runs that go on where they stopped."""

import json
import shutil

import pytest
from torch.utils.data import Subset

from poise.processing import TrainingCollator, write_task_records
from poise.processing.records.record_data import ChosenRecords, RecordMixture
from poise.processing.records.task_record_files import load_task_records
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.assembly import processor_of
from poise.training.sft.packing import row_lengths
from poise.training.sft.recipe import load_recipe
from poise.training.sft.stage import run_sft
from poise.training.sft.trainer import PaddingShare

SMALL = {
    "data.scenes": {"size": 48}, "data.evaluation": None, "per_device_train_batch_size": 4, "logging_steps": 1,
    "model.soft_prompt_length": 2, "model.align_words": False, "model.align_pictures": 0, "max_steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def processor():
    return processor_of(load_recipe("demo", SMALL))


def test_lengths_are_those_of_the_rows(processor, tmp_path):
    scenes = Scenes("train", size=12, seed=3)
    write_task_records([{**scenes[n], "id": str(n)} for n in range(12)], tmp_path / "train.jsonl")
    collate = TrainingCollator(processor)
    stored = load_task_records(tmp_path / "train.jsonl")
    parts = (Subset(scenes, [3, 7, 1, 5]), ChosenRecords(stored, [6, 2, 9, 0, 3]))
    for records in (scenes, stored, RecordMixture([scenes, stored]), *parts):
        true = [int(collate([record])["attention_mask"].sum()) for record in records]
        assert row_lengths(records, collate) == true and len(set(true)) > 2
    lines = [{**json.loads(line), "length": n} for n, line in enumerate(open(tmp_path / "train.jsonl"))]
    (tmp_path / "with.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert row_lengths(load_task_records(tmp_path / "with.jsonl"), collate) == list(range(12))


def test_padding_is_counted(processor):
    records = Scenes("train", size=6, seed=3).__getitems__(range(6))
    batch = TrainingCollator(processor)(records)
    share = PaddingShare()
    share.add(batch)
    share.add(batch)
    assert share.take() == pytest.approx(1 - float(batch["attention_mask"].float().mean()), abs=1e-4)
    assert share.take() is None


def losses(folder):
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    return {row["step"]: (row["loss"], row.get("padding")) for row in json.loads(states[-1].read_text())["log_history"]
            if "loss" in row}  # fmt: skip


def trained(folder, resume=None, overwrite=False, **overrides):
    run_sft(load_recipe("demo", {**SMALL, "output_dir": str(folder), "save_strategy": "steps", "save_steps": 2,
                                 "save_total_limit": 9, **overrides}), resume, overwrite=overwrite)  # fmt: skip
    return losses(folder)


@pytest.mark.slow
def test_a_stream_resumes_to_the_bit(tmp_path):
    streaming = {"data.streaming": True, "data.shuffle_buffer": 16}
    whole = trained(tmp_path / "run", **streaming)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert trained(tmp_path / "run", resume="", overwrite=True, **streaming) == whole and len(whole) == 4


@pytest.mark.slow
def test_packed_training_has_the_losses_of_unpacked_training_and_less_padding(tmp_path):
    no_dropout = {"model.router_type": "gate", "lora.dropout": 0.0}
    padded = trained(tmp_path / "padded", **no_dropout)
    packed = trained(tmp_path / "packed", **no_dropout, **{"data.packing": 128})
    grouped = trained(tmp_path / "grouped", **no_dropout, train_sampling_strategy="group_by_length")
    assert [loss for loss, _ in packed.values()] == pytest.approx([loss for loss, _ in padded.values()], rel=1e-3)
    assert sum(share for _, share in grouped.values()) < sum(share for _, share in padded.values())
