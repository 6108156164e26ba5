"""Full disks, folders that cannot be written, SIGTERM: one line that names the file, nothing half-written."""

import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from poise import command_line
from poise.processing.processing_poise import PoiseProcessor

MEASURED = ["--data", "scenes:test,size=2,tasks=vqa", "--max-new-tokens", "2", "--batch-size", "2"]
# Command, its words with {model} and {out}, and what must stand there after a fault: {} is nothing at all.
COMMANDS = {
    "merge": ["{run}", "{out}"],
    "publish": ["{run}", "--repo", "user/name", "--dry-run", "--output", "{out}"],
    "space": ["{out}", "--model", "{model}"],
    "evaluate": ["{model}", *MEASURED, "--output", "{out}"],
    "robustness": ["{model}", *MEASURED, "--degradations", "blank", "--severities", "1", "--resamples", "0",
                   "--output", "{out}"],
    "diagnose": ["{model}", *MEASURED, "--only", "attention", "--output", "{out}"],
    "data": ["convert", "photos", "{photos}", "--output", "{out}"],
    "tag": ["{photos}", "--tagger", "{tagger}", "--output", "{out}.jsonl", "--threshold", "0"],
    "curate": ["--data", "scenes:test,size=9", "--concepts", "scenes", "--text", "tiny:tag_encoder",
               "--output", "{out}"],
    "rank-encoders": ["--text", "tiny:tag_encoder", "--data", "scenes:test,size=9", "--samples", "8",
                      "--batch-size", "4", "--output", "{out}"],
    "look": ["{model}", "{photos}/images/dog.png", "what ?", "--max-new-tokens", "2", "--cells", "4",
             "--output", "{out}/look.html"],
    "fit-router": ["{model}", "--data", "scenes:test,size=384", "--check", "0", "--output", "{out}"],
    "interpret": ["{model}", "--data", "scenes:test,size=9", "--only", "lens", "--samples", "2", "--pictures", "1",
                  "--output", "{out}"],
    "interpret concepts": ["{model}", "--data", "scenes:test,size=9", "--only", "concepts", "--samples", "2",
                           "--concepts", "2", "--output", "{out}"],
}  # fmt: skip
WHOLE = {"predictions.jsonl", "run.json"}  # which a measurement goes on from, and which may end before they are long


@pytest.fixture(scope="module")
def run(tmp_path_factory, models_by_language):
    """A run's folder that holds its finished model alone; and an annotated photo."""
    import json

    from PIL import Image

    folder = tmp_path_factory.mktemp("run")
    model, processor = models_by_language["llama"]
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    (folder / "photos" / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "photos" / "images" / "dog.png")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {0: "dog", 1: "cat"}
    ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=16, id2label=names)).save_pretrained(
        folder / "tagger"
    )
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "tagger")
    rows = [{"image": "dog.png", "captions": [f"a red dog, number {n}"]} for n in range(9)]
    (folder / "photos" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def words_of(name, run, out):
    places = {"run": run, "model": run / "model", "out": out, "photos": run / "photos", "tagger": run / "tagger"}
    return [name.split()[0], *(word.format(**places) for word in COMMANDS[name])]


def left_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def in_a_fork(words, limit):
    """(exit code, stderr) of a command none of whose files may grow beyond `limit` bytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code = command_line.main(words)
        except BaseException as error:
            os.write(2, f"not caught: {error!r}\n".encode())
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(name, run, tmp_path):
    out = tmp_path / "out"
    code, said = in_a_fork(words_of(name, run, out), 100)
    lines = [line for line in said.splitlines() if line.startswith("poise ")]
    assert code == 1 and len(lines) == 1 and "Traceback" not in said, said
    assert str(out) in lines[0] or "out could not be saved" in lines[0]
    assert any(word in lines[0] for word in ("make room", "limit on file sizes")), lines[0]
    assert not {path for path in left_in(tmp_path) if os.path.basename(path) not in WHOLE}


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody may write into; the superuser, whom no permissions stop, gets a mount."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("the superuser may not mount here")
    folder.chmod(0o555) if os.geteuid() else None
    yield folder
    if os.geteuid() == 0:
        subprocess.run(["umount", str(folder)], check=True)
    else:
        folder.chmod(0o755)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(name, run, read_only, capsys):
    assert command_line.main(words_of(name, run, read_only / "out")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert f"{read_only}/" in line and "; name a place that can be written to" in line
    assert not list(read_only.iterdir())


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"merge", "publish", "space"}))
def test_sigterm_while_results_are_written_leaves_none_of_them(name, run, tmp_path, capsys, monkeypatch):
    """It comes when the first file is about to appear."""
    times = []

    def stopped(*args, **kwargs):
        times.append(1)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "replace", stopped)
    words = words_of(name, run, tmp_path / "out")
    assert command_line.main(words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert line == f"poise {words[0]}: stopped by SIGTERM" and times
    assert not {path for path in left_in(tmp_path) if os.path.basename(path) not in WHOLE}
    monkeypatch.undo()
    assert command_line.main(words) == 0  # what is left stands in nobody's way
    assert left_in(tmp_path)


@pytest.mark.parametrize("name", ["merge", "publish"])
def test_sigterm_while_a_model_is_written_cleans_up_and_says_so(name, run, tmp_path, capsys, monkeypatch):
    saving = PoiseProcessor.save_pretrained

    def stopped(self, folder, **kwargs):
        saving(self, folder, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PoiseProcessor, "save_pretrained", stopped)
    out = tmp_path / "out"
    assert command_line.main(words_of(name, run, out)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert line.startswith(f"poise {name}: stopped by SIGTERM while {out} was written: ")
    assert not list(tmp_path.iterdir())


def test_a_space_that_could_not_be_written_leaves_the_former_one(run, tmp_path):
    out = tmp_path / "out"
    assert command_line.main(words_of("space", run, out)) == 0
    (out / ".git").mkdir()
    (out / ".git" / "config").write_text("of a clone")
    before = {name: (out / name).read_bytes() for name in left_in(out)}
    code, said = in_a_fork([*words_of("space", run, out), "--title", "another"], 2000)
    assert code == 1 and "could not be written, the disk is full" in said
    assert {name: (out / name).read_bytes() for name in left_in(out)} == before
    assert command_line.main([*words_of("space", run, out), "--title", "another"]) == 0
    assert (out / ".git" / "config").is_file() and "another" in (out / "space.json").read_text()
    shutil.rmtree(out)
