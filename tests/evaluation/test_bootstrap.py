"""Bootstrap intervals: seeded, of the right width, for means and for functions of sums."""

import math

import numpy as np
import pytest

from poise.evaluation.intervals import bootstrap_interval


def test_width_of_a_mean_is_the_normal_one():
    scores = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap_interval(scores, resamples=4000)
    error = scores.std() / math.sqrt(len(scores))
    assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.1 * error)


def test_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.random(60) < 0.4, resamples=300, seed=trial)
        hits += low <= 0.4 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_same_seed_same_interval():
    scores = np.arange(20.0)
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)


def test_blocks_do_not_change_the_result(monkeypatch):
    scores = np.random.default_rng(0).random((50, 2))
    whole = bootstrap_interval(scores, lambda sums, sizes: sums[:, 0] / sums[:, 1])
    monkeypatch.setattr("poise.evaluation.intervals.MAX_CELLS", 50 * 7)
    assert bootstrap_interval(scores, lambda sums, sizes: sums[:, 0] / sums[:, 1]) == pytest.approx(whole, rel=1e-12)


def test_equals_a_plain_loop():
    rows = np.random.default_rng(2).random((30, 2))
    low, high = bootstrap_interval(rows, lambda sums, sizes: sums[:, 0] / sums[:, 1], resamples=50, seed=5)
    drawn = np.random.default_rng(5).integers(30, size=(50, 30))
    values = [rows[i].sum(axis=0)[0] / rows[i].sum(axis=0)[1] for i in drawn]
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_groups_are_drawn_together():
    # Ten questions about each of 20 images, all right or all wrong: 20 facts, not 200.
    by_image = np.random.default_rng(3).random(20) < 0.5
    scores, images = np.repeat(by_image, 10), np.repeat(np.arange(20), 10)
    narrow = np.subtract(*bootstrap_interval(scores)[::-1])
    wide = np.subtract(*bootstrap_interval(scores, groups=images.tolist())[::-1])
    assert wide == pytest.approx(narrow * math.sqrt(10), rel=0.2)


def test_groups_of_unequal_size_weigh_by_their_samples():
    low, high = bootstrap_interval([1.0, 0.0, 0.0, 0.0], groups=["a", "b", "b", "b"], resamples=2000)
    assert (low, high) == (0.0, 1.0)


def test_one_group_has_no_interval():
    assert all(math.isnan(bound) for bound in bootstrap_interval([1.0]))
    assert all(math.isnan(bound) for bound in bootstrap_interval([1.0, 0.0], groups=["a", "a"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": []}, "scores has shape"),
        ({"scores": [1.0, float("nan")]}, r"scores\[1\] is not finite"),
        ({"scores": [1.0, 2.0], "confidence": 95}, "confidence=95"),
        ({"scores": [1.0, 2.0], "resamples": 0}, "resamples=0"),
        ({"scores": [1.0, 2.0], "groups": ["a"]}, "groups has 1 entries for 2"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**arguments)


def rows_of_every_kind(group):
    """Rows of 40 samples about 4 images whose answers depend on the image alone, as each evaluator keeps them."""
    from poise.evaluation.dominance.coalitions import coalition_name, coalitions

    players = ("image", "question")
    for number in range(40):
        value = float(number % 4 < 2)
        worth = {coalition_name(players): value}
        worth |= {f"mean:{coalition_name(some)}": value / 2 for some in coalitions(players)[:-1]}
        yield {
            "id": str(number), **({"group": str(number % 4)} if group else {}),
            "degradation": "clean", "weights": [value, value],
            "skipped": False, "tokens": {"0": 1}, "identified": {"polling": {"clean": True, "object_0": bool(value)}},
            "without": {"last_to_image_0": np.log(0.5 + value / 4)}, "log_probability": 0.0,
            "players": players, "accuracy": worth, "log_likelihood": worth, "answers": ["a"], "said": {},
        }  # fmt: skip


def test_diagnosis_and_interpretation_draw_the_questions_about_one_image_together():
    from poise.evaluation.dominance.coalitions import CoalitionDominance
    from poise.evaluation.interpretability.attention_knockout import AttentionKnockout
    from poise.evaluation.interpretability.token_ablation import TokenAblation
    from poise.evaluation.robustness.router_weights import RouterByCondition

    evaluators = {
        "clean_image_weight": RouterByCondition(progress=False),
        "polling_drop_object_0": TokenAblation(forms=("polling",), rivals=(), buffers=(0,), progress=False),
        "accuracy": CoalitionDominance(baselines=("mean",), progress=False),
        "last_to_image_0": AttentionKnockout(progress=False),
    }
    for key, evaluator in evaluators.items():
        identified = True if isinstance(evaluator, AttentionKnockout) else None
        apart, together = (
            evaluator.score(
                [{**row, "identified": identified or row["identified"]} for row in rows_of_every_kind(group)]
            )
            for group in (False, True)
        )
        # Four images in place of forty samples: an interval three times as wide.
        widths = [found[f"{key}_high"] - found[f"{key}_low"] for found in (apart, together)]
        assert 2 < widths[1] / widths[0] < 5, (key, widths)


def test_the_image_a_row_is_about_comes_from_the_metadata():
    from poise.evaluation.evaluator import groups_of, image_group

    assert image_group({"metadata": {"image_id": 7}}) == {"group": "7"}
    assert image_group({"metadata": {"image_id": 0}}) == {"group": "0"}
    assert image_group({"metadata": None}) == image_group({}) == image_group({"metadata": {"image_id": None}}) == {}
    assert groups_of([{"id": "a", "group": "7"}, {"id": "b"}]) == ["7", "b"]
