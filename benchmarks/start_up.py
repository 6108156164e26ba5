"""How long `poise --help` and `import poise` take in a new process, beside a bare Python and `import transformers`.

    python benchmarks/start_up.py

The goal is that `poise --help` stays under one second.
"""

import statistics
import subprocess
import sys
import time

CASES = {
    "python alone": ["-c", "pass"],
    "import poise": ["-c", "import poise"],
    "poise --help": ["-m", "poise", "--help"],
    "import transformers": ["-c", "import transformers"],
    "its Auto classes": ["-c", "from transformers import AutoModelForImageTextToText, AutoProcessor"],
    "its Auto classes, Poise registered": [
        "-c",
        "import poise; from transformers import AutoModelForImageTextToText, AutoProcessor",
    ],
}
REPETITIONS = 5


def seconds(arguments: list[str]) -> float:
    """Median over new processes; the first one, which fills the disk cache, does not count."""
    taken = []
    for _ in range(REPETITIONS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    for name, arguments in CASES.items():
        print(f"{name:<36}{seconds(arguments):8.2f} s")
