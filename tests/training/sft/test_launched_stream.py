"""A streamed mixture under two processes: every record once in every pass over its file, and none in both processes."""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from poise.training.sft.recipe import load_recipe
from poise.training.sft.records import load_records

SIZES = {"small": 6, "large": 14}  # records of each file; their numbers go on from one file to the next
BATCH, STEPS, PROCESSES = 2, 15, 2


@pytest.fixture
def recipe(tmp_path):
    """Questions without images: what is streamed is what counts here."""
    first = 0
    for name, size in SIZES.items():
        rows = [{"id": str(first + row), "image": None, "task": "vqa", "question": f"what is {row} ?",
                 "answers": ["red"]} for row in range(size)]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        first += size
    sources = [{"name": str(tmp_path / f"{name}.jsonl"), "weight": weight} for name, weight in zip(SIZES, (1, 1))]  # noqa: B905
    recipe = load_recipe(
        "demo",
        {"data.train": sources, "data.streaming": True, "data.shuffle_buffer": 4, "data.evaluation": None,
         "max_steps": STEPS, "per_device_train_batch_size": BATCH, "dataloader_num_workers": 2, "align_words": False,
         "align_pictures": 0, "training.output_dir": str(tmp_path / "run"), "router_type": "none"},
    )  # fmt: skip
    recipe.save(tmp_path / "recipe.yaml")
    return recipe


@pytest.mark.slow
def test_every_record_once_a_pass_in_one_of_two_processes(recipe, tmp_path):
    config = files("poise.training") / "accelerate" / "cpu_ddp.yaml"
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "num_processes": 2}))
    script = Path(__file__).parent / "launched_stream.py"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "launch.yaml"),
        "--main_process_port", "0", str(script), str(tmp_path / "notes"), str(tmp_path / "recipe.yaml"),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    notes = [
        [tuple(json.loads(line)) for line in (tmp_path / f"notes.{rank}").read_text().splitlines()]
        for rank in range(PROCESSES)
    ]
    assert [[step for step, _ in own] for own in notes] == [list(range(STEPS))] * PROCESSES
    seen = [tuple(entry) for own in notes for _, batch in own for entry in batch]
    assert len(seen) == STEPS * BATCH * PROCESSES == len(set(seen)), "a record came twice in one pass"
    # Every pass but the last of each file is whole.
    numbers = {"small": range(SIZES["small"]), "large": range(SIZES["small"], sum(SIZES.values()))}
    for own in numbers.values():
        passes = Counter(turn for number, turn in seen if number in own)
        assert len(passes) > 1
        assert all(passes[turn] == len(own) for turn in range(max(passes)))
    # Step by step it is the stream of one process, cut into the processes' batches.
    stream, _ = load_records(recipe)
    alone = [(int(record["id"]), record["pass"]) for record, _ in zip(stream, seen)]  # noqa: B905
    together = [tuple(entry) for step in range(STEPS) for own in notes for entry in own[step][1]]
    assert together == alone
