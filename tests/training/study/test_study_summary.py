"""Means, intervals and paired gains, against figures computed by hand; and the page made of them."""

import math

import pytest

from poise.training.study.plan import load_plan
from poise.training.study.report import Estimate, cell_of, estimates, gains, judging, scores, write_results


def run_of(router, seed, clean, blank, removed=0.2, blank_held_open=None):
    held_open = {"clean": clean, "blank": blank_held_open, "removed": removed} if blank_held_open is not None else {}
    return {
        "router": router, "prompt": "dynamic", "language_model": "lora", "training": "clean", "seed": seed, "steps": 2,
        "seconds": 1.5, "parameters": 1234, "loss": 0.5,
        "held_open": {name: {"accuracy": value} for name, value in held_open.items()},
        "conditions": {
            name: {"accuracy": value, "prior": 0.1, "log_likelihood": -1.0, "weights": None}
            for name, value in (("clean", clean), ("blank", blank), ("removed", removed))
        },
    }  # fmt: skip


RUNS = [
    run_of("none", 0, 0.9, 0.1),
    run_of("none", 1, 0.8, 0.3),
    run_of("reliability", 0, 0.9, 0.5, blank_held_open=0.3),
    run_of("reliability", 1, 0.9, 0.6, blank_held_open=0.2),
]


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.yaml").write_text(
        """
recipe: demo
steps: 2
batch_size: 4
samples: 6
train_scenes: 16
scenes: {}
seeds: [0, 1]
grid: {router: [none, reliability], prompt: [dynamic], language_model: [lora]}
conditions:
  - {name: clean, split: test}
  - {name: blank, image: blank, severity: 5}
  - {name: removed, tags: tags_removed, severity: 5}
""",
        encoding="utf-8",
    )
    return load_plan(str(tmp_path / "plan.yaml"))


def test_interval_of_student():
    # Mean 2, deviation 1, three values: 4.303 / sqrt(3).
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0 and math.isclose(estimate.half_width, 2.484, abs_tol=1e-3)
    assert not estimate.is_clear and Estimate(0.5, 0.4).is_clear and Estimate(-0.5, 0.4).is_clear
    assert math.isinf(Estimate.of([0.7]).half_width) and str(Estimate.of([0.7])) == ".70"
    assert str(Estimate(0.4567, 0.0312)) == ".46 ± .03" and str(Estimate(1.0, 0.0)) == "1.00 ± .00"


def test_gains_are_paired_by_seed(plan):
    measured = scores(plan)
    found = gains(RUNS, measured["blank"])
    assert {cell.router for cell in found} == {"reliability"}
    (gain,) = found.values()
    # Differences .4 and .3: mean .35, deviation .0707, 12.706 · .0707 / sqrt(2).
    assert math.isclose(gain.mean, 0.35) and math.isclose(gain.half_width, 0.6353, abs_tol=1e-3)
    means = estimates(RUNS, measured["image fails (mean)"])
    assert math.isclose(means[cell_of(RUNS[0])].mean, 0.2)


def test_what_judging_adds_is_against_the_same_model_that_trusts_everything(plan):
    (gain,) = judging(RUNS, scores(plan)["blank"]).values()
    assert math.isclose(gain.mean, 0.3)  # .2 and .4; runs of other routers have no verdicts
    (clean,) = judging(RUNS, scores(plan)["clean"]).values()
    assert clean == Estimate(0.0, 0.0)


def test_the_page_holds_every_figure_and_its_pictures(plan, tmp_path):
    page = write_results(plan, RUNS, tmp_path / "docs", "poise study")
    text = page.read_text(encoding="utf-8")
    assert ".55 ± .64" in text and "+0.35" in text and "1,234" in text and "poise study" in text
    assert "tags fail (mean)" in text and "verdicts add" in text and "+0.30" in text
    for name in ("clean_lora.png", "gains.png", "study.json"):
        assert (tmp_path / "docs" / "results" / name).stat().st_size > 100
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "docs" / line.split("(")[1].rstrip(")")).is_file()
