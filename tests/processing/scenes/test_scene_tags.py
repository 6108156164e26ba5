"""Tags obey their knobs and follow the prior when they are invented."""

import numpy as np
import pytest

from poise.processing.scenes.layout import PRIOR_COLOR_OF_SHAPE
from poise.processing.scenes.scenes import Scenes
from poise.processing.scenes.tags import beta_from_uniform

COUNT = 2000


def true_names(record: dict) -> set[str]:
    return {f"{item['color']} {item['shape']}" for item in record["metadata"]["objects"]}


def tag_statistics(**knobs) -> dict:
    records = Scenes(knobs.pop("split", "test"), size=COUNT, **knobs).records(range(COUNT), images=False)
    true = [[score for name, score in r["tags"] if name in true_names(r)] for r in records]
    false = [[score for name, score in r["tags"] if name not in true_names(r)] for r in records]
    objects = sum(len(true_names(r)) for r in records)
    return {
        "missed": 1 - sum(map(len, true)) / objects,
        "invented": sum(map(len, false)) / COUNT,
        "true": np.array(sum(true, [])),
        "false": np.array(sum(false, [])),
    }


def test_defaults_true_high_invented_low():
    found = tag_statistics()
    assert abs(found["missed"] - 0.1) < 0.02
    assert 0.15 < found["invented"] <= 0.6  # two slots at 0.3, less those that happen to be true
    assert abs(found["true"].mean() - 0.8) < 0.02 and abs(found["false"].mean() - 0.25) < 0.02
    scores = np.concatenate([found["true"], found["false"]])
    assert scores.min() >= 0.01 and scores.max() <= 0.99


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_rates(rate):
    assert abs(tag_statistics(tag_miss_rate=rate)["missed"] - rate) < 0.03
    invented = tag_statistics(tag_invention_rate=rate, split="prior_broken")["invented"]
    assert 1.7 * rate <= invented <= 2.05 * rate  # nothing is true by luck there; two slots may say the same


def test_sharpness():
    blunt, sharp = tag_statistics(tag_sharpness=0.0), tag_statistics(tag_sharpness=4.0)
    assert abs(blunt["true"].mean() - blunt["false"].mean()) < 0.03
    assert sharp["true"].mean() > 0.9 and sharp["false"].mean() < 0.13


def test_invented_tags_follow_the_prior():
    for record in Scenes("prior_broken", size=500, tag_invention_rate=1.0).records(range(500), images=False):
        for name, _ in record["tags"]:
            color, shape = name.split()
            assert (name in true_names(record)) != (PRIOR_COLOR_OF_SHAPE[shape] == color)


def test_tags_are_sorted_named_once_and_lists_for_the_prior_are_false():
    for record in Scenes("train", size=500).records(range(500), images=False):
        scores, names = [score for _, score in record["tags"]], [name for name, _ in record["tags"]]
        assert scores == sorted(scores, reverse=True) and len(set(names)) == len(names)
        metadata = record["metadata"]
        assert not true_names(record) & set(metadata["prior_tags"]) and len(metadata["prior_tags"]) >= 4
        assert metadata["misleading_tag"] not in true_names(record)


def test_beta_quantiles():
    u = np.linspace(0.001, 0.999, 4001)
    for a, b in ((8.0, 2.0), (2.0, 6.0), (1.0, 1.0)):
        x = beta_from_uniform(u, a, b)
        assert abs(x.mean() - a / (a + b)) < 2e-3
        assert abs(x.var() - a * b / ((a + b) ** 2 * (a + b + 1))) < 2e-3
