"""Bad arguments end in one line that names the argument, the value and the remedy."""

import pytest

from poise.processing.scenes.scenes import Scenes


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "trian"}, r"split='trian'.*did you mean 'train'"),
        ({"split": "prior-broken"}, r"did you mean 'prior_broken'"),
        ({"size": 0}, r"size=0.*size >= 1"),
        ({"tasks": ["vqq"]}, r"tasks holds 'vqq'.*'vqa'"),
        ({"tasks": []}, r"tasks=\[\].*choose among"),
        ({"question_types": "color"}, r"question_types='color' is not a list"),
        ({"question_types": ["colour"]}, r"'colour'.*did you mean 'color'"),
        ({"prior_strength": 1.2}, r"prior_strength=1.2.*from 0 to 1"),
        ({"prior_strength": float("nan")}, r"prior_strength=nan"),
        ({"tag_miss_rate": -0.1}, r"tag_miss_rate=-0.1"),
        ({"tag_sharpness": -1}, r"tag_sharpness=-1"),
        ({"image_degradation": "blurr"}, r"'blurr' is no image degradation: did you mean 'blur'"),
        ({"tag_corruption": "noise"}, r"'noise' is no tags degradation"),
        ({"question_corruption": "typo"}, r"did you mean 'typos'"),
        ({"image_degradation": "blur", "severity": 9}, r"severity=9"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Scenes(**arguments)
    assert "\n" not in str(caught.value)
