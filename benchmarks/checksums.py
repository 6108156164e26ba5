"""What checksums cost: seconds to seal a checkpoint of some size, to verify it, and of the same without checksums.

python benchmarks/checksums.py --megabytes 1000
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from poise.training.atomic_folders import checksum_of, damage_of, seal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=500, help="size of the checkpoint (default %(default)s)")
    parser.add_argument("--folder", help="where to write it (default: the system's folder for temporary files)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        file = Path(name) / "optimizer.pt"
        block = os.urandom(1 << 20)
        with file.open("wb") as out:
            for _ in range(arguments.megabytes):
                out.write(block)
        steps = {
            "checksum of every file": lambda: checksum_of(file),
            "seal: checksums, and flush to the disk": lambda: seal(Path(name)),
            "verify on resume": lambda: damage_of(Path(name)),
            "sizes alone": lambda: damage_of(Path(name), read=False),
        }
        for what, step in steps.items():
            started = time.perf_counter()
            step()
            seconds = time.perf_counter() - started
            print(f"{what:<40} {seconds:8.3f} s  {arguments.megabytes / 1024 / max(seconds, 1e-9):10.2f} GiB/s")


if __name__ == "__main__":
    main()
