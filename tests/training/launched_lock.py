"""Opens a run's folder in every process of a launch, says who holds its lock; started by `test_launch.py`."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from accelerate import PartialState

from poise.training.run_start import LOCK_FILE, opened_run

state = PartialState(cpu=True)
folder = Path(sys.argv[1])
args = SimpleNamespace(
    output_dir=str(folder), world_size=state.num_processes, process_index=state.process_index, n_gpu=0
)
try:
    with opened_run(args, Path):
        owner = (folder / LOCK_FILE).read_text().split()[0]
        print(f"rank {state.process_index} is {os.getpid()}, the lock is {owner}'s", flush=True)
        state.wait_for_everyone()
except ValueError as error:
    print(f"rank {state.process_index}: {error}", flush=True)
    sys.exit(1)
