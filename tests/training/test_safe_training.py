"""A checkpoint is complete or invisible; a full disk, Ctrl-C and rotation lose nothing."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Subset
from transformers import Trainer, TrainerCallback, TrainingArguments

from poise.processing.records.record_data import RecordMixture
from poise.processing.records.task_record_files import TaskRecords
from poise.processing.scenes.scenes import Scenes
from poise.training import atomic_folders
from poise.training.atomic_folders import ASIDE, MANIFEST, DiskFull, clear_aside, move_into_place, room_for, seal
from poise.training.preference.pairs import ScenePairs
from poise.training.run_files import (
    SETTINGS_FILE,
    VERSIONS_FILE,
    complete_checkpoints,
    contents_of,
    resumable_checkpoint,
    versions,
    warn_of_other_versions,
)
from poise.training.stage_trainer import Interrupted, StageTraining, rotate, shown


class Line(torch.nn.Module):
    """The smallest thing that a Trainer trains."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x, labels=None):
        loss = (self.linear(x)[:, 0] - labels).square().mean()
        return {"loss": loss}


class SafeTrainer(StageTraining, Trainer):
    pass


def data(count=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return [{"x": row, "labels": row.sum()} for row in x]


def trainer_of(folder, callbacks=(), **overrides):
    settings = {"output_dir": str(folder), "max_steps": 6, "save_steps": 2, "save_strategy": "steps", "use_cpu": True,
                "per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True,
                "logging_steps": 1}  # fmt: skip
    args = TrainingArguments(**{**settings, **overrides})
    return SafeTrainer(model=Line(), args=args, train_dataset=data(), eval_dataset=data(8), callbacks=list(callbacks))


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def test_checkpoints_are_sealed_and_nothing_is_left_aside(tmp_path):
    trainer_of(tmp_path).train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    manifest = json.loads((tmp_path / "checkpoint-4" / MANIFEST).read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(manifest)
    assert json.loads((tmp_path / "checkpoint-4" / VERSIONS_FILE).read_text()) == versions()


def test_while_it_is_written_a_checkpoint_is_invisible(tmp_path, monkeypatch):
    seen = []
    original = SafeTrainer._save_rng_state

    def look(self, output_dir):
        seen.append((Path(output_dir).parent.name, [path.name for path in complete_checkpoints(tmp_path)]))
        original(self, output_dir)

    monkeypatch.setattr(SafeTrainer, "_save_rng_state", look)
    trainer_of(tmp_path).train()
    assert seen == [(ASIDE, []), (ASIDE, ["checkpoint-2"]), (ASIDE, ["checkpoint-2", "checkpoint-4"])]


@pytest.mark.parametrize("damage", ["cut", "delete"])
def test_a_torn_checkpoint_is_not_taken(tmp_path, damage):
    trainer_of(tmp_path).train()
    victim = tmp_path / "checkpoint-6" / "optimizer.pt"
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        victim.unlink()
    assert complete_checkpoints(tmp_path)[-1].name == "checkpoint-4"
    assert resumable_checkpoint(tmp_path, "poise sft").name == "checkpoint-4"
    with pytest.raises(ValueError, match=r"damaged, optimizer\.pt (is missing|has \d+ bytes in place of \d+)"):
        resumable_checkpoint(tmp_path / "checkpoint-6", "poise sft")


def test_rotation_keeps_the_best_and_the_newest(tmp_path):
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.2, 0.1])
    trainer = trainer_of(
        tmp_path, max_steps=12, eval_steps=2, eval_strategy="steps", save_total_limit=2,
        metric_for_best_model="eval_score", greater_is_better=True,
    )  # fmt: skip
    evaluate = trainer.evaluation_loop

    def scored(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        output.metrics["eval_score"] = next(scores)
        return output

    trainer.evaluation_loop = scored
    trainer.train()
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-4")
    # Also when the run goes on from another place, where the path that the state remembers means nothing.
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.move(tmp_path, moved)
    scores = iter([0.1] * 4)
    again = trainer_of(
        moved, max_steps=16, eval_steps=2, eval_strategy="steps", save_total_limit=2,
        metric_for_best_model="eval_score", greater_is_better=True,
    )  # fmt: skip
    evaluate = again.evaluation_loop
    again.evaluation_loop = scored
    again.train(resume_from_checkpoint=str(moved / "checkpoint-12"))
    assert names(moved) == ["checkpoint-16", "checkpoint-4"]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [(None, None, [1, 2, 3, 4]), (2, None, [3, 4]), (1, None, [4]), (1, 2, [2, 4]), (3, 1, [1, 3, 4]),
     (9, 1, [1, 2, 3, 4])],
)  # fmt: skip
def test_rotation_by_number(tmp_path, limit, best, kept):
    for step in range(1, 5):
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal(tmp_path / f"checkpoint-{step}")
    rotate(tmp_path, limit, best)
    assert [int(path.name.split("-")[1]) for path in complete_checkpoints(tmp_path)] == kept


def test_a_folder_that_died_between_going_and_coming_is_put_back(tmp_path, monkeypatch):
    folder, written = tmp_path / "checkpoint-2", tmp_path / ASIDE / "checkpoint-2"
    for path, word in ((folder, "old"), (written, "new")):
        path.mkdir(parents=True)
        (path / "trainer_state.json").write_text(word)
    seal(written)
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (_ for _ in ()).throw(SystemExit) if self == written else rename(self, to)
    )
    with pytest.raises(SystemExit):
        move_into_place(written, folder)
    monkeypatch.undo()
    assert not folder.exists()
    clear_aside(tmp_path)
    assert (folder / "trainer_state.json").read_text() == "old" and names(tmp_path) == ["checkpoint-2"]
    # And where nothing dies, the new one takes the place.
    written.mkdir(parents=True)
    (written / "trainer_state.json").write_text("new")
    move_into_place(written, folder)
    assert (folder / "trainer_state.json").read_text() == "new"


def test_a_run_that_is_done_makes_no_further_step(tmp_path):
    trainer_of(tmp_path, max_steps=5, save_steps=5).train()
    again = trainer_of(tmp_path, max_steps=5, save_steps=5)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again.state.global_step == 5 and names(tmp_path) == ["checkpoint-5"]


# ---- what a resumed run has otherwise, and what it reports -----------------------------------------------------------


def logged(folder, step):
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("logging_steps", [1, 4])
def test_losses_of_a_resumed_run_are_those_of_the_whole_run(tmp_path, logging_steps):
    """Also where a checkpoint was saved between two logs."""
    settings = {"max_steps": 8, "save_steps": 2, "logging_steps": logging_steps}
    whole = trainer_of(tmp_path / "whole", **settings).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-8")
    again = trainer_of(tmp_path / "again", **settings)
    result = again.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-6"))
    losses = [[row["loss"] for row in logged(tmp_path / run, 8) if "loss" in row] for run in ("whole", "again")]
    assert losses[0] == losses[1] and len(losses[0]) == 8 // logging_steps
    assert result.training_loss == result.metrics["train_loss"] == pytest.approx(sum(losses[0]) / len(losses[0]))
    assert result.training_loss == whole.training_loss
    (told,) = [row["train_loss"] for row in again.state.log_history if "train_loss" in row]
    assert told == whole.training_loss
    # A run that has nothing left to do reports the same.
    done = trainer_of(tmp_path / "again", **settings)
    assert done.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-8")).training_loss == told


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 7}, r"seed 42 → 7 \(other samples follow"),
        ({"per_device_train_batch_size": 4}, r"per_device_train_batch_size 2 → 4 \(other samples follow"),
        ({"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps 1 → 2 \(other samples follow"),
        ({"max_steps": 9}, r"max_steps 6 → 9 \(the learning rate follows another curve"),
        ({"weight_decay": 0.5}, r"weight_decay 0.0 → 0.5 \(in force from the next step"),
        ({"learning_rate": 1e-3}, r"learning_rate 5e-05 → 0.001 \(in force from the next step"),
        ({"logging_steps": 2, "save_total_limit": 9}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_named_with_what_they_mean(tmp_path, caplog, change, line):
    trainer_of(tmp_path).train()
    again = trainer_of(tmp_path, **change)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    lines = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert len(lines) == (line is not None)
    assert line is None or re.search(line, lines[0]) and "\n" not in lines[0] and lines[0].count("→") == 1
    group, _ = again.optimizer.param_groups  # the weight, and the bias, which never decays
    assert group["weight_decay"] == change.get("weight_decay", 0.0)
    assert group["initial_lr"] == change.get("learning_rate", 5e-5)
    if "learning_rate" in change:
        rates = [row["learning_rate"] for row in again.state.log_history if "learning_rate" in row]
        assert rates[3] < 5e-5 < rates[4] < 1e-3  # a linear decay of the new rate


def test_other_data_is_named_whatever_it_is_made_of(tmp_path, caplog):
    def fit(records, checkpoint=None):
        trainer = trainer_of(tmp_path)
        trainer.train_dataset = records
        trainer.train(resume_from_checkpoint=checkpoint)
        return [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]

    fit(data())
    checkpoint = str(tmp_path / "checkpoint-4")
    assert fit(data(), checkpoint) == []
    (line,) = fit(data()[::-1], checkpoint)
    assert "other records or another order of them (other samples follow" in line and "data.records" not in line
    caplog.clear()
    fit(data(), None)
    changed = data()
    changed[17]["x"][2] += 1e-3
    assert len(fit(changed, checkpoint)) == 1
    caplog.clear()
    fit(data(), None)
    assert "data.records 32 → 31" in fit(data()[:-1], checkpoint)[0]


def test_contents_tell_data_sets_apart_without_their_images():
    def records(answer="red"):
        rows = [{"image": None, "task": "vqa", "question": f"what is {n} ?", "answers": [answer]} for n in range(5)]
        return TaskRecords([*rows, {**rows[0], "id": "last"}], "file.jsonl")

    kinds = [
        records(), records("blue"), Scenes("train", size=5), Scenes("train", size=5, seed=1), Scenes("train", size=6),
        Subset(records(), [0, 1]), Subset(records(), [1, 0]), RecordMixture([records(), Scenes("train", size=5)]),
        RecordMixture([records(), Scenes("train", size=5)], seed=1), ScenePairs(Scenes("train", size=40), seed=1),
        ScenePairs(Scenes("train", size=40), seed=2),
    ]  # fmt: skip
    found = [contents_of(kind) for kind in kinds]
    assert None not in found and len(set(found)) == len(found)
    assert contents_of(records()) == found[0] and contents_of(Subset(records(), [1, 0])) == found[6]


def test_a_password_in_an_address_enters_no_checkpoint(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.recipe = SimpleNamespace(
        data={"train": "https://user:secret@host/data.jsonl"}, learning_rates=None, save=lambda path: None
    )
    trainer.train()
    text = (tmp_path / "checkpoint-2" / SETTINGS_FILE).read_text()
    assert "secret" not in text and "https://host/data.jsonl" in text


def test_a_terminal_shows_losses_rates_and_the_metric_asked_for():
    logs = {"loss": 1.0, "grad_norm": 2.0, "learning_rate": 3e-4, "learning_rate/adapters": 1e-4, "epoch": 1.0}
    args = SimpleNamespace(metric_for_best_model=None)
    assert list(shown(args, logs)) == ["loss", "grad_norm", "learning_rate/adapters", "epoch"]
    many = {f"eval_score_{number}": 0.5 for number in range(60)}
    logs = {"eval_loss": 1.0, **many, "eval_score_1_low": 0.4, "eval_runtime": 3.0, "epoch": 1.0}
    assert list(shown(args, logs)) == ["eval_loss", *list(many)[:4], "epoch"]
    args.metric_for_best_model = "score_17"
    assert list(shown(args, logs)) == ["eval_loss", "eval_score_17", "epoch"]


def test_what_is_printed_is_short_and_what_is_kept_is_whole(tmp_path, capsys):
    trainer = trainer_of(tmp_path, max_steps=2, eval_steps=2, eval_strategy="steps")
    evaluate = trainer.evaluation_loop

    def scored(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        output.metrics.update({f"eval_score_{number}": 0.5 for number in range(60)})
        return output

    trainer.evaluation_loop = scored
    trainer.train()
    printed = capsys.readouterr().out
    assert "eval_score_3" in printed and "eval_score_4'" not in printed and "'loss'" in printed
    assert any("eval_score_59" in row for row in trainer.state.log_history)


# ---- a full disk -----------------------------------------------------------------------------------------------------


def writer_that_fails(error):
    def write(self, output_dir):
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
    ids=["full", "quota", "torch", "torch at its last write"],
)
def test_a_disk_that_fills_up_leaves_the_former_checkpoint(tmp_path, monkeypatch, error):
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.train()
    before = (tmp_path / "checkpoint-2" / "optimizer.pt").read_bytes()
    monkeypatch.setattr(SafeTrainer, "_save_rng_state", writer_that_fails(error))
    with pytest.raises(DiskFull) as caught:
        trainer_of(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    message = str(caught.value)
    assert "checkpoint-4 could not be saved" in message and "checkpoint-2 is untouched" in message
    assert "--resume" in message and "\n" not in message
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").read_bytes() == before
    monkeypatch.undo()
    trainer_of(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert complete_checkpoints(tmp_path)[-1].name == "checkpoint-4"


def test_too_little_room_is_noticed_before_writing_and_the_lack_is_named(tmp_path, monkeypatch):
    trainer_of(tmp_path, max_steps=2).train()
    size = atomic_folders.size_of(tmp_path / "checkpoint-2")
    monkeypatch.setattr(atomic_folders, "_free", lambda folder: size - 5000)
    monkeypatch.setattr(SafeTrainer, "_save_rng_state", writer_that_fails(AssertionError("it was written")))
    with pytest.raises(DiskFull, match=r"5 kB are missing; checkpoint-2 is untouched"):
        trainer_of(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_other_failures_are_not_called_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(SafeTrainer, "_save_rng_state", writer_that_fails(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer_of(tmp_path, max_steps=2).train()


def test_a_limit_on_file_sizes_stops_real_writes(tmp_path):
    """The system itself refuses to write on: in a process of its own, whose limit ends with it."""
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=_write_beyond_the_limit, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    lines = (tmp_path / "messages.txt").read_text().splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "could not be saved, the disk is full" in line and "stopped it; nothing is lost" in line
    assert not (tmp_path / ASIDE / "big").exists()


def _write_beyond_the_limit(folder):
    import resource

    from safetensors.torch import save_file

    tensor = torch.ones(200_000)
    writers = {
        "python": lambda path: (path / "x").write_bytes(bytes(800_000)),
        "torch": lambda path: torch.save(tensor, path / "x"),
        "safetensors": lambda path: save_file({"x": tensor}, path / "x"),
    }
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    messages = []
    for write in writers.values():
        target = folder / ASIDE / "big"
        try:
            with room_for(target, 0, "nothing is lost"):
                target.mkdir(parents=True)
                write(target)
        except DiskFull as error:
            messages.append(str(error))
    (folder / "messages.txt").write_text("\n".join(messages))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB; only the superuser may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("mounting a small file system needs the superuser")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    trainer_of(small_disk, max_steps=2).train()
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other.bin").write_bytes(bytes(free - 8192))
    with pytest.raises(DiskFull, match=r"[0-9]+ kB are missing; checkpoint-2 is untouched"):
        trainer_of(small_disk, max_steps=4).train(resume_from_checkpoint=str(small_disk / "checkpoint-2"))
    # And where nobody can tell beforehand how much it will be.
    target = small_disk / ASIDE / "big"
    with pytest.raises(DiskFull, match="kB are missing"), room_for(target, 0, "nothing is lost"):
        target.mkdir(parents=True)
        torch.save(torch.ones(200_000), target / "x")
    assert [path.name for path in complete_checkpoints(small_disk)] == ["checkpoint-2"]
    (small_disk / "other.bin").unlink()
    trainer_of(small_disk, max_steps=4).train(resume_from_checkpoint=str(small_disk / "checkpoint-2"))
    assert complete_checkpoints(small_disk)[-1].name == "checkpoint-4"


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_says_how_to_go_on(tmp_path, number):
    former = signal.getsignal(number)
    stop = At(3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=r"saved .*checkpoint-[34]\. Go on with the same command and --resume"):
        trainer_of(tmp_path / "stopped", [stop], save_steps=50).train()
    assert signal.getsignal(number) == former
    trainer_of(tmp_path / "whole", save_steps=50).train()
    newest = complete_checkpoints(tmp_path / "stopped")[-1]
    again = trainer_of(tmp_path / "stopped", save_steps=50)
    again.train(resume_from_checkpoint=str(newest))
    for name in ("model.safetensors", "scheduler.pt"):
        parts = [tmp_path / run / "checkpoint-6" / name for run in ("stopped", "whole")]
        assert parts[0].read_bytes() == parts[1].read_bytes()


def test_a_second_wish_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("poise.training.stage_trainer.PATIENCE", -1.0)

    class Twice(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(100_000))  # let the interpreter see the signals

    with pytest.raises(KeyboardInterrupt) as caught:
        trainer_of(tmp_path, [Twice()], save_steps=50).train()
    assert not isinstance(caught.value, Interrupted)
    assert complete_checkpoints(tmp_path) == []


# ---- versions --------------------------------------------------------------------------------------------------------


def test_other_versions_are_told_in_one_line(tmp_path, caplog):
    assert warn_of_other_versions(tmp_path) is None
    (tmp_path / VERSIONS_FILE).write_text(json.dumps({**versions(), "torch": "1.0", "peft": "0.1"}))
    line = warn_of_other_versions(tmp_path)
    assert "torch 1.0 → " in line and "peft 0.1 → " in line and "transformers" not in line
    assert [record.getMessage() for record in caplog.records] == [line] and "\n" not in line
    (tmp_path / VERSIONS_FILE).write_text(json.dumps(versions()))
    assert warn_of_other_versions(tmp_path) is None
