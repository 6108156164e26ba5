"""Damage is noticed, a former run is not lost by accident, and two runs do not share a folder: by the real commands."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from kill_and_resume import STAGES
from safetensors.torch import load_file

from poise import command_line
from poise.training.atomic_folders import MANIFEST, damage_of, seal
from poise.training.run_files import checkpoints, resumable_checkpoint
from poise.training.run_start import LOCK_FILE, output_lock
from poise.training.sft.checkpoints import load_trained

SHORT = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1",
         "--eval_strategy", "'no'", "--dataloader_num_workers", "0", "--disable_tqdm", "true",
         "--use_cpu", "true"]  # fmt: skip
MODEL = {"sft": "model", "align": "model", "tag-encoder": "tag_encoder", "preference": "model"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`finished(stage)`: the folder of a run of four steps, with checkpoints after two and four, and its command."""
    folder, made = tmp_path_factory.mktemp("finished"), {}

    def run(stage):
        if stage not in made:
            model = run("sft")[0] / "model" if stage == "preference" else None
            words = [str(model) if word == "{model}" else word for word in STAGES[stage]] + SHORT
            assert command_line.main([*words, "--output_dir", str(folder / stage)]) == 0
            made[stage] = (folder / stage, words)
        return made[stage]

    return run


@pytest.fixture
def interrupted(finished, tmp_path):
    """`interrupted(stage)`: a copy of that run without its model, as if it had died while that was written."""

    def copy(stage):
        folder, words = finished(stage)
        shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("model", "tag_encoder", "features"))
        return tmp_path / "run", [*words, "--output_dir", str(tmp_path / "run")]

    return copy


def flip(content, draw):
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


DAMAGES = {
    "flip": flip,
    "zero": lambda content, draw: bytes(len(content)),
    "zero a page": lambda content, draw: bytes(min(len(content), 512)) + content[512:],
    "cut": lambda content, draw: content[: draw.randrange(len(content))],
    "empty": lambda content, draw: b"",
    "longer": lambda content, draw: content + b"\0",
    "delete": None,
}  # fmt: skip


def damaged(path, kind, draw):
    """The file's content before; afterwards it is another one or gone."""
    before = path.read_bytes()
    if DAMAGES[kind] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[kind](before, draw))
    return before


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGES)
def test_no_file_of_a_checkpoint_can_be_damaged_unnoticed(interrupted, caplog, kind):
    folder, _ = interrupted("sft")
    draw = random.Random(f"files {kind}")
    newest = folder / "checkpoint-4"
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 30
    for path in files:
        before = damaged(path, kind, draw)
        if path.read_bytes() == before if path.exists() else False:
            continue
        name = path.relative_to(newest).as_posix()
        caplog.clear()
        assert resumable_checkpoint(folder, "poise sft").name == "checkpoint-2", name
        (line,) = [record.getMessage() for record in caplog.records]
        # A damaged list of the files says so itself, or names a file that is not as the list has it.
        assert "checkpoint-4 is damaged, " in line and "going on from checkpoint-2" in line and "\n" not in line
        assert name in line or name == MANIFEST
        with pytest.raises(ValueError, match=r"checkpoint-4' is damaged, .*: give the run's folder"):
            resumable_checkpoint(newest, "poise sft")
        path.write_bytes(before)
    assert resumable_checkpoint(folder, "poise sft").name == "checkpoint-4"


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_the_same(interrupted, finished, caplog, stage):
    folder, words = interrupted(stage)
    newest = folder / "checkpoint-4"
    name = random.Random(stage).choice(["scheduler.pt", "rng_state.pth", "optimizer.pt", "versions.json"])
    damaged(newest / name, "flip", random.Random(stage))
    caplog.set_level("INFO")
    assert command_line.main([*words, "--resume"]) == 0
    assert f"{newest} is damaged, the checksum of {name} is wrong; going on from checkpoint-2" in caplog.text
    assert "with other settings" not in caplog.text
    one, two = (run / MODEL[stage] for run in (finished(stage)[0], folder))
    weights = [{path.name: load_file(path) for path in sorted(run.rglob("*.safetensors"))} for run in (one, two)]
    assert weights[0].keys() == weights[1].keys() != set()
    for file, tensors in weights[0].items():
        assert all(torch.equal(tensor, weights[1][file][key]) for key, tensor in tensors.items())
    logs = [json.loads((run.parent / "checkpoint-4" / "trainer_state.json").read_text()) for run in (one, two)]
    losses = [[entry["loss"] for entry in log["log_history"] if "loss" in entry] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    # The mean over all four steps, not over the two that were made again.
    assert mean_loss(caplog.text) in (None, pytest.approx(sum(losses[0]) / 4, rel=1e-3))
    assert {path.name for path in folder.glob("*checkpoint-*")} == {
        "checkpoint-2", "checkpoint-4", "damaged-checkpoint-4",
    }  # fmt: skip
    assert damage_of(folder / "checkpoint-4") is None and not (folder / LOCK_FILE).exists()


def mean_loss(log):
    found = re.findall(r"^.*train_loss: (\S+)$", log, re.MULTILINE)
    return float(found[-1]) if found else None


def told(words, capsys):
    """The one line on stderr with which a command fails."""
    capsys.readouterr()
    assert command_line.main(words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert len(lines) == 1
    return lines[0]


def test_where_nothing_is_sound_the_damages_are_named_in_one_line(interrupted, capsys):
    folder, words = interrupted("sft")
    (folder / "checkpoint-4" / "rng_state.pth").unlink()
    (folder / "checkpoint-2" / MANIFEST).write_text('{"optimizer.pt": 3}')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    line = told([*words, "--resume"], capsys)
    assert "holds no sound checkpoint" in line and "rng_state.pth is missing" in line
    assert f"{MANIFEST} is unreadable" in line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_foreign_files_in_a_checkpoint_are_named(interrupted, caplog):
    folder, _ = interrupted("sft")
    (folder / "checkpoint-4" / "adapter_model.bin").write_bytes(b"of somebody else")
    assert resumable_checkpoint(folder, "poise sft").name == "checkpoint-4"
    assert "holds files that were not written with it: adapter_model.bin" in caplog.text


@pytest.mark.parametrize(
    ("place", "file"), [("model", "model.safetensors"), ("checkpoint-4", "adapter_model.safetensors")]
)
def test_damaged_weights_are_refused_wherever_they_are_loaded(finished, tmp_path, capsys, caplog, place, file):
    folder = tmp_path / "run"
    shutil.copytree(finished("sft")[0], folder)
    chosen, out = str(folder / place), str(tmp_path / "out")
    text = (folder / place / "processor_config.json").read_text()
    (folder / place / "processor_config.json").write_text(text + "\n")  # people edit these
    load_trained(chosen)
    (line,) = [record.getMessage() for record in caplog.records if "not as it was written" in record.getMessage()]
    assert "processor_config.json has" in line
    damaged(folder / place / file, "flip", random.Random(place))
    for words in (
        ["merge", chosen, out],
        ["publish", chosen, "--repo", "user/name", "--dry-run", "--output", out],
        ["evaluate", chosen, "--data", "scenes:test,size=2", "--output", out],
        ["robustness", chosen, "--data", "scenes:test,size=2", "--output", out],
    ):
        assert f"{place}' is damaged, the checksum of {file} is wrong: take another" in told(words, capsys)
    assert not (tmp_path / "out").exists()
    (folder / place / MANIFEST).unlink()
    load_trained(chosen)  # of another tool, or published: nothing to compare with


def test_a_card_leaves_a_run_sound(interrupted, caplog):
    folder, _ = interrupted("sft")
    recipe = (folder / "checkpoint-4" / "recipe.yaml").read_bytes()
    assert command_line.main(["card", str(folder), "--license", "mit"]) == 0
    assert "license: mit" in (folder / "checkpoint-4" / "README.md").read_text()
    assert (folder / "checkpoint-4" / "recipe.yaml").read_bytes() == recipe
    assert resumable_checkpoint(folder, "poise sft").name == "checkpoint-4"
    load_trained(folder / "checkpoint-4")
    assert not [record for record in caplog.records if "written" in record.getMessage()]


# ---- former runs -----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_neither_overwritten_nor_gone_on_with_by_accident(finished, tmp_path, capsys, caplog):
    original, words = finished("tag-encoder")
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    words = [*words, "--output_dir", str(folder)]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    line = told(words, capsys)
    assert "holds a finished run (tag_encoder): name another folder with --output_dir" in line and "--overwrite" in line
    assert "is a finished run (tag_encoder)" in told([*words, "--resume"], capsys)
    # Neither from another run's checkpoint, nor from one whose successors would be lost.
    assert "holds another run (tag_encoder, checkpoint-2" in told([*words, "--resume", str(original)], capsys)
    shutil.rmtree(folder / "tag_encoder")
    assert "holds a run that was not finished (checkpoint-4): go on with --resume" in told(words, capsys)
    older = [*words, "--resume", str(folder / "checkpoint-2")]
    assert "has newer checkpoints (checkpoint-4)" in told(older, capsys)
    # Bad input loses nothing, whatever is to be given up.
    assert "no such" in told([*words, "--overwrite", "--data", "nowhere.jsonl"], capsys).lower()
    now = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert now == {path: time for path, time in before.items() if path.exists()}
    # By word, the former run goes, all of it.
    assert command_line.main([*words, "--overwrite", "--max_steps", "3", "--save_steps", "3"]) == 0
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-3"] and (folder / "tag_encoder").is_dir()


def test_going_on_from_elsewhere_asks_where_to(finished, tmp_path, capsys, monkeypatch):
    folder, words = finished("tag-encoder")
    monkeypatch.chdir(tmp_path)
    line = told([*words, "--resume", str(folder)], capsys)
    assert "is not of the run in training.output_dir='outputs/tag_encoder_scenes'" in line
    assert f"add --output_dir {folder}" in line
    line = told([*words, "--resume", str(folder / "checkpoint-2")], capsys)
    assert f"add --output_dir {folder} to go on there" in line
    assert not (tmp_path / "outputs").exists()
    # With a folder named, the run goes on there, and the one it came from stays.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert command_line.main([*words, "--resume", str(folder / "checkpoint-2"), "--output_dir", "branch"]) == 0
    assert [path.name for path in checkpoints("branch")] == ["checkpoint-4"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# ---- two runs in one folder ------------------------------------------------------------------------------------------


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


def test_a_second_run_ends_in_one_line_and_a_killed_one_frees_the_folder(finished, tmp_path, capsys, caplog):
    _, words = finished("tag-encoder")
    folder = tmp_path / "run"
    words = [*words, "--output_dir", str(folder)]
    endless = [*words, "--max_steps", "1000000", "--save_steps", "1000000"]
    first = subprocess.Popen([sys.executable, "-m", "poise", *endless], stdout=subprocess.DEVNULL)
    try:
        wait_for((folder / LOCK_FILE).exists, first)
        line = told(words, capsys)
        assert f"is in use by process {first.pid} on " in line and " since 20" in line and f"delete {folder}" in line
    finally:
        first.kill()
        first.wait()
    assert (folder / LOCK_FILE).exists()
    caplog.set_level("INFO")
    assert command_line.main(words) == 0
    assert f"was left by process {first.pid} on " in caplog.text and "taken over" in caplog.text
    assert not (folder / LOCK_FILE).exists()


HOLDER = """
import signal, sys, time
from pathlib import Path
from poise.command_line import main
from poise.training.run_start import output_lock

# Whoever is started in the background of a shell ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Module:
    @staticmethod
    def main(arguments):
        with output_lock(Path(arguments[0])):
            print("held", flush=True)
            {then}

sys.modules["holder"] = Module
from poise import command_line
sys.exit(command_line.run(command_line.Command("holder", "", "", "holder"), sys.argv[1:], debug=False))
"""


@pytest.mark.parametrize(
    ("then", "number", "message"),
    [
        ("time.sleep(60)", signal.SIGTERM, "poise holder: stopped by SIGTERM"),
        ("time.sleep(60)", signal.SIGINT, "poise holder: interrupted"),
        ("raise OSError('the disk is gone')", None, "poise holder: the disk is gone"),
        ("sys.exit(3)", None, ""),
    ],
    ids=["terminated", "interrupted", "failed", "left"],
)
def test_the_lock_is_released_however_a_run_ends(tmp_path, then, number, message):
    command = [sys.executable, "-c", HOLDER.format(then=then), str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    if number is not None:
        process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert error.strip() == message and process.returncode in (1, 3)
    assert not (tmp_path / "run").exists()  # it was made for the run, and nothing was written


def test_a_lock_of_another_machine_is_not_taken_and_one_of_this_process_is_seen(tmp_path):
    (tmp_path / LOCK_FILE).write_text("4711\nanother-machine\n")
    with pytest.raises(ValueError, match=r"in use by process 4711 on another-machine since .*, delete"):
        with output_lock(tmp_path):
            raise AssertionError("it was taken")
    (tmp_path / LOCK_FILE).unlink()
    with output_lock(tmp_path):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "), output_lock(tmp_path):
            raise AssertionError("it was taken twice")
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_sealed_folder_may_move_and_a_resealed_one_is_new(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    seal(folder)
    folder = folder.rename(tmp_path / "checkpoint-2")
    assert damage_of(folder) is None
    (folder / "a").write_bytes(b"two")
    assert damage_of(folder) == "the checksum of a is wrong" and damage_of(folder, read=False) is None
    seal(folder)
    assert damage_of(folder) is None
