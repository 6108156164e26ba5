"""Means, intervals and paired gains, against figures computed by hand; and the page made of them."""

import math

import pytest

from poise.training.study.plan import load_plan
from poise.training.study.report import (
    Estimate,
    accuracy,
    cell_of,
    groups_of,
    paired_gains,
    text_preference_ratio,
    visual_reliance_score,
    worst_condition,
    write_results,
)


def run_of(router, seed, views=None, **accuracies):
    """A run with these accuracies by condition, and by view and condition."""

    def rows(values):
        return {name: {"accuracy": value, "prior": 0.1, "log_likelihood": -1.0, "weights": [0.5, 1.0]}
                for name, value in values.items()}  # fmt: skip

    return {
        "router": router, "prompt": "dynamic", "language_model": "lora", "training": "clean", "seed": seed, "steps": 2,
        "seconds": 1.5, "parameters": 1234, "loss": 0.5, "conditions": rows(accuracies),
        "views": {name: rows(values) for name, values in (views or {}).items()},
    }  # fmt: skip


def views(blank, blur):
    """What the routed model answers with a fixed trust: the image alone is worthless when blank, and hurt by blur."""
    return {
        "open": {"clean": 0.9, "blank 5": blank, "blur 2": blur, "tags_invented 5": 0.5, "hue 2": 0.4},
        "image": {"clean": 0.9, "blank 5": 0.1, "blur 2": 0.7, "tags_invented 5": 0.9, "hue 2": 0.1},
        "tags": {"clean": 0.7, "blank 5": 0.7, "blur 2": 0.7, "tags_invented 5": 0.1, "hue 2": 0.7},
    }


RUNS = [
    run_of("none", 0, **{"clean": 0.9, "blank 5": 0.1, "blur 2": 0.8, "tags_invented 5": 0.5, "hue 2": 0.4}),
    run_of("none", 1, **{"clean": 0.8, "blank 5": 0.3, "blur 2": 0.8, "tags_invented 5": 0.5, "hue 2": 0.4}),
    run_of(
        "reliability",
        0,
        views(0.3, 0.8),
        **{"clean": 0.9, "blank 5": 0.5, "blur 2": 0.7, "tags_invented 5": 0.8, "hue 2": 0.4},
    ),
    run_of(
        "reliability",
        1,
        views(0.2, 0.8),
        **{"clean": 0.9, "blank 5": 0.6, "blur 2": 0.7, "tags_invented 5": 0.9, "hue 2": 0.4},
    ),
]

for _run in RUNS:
    for _rows in (_run["conditions"], *_run["views"].values()):
        _rows["tags_replaced 5"] = _rows["tags_invented 5"]


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
held_out: [hue]
conditions:
  - {name: clean, split: test}
  - {image: [blank], severities: [5]}
  - {image: [blur, hue], severities: [2]}
  - {tags: [tags_invented, tags_replaced], severities: [5]}
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


ROUTED = cell_of(RUNS[2])


def test_gains_are_paired_by_seed():
    gain = paired_gains(RUNS, ROUTED, ["blank 5"])
    # Differences .4 and .3: mean .35, deviation .0707, 12.706 · .0707 / sqrt(2).
    assert math.isclose(gain.mean, 0.35) and math.isclose(gain.half_width, 0.6353, abs_tol=1e-3)
    assert math.isclose(paired_gains(RUNS, ROUTED, ["blank 5", "blur 2"]).mean, 0.125)
    assert math.isclose(paired_gains(RUNS, ROUTED, ["blank 5"], "open").mean, 0.05)
    assert math.isclose(paired_gains(RUNS[1:], ROUTED, ["blank 5"]).mean, 0.3)  # seed 0 has no model without a router
    assert paired_gains(RUNS[2:], ROUTED, ["blank 5"]) is None
    assert accuracy(RUNS[2], "blank 5", "tags") == 0.7


def test_conditions_are_grouped_by_what_the_image_alone_is_worth(plan):
    assert groups_of(plan, RUNS) == {
        "sound": ["clean"], "worthless images": ["blank 5"], "hurt images": ["blur 2"],
        "images that lie": ["hue 2"], "tags that lie": ["tags_invented 5", "tags_replaced 5"],
        "held out from all tuning": ["hue 2"],
    }  # fmt: skip
    name, gain = worst_condition(RUNS, ROUTED, ["clean", "blank 5", "blur 2"])
    assert name == "blur 2" and math.isclose(gain.mean, -0.1)


def test_the_page_answers_in_its_first_ten_lines_and_holds_every_figure(plan, tmp_path):
    page = write_results(plan, RUNS, tmp_path / "docs", "poise study")
    text = page.read_text(encoding="utf-8")
    answers = "\n".join(text.splitlines()[:12])
    assert "worthless images (1 conditions): **+.35 ± .64**" in answers
    # Verdicts over trusting everything, .5 − .3 and .6 − .2, of what tags alone add to it, .7 − .3 and .7 − .2.
    assert "; 67% of what an oracle gains" in answers
    assert "Below −.02 in 1 of 6 conditions, by more than seeds differ in 1: blur 2 (-0.10)." in answers
    assert "| hurt images | blur 2 | .80 ± .00 | .70 ± .00 | -.10 ± .00 | .80 | .70 | .70 | 0.50 | 1.00 |" in text
    assert "| tags_replaced 5 | no router | .50 ± .00 | .17 ± .00 | .62 ± .00 |" in text  # .1 of .1 + .5 follow the tag
    assert "1,234" in text and "poise study" in text
    for name in ("gains.png", "comparison.png", "study.json"):
        assert (tmp_path / "docs" / "results" / name).stat().st_size > 100
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "docs" / line.split("(")[1].rstrip(")")).is_file()


def test_conflict_by_published_names():
    """.8 right and .1 with the tag: 1 of 9 follow the tag; the harmonic mean of 8/10 and 8/9 is 16/19."""
    run = run_of("none", 0, **{"tags_replaced 5": 0.8, "nothing": 0.0})
    assert math.isclose(text_preference_ratio(run, "tags_replaced 5"), 1 / 9)
    assert math.isclose(visual_reliance_score(run, "tags_replaced 5"), 16 / 19)
    run["conditions"]["nothing"]["prior"] = 0.0
    assert text_preference_ratio(run, "nothing") == visual_reliance_score(run, "nothing") == 0
