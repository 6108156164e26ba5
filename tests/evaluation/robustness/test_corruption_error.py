"""Corruption errors against figures computed by hand."""

import pytest

from poise.evaluation.robustness.corruption_error import corruption_errors


def test_errors_are_summed_over_severities_and_divided_by_the_references():
    own = {"clean": 0.9, "blur_1": 0.8, "blur_2": 0.6, "hue_1": 0.7, "hue_2": 0.7}
    other = {"clean": 0.8, "blur_1": 0.6, "blur_2": 0.2, "hue_1": 0.8, "hue_2": 0.8, "noise_1": 0.1}
    found = corruption_errors(own, other, ["blur", "hue", "noise"], [1, 2])
    # (.2 + .4) / (.4 + .8) and (.3 + .3) / (.2 + .2); losses (.1 + .3) / (.2 + .6), and nothing is lost by hue there.
    assert found == pytest.approx(
        {"blur_ce": 0.5, "hue_ce": 1.5, "mce": 1.0, "blur_relative_ce": 0.5, "relative_mce": 0.5}
    )
    assert corruption_errors(own, own, ["blur", "hue"], [1])["mce"] == pytest.approx(1.0)


def test_a_reference_without_these_degradations_is_named():
    with pytest.raises(ValueError, match="reference has none of the degradations blur"):
        corruption_errors({"clean": 1.0, "blur_1": 0.5}, {"clean": 1.0}, ["blur"], [1])
