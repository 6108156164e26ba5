"""What grows with the data and what does not: opening and resuming 10⁴ to 10⁶ records, and the memory that it takes.

Records are synthetic JSON lines without pixels, so that a laptop holds a million. Every size runs in a process of its
own, whose peak memory is what the system says of it.

Run: OMP_NUM_THREADS=1 python benchmarks/scale.py [--sizes 10000 100000 1000000]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 32


def write_records(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            tags = [[f"object {number % 997}", 0.9], [f"object {number % 499}", 0.4]]
            record = {"id": f"r{number}", "image": None, "task": "vqa", "question": f"what is number {number} ?",
                      "answers": [str(number)], "tags": tags}  # fmt: skip
            file.write(json.dumps(record) + "\n")


def measure(path: str, way: str, steps: int) -> dict[str, float]:
    """Seconds until the first batch, seconds to resume behind `steps` batches, and peak memory in MB."""
    from poise.processing.records.endless_records import EndlessRecords
    from poise.processing.records.record_sources import RecordSource, open_records, stream_records

    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    source = RecordSource(path)
    if way == "rows":
        records = open_records(source)
        _ = [records[place] for place in range(BATCH)]
        first = resumed = time.perf_counter() - started  # a row number is where one goes on
    else:
        stream = EndlessRecords([stream_records(source)], seed=0)
        rows = iter(stream)
        _ = [next(rows) for _ in range(BATCH)]
        first = time.perf_counter() - started
        started = time.perf_counter()
        again = EndlessRecords([stream_records(source)], seed=0)
        again.passed_over = steps * BATCH
        _ = next(record for record in again if record is not None)
        resumed = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first batch s": first, "resume s": resumed, "memory MB": peak - idle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        path, way, steps = arguments.one
        print(json.dumps(measure(path, way, int(steps))))
        return
    print(f"{'records':>10}  {'way':<8}{'first batch s':>15}{'resume at 90 % s':>18}{'memory MB':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            path = Path(folder) / f"{size}.jsonl"
            write_records(path, size)
            for way in ("rows", "stream"):
                command = [sys.executable, __file__, "--one", str(path), way, str(int(size * 0.9) // BATCH)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(f"{size:>10,}  {way:<8}{found['first batch s']:>15.2f}{found['resume s']:>18.2f}"
                      f"{found['memory MB']:>12.0f}", flush=True)  # fmt: skip
            path.unlink()


if __name__ == "__main__":
    main()
