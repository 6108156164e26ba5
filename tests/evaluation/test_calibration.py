"""Calibration: errors by hand, and a fit that finds the truth it was drawn from."""

import numpy as np
import pytest

from poise.evaluation.calibration import (
    average_calibration_error,
    draw_reliability,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)


def test_errors_by_hand():
    scores = np.array([0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    truth = np.array([False, True, True, True, True, False])
    # Two bins: |0.1 - 0.5| for two decisions, |0.9 - 0.75| for four.
    assert expected_calibration_error(scores, truth, bins=10) == pytest.approx((2 * 0.4 + 4 * 0.15) / 6)
    assert average_calibration_error(scores, truth, bins=10) == pytest.approx((0.4 + 0.15) / 2)
    assert [part.count for part in reliability_bins(scores, truth, bins=10)] == [2, 4]


def test_a_score_of_one_falls_into_the_last_bin():
    (part,) = reliability_bins(np.array([1.0]), np.array([True]), bins=15)
    assert (part.low, part.high) == (14 / 15, 1.0)


def test_the_fit_finds_temperature_and_bias():
    random = np.random.default_rng(0)
    cosines = random.uniform(-1, 1, 200_000)
    truth = random.uniform(size=cosines.size) < 1 / (1 + np.exp(-(cosines / 0.2 - 1.5)))
    temperature, bias = fit_temperature(cosines, truth)
    assert temperature == pytest.approx(0.2, rel=0.03) and bias == pytest.approx(-1.5, abs=0.05)
    scores = 1 / (1 + np.exp(-(cosines / temperature + bias)))
    assert expected_calibration_error(scores, truth) < 0.01
    assert expected_calibration_error((cosines + 1) / 2, truth) > 0.1


def test_separable_decisions_keep_a_finite_temperature():
    temperature, bias = fit_temperature(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert 0 < temperature < 1 and np.isfinite(bias)


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ValueError, match="needs both"):
        fit_temperature(np.array([0.1, 0.2]), np.array([True, True]))
    with pytest.raises(ValueError, match="cannot tag"):
        fit_temperature(np.array([0.9, 0.8, 0.2, 0.1]), np.array([False, False, True, True]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        expected_calibration_error(np.array([1.5]), np.array([True]))
    with pytest.raises(ValueError, match="2 truths"):
        reliability_bins(np.array([0.5]), np.array([True, False]))


def test_the_diagram_is_drawn(tmp_path):
    from PIL import Image

    scores = np.linspace(0, 1, 50)
    draw_reliability({"a": (scores, scores > 0.5), "b": (scores, scores > 0.2)}, tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as image:
        assert image.size[0] > 400 and len(set(image.convert("L").tobytes())) > 20


def test_targets_are_smoothed_as_platt_wrote():
    """One true and one false decision: targets 2/3 and 1/3, which a line through both meets exactly."""
    temperature, bias = fit_temperature(np.array([0.0, 1.0]), np.array([False, True]))
    assert (temperature, bias) == pytest.approx((1 / (2 * np.log(2)), -np.log(2)), rel=1e-6)
    # Three true and one false at two similarities: targets (3 + 1) / (3 + 2) and 1 / (1 + 2).
    temperature, bias = fit_temperature(np.array([0.0, 1.0, 1.0, 1.0]), np.array([False, True, True, True]))
    assert bias == pytest.approx(np.log((1 / 3) / (2 / 3)), rel=1e-6)
    assert 1 / temperature + bias == pytest.approx(np.log(0.8 / 0.2), rel=1e-6)
