"""Bootstrap intervals: seeded, of the right width, for means and for functions of sums."""

import math

import numpy as np
import pytest

from poise.evaluation.intervals import Score, bootstrap_interval, card_row, estimate, is_bound, score_text
from poise.evaluation.task_scores import TaskScorer


def test_a_score_stands_in_the_flat_dict_as_three_keys():
    whole, bare = Score(0.512, 0.468, 0.554), Score(0.5)
    flat = {**whole.flat("accuracy"), **bare.flat("clean")}
    assert flat == {"accuracy": 0.512, "accuracy_low": 0.468, "accuracy_high": 0.554, "clean": 0.5}
    assert (Score.read(flat, "accuracy"), Score.read(flat, "clean")) == (whole, bare)
    assert [name for name in flat if is_bound(name, flat)] == ["accuracy_low", "accuracy_high"]
    assert not is_bound("tags_low", {"tags_low": 0.1})  # of no score: one by itself
    assert score_text(flat, "accuracy") == "0.512 [0.47, 0.55]" and score_text(flat, "clean") == "0.500"
    assert score_text(flat, "accuracy", ".0%") == "51% [47%, 55%]" and score_text(flat, "other") == ""
    assert (whole.bounds, bare.bounds) == ((0.468, 0.554), (0.5, 0.5))
    assert bare.errors == [[0.0], [0.0]] and np.allclose(whole.errors, [[0.044], [0.042]])
    row = {"condition": "blur", "metric": "accuracy", "value": 0.512, "n": 40, "low": 0.468, "high": 0.554}
    assert card_row({**flat, "samples": 40.0}, "accuracy", "blur", "accuracy", "mine") == {**row, "dataset": "mine"}
    assert "low" not in card_row({**flat, "asked": 3.0}, "clean", "clean", "accuracy", "mine", count="asked")


def test_an_estimate_is_the_statistic_of_all_with_its_interval():
    def ratio(sums, sizes):
        return sums[:, 0] / sums[:, 1]

    rows, groups = np.random.default_rng(0).random((30, 2)), [number // 3 for number in range(30)]
    found = estimate(rows, ratio, groups, seed=2)
    assert found.value == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    assert (found.low, found.high) == bootstrap_interval(rows, ratio, groups, seed=2)
    assert estimate([True, False, True, True]).value == 0.75
    assert estimate(rows, ratio, resamples=0) == Score(found.value)
    assert estimate([1.0]) == Score(1.0)  # nothing to resample
    assert estimate([[1.0, 0.0]] * 5, ratio).low is None  # a resample without a ratio


def test_scores_of_a_benchmark_keep_their_interval():
    row = {"task": "hallusionbench", "answers": ["yes"], "asked": "a", "figure": None}
    rows = [{**row, "id": str(i), "prediction": said} for i, said in enumerate(["yes", "no", "yes", "no"])]
    scores = TaskScorer()("hallusionbench", rows).scores
    assert scores["aAcc"].value == 0.5 and scores["aAcc"].low is not None and scores["qAcc"].low is None


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
