"""How long `poise --help`, `import poise` and `poise ask` take in a new process, beside the imports of others.

    python benchmarks/start_up.py [MODEL]

MODEL (`outputs/demo/reliability/model` by default, which `poise demo` writes) is asked about one drawn scene. The goals
are one second for `poise --help` and five for `poise ask` on two idle cores; the seconds of computing beside them tell
how long it would take where others keep the machine busy.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from poise.processing import Scenes

MODEL = "outputs/demo/reliability/model"
CASES = {
    "python alone": ["-c", "pass"],
    "import poise": ["-c", "import poise"],
    "poise --help": ["-m", "poise", "--help"],
    "import transformers": ["-c", "import transformers"],
    "its Auto classes": ["-c", "from transformers import AutoModelForImageTextToText, AutoProcessor"],
}
REPETITIONS = 5


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Medians over new processes, passed and computed; the first one, which fills the disk cache, does not count."""
    passed, computed = [], []
    for _ in range(REPETITIONS + 1):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        passed.append(time.perf_counter() - start)
        computed.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(passed[1:]), statistics.median(computed[1:])


if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else MODEL
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(f"{'':<24}{'seconds':>9}{'computed':>10}")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "scene.png"
        Scenes("test", size=1)[0]["image"].save(image)
        cases = dict(CASES)
        if Path(model).is_dir():
            cases["poise ask"] = ["-m", "poise", "ask", model, str(image), "what color is the star ?"]
        else:
            print(f"poise ask is left out: {model!r} is no folder; run poise demo, or name a model")
        for name, arguments in cases.items():
            print(f"{name:<24}{{:9.2f}}{{:10.2f}}".format(*seconds(arguments)), flush=True)
