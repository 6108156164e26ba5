"""How fast scenes are drawn: records a second with images and words, arrays only, words only. One core, no arguments.

Run: OMP_NUM_THREADS=1 python benchmarks/scenes.py
"""

import argparse
import statistics
import time

from poise.processing.scenes.scenes import Scenes


def rate(draw, count: int, repeats: int) -> float:
    """Median scenes a second of `draw(first, last)`."""
    draw(0, 256)  # tables of masks are made on the first call
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        for first in range(0, count, 256):
            draw(first, min(first + 256, count))
        rates.append(count / (time.perf_counter() - started))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description="scenes a second on one core")
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    scenes = Scenes("train", size=arguments.count)
    degraded = Scenes("train", size=arguments.count, image_degradation="noise", tag_corruption="tags_invented")
    for name, draw in (
        ("records with images and words", lambda a, b: scenes.__getitems__(range(a, b))),
        ("arrays (batch)", lambda a, b: scenes.batch(range(a, b))),
        ("records without images", lambda a, b: scenes.records(range(a, b), images=False)),
        ("records with noise and invented tags", lambda a, b: degraded.__getitems__(range(a, b))),
    ):
        print(f"{name}: {rate(draw, arguments.count, arguments.repeats):,.0f} scenes/s")


if __name__ == "__main__":
    main()
