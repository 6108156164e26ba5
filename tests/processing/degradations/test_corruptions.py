"""ImageNet-C, shifts and tag failures: any size and mode, the same size back, worse with severity, each what it is."""

import numpy as np
import pytest
from PIL import Image

from poise.processing.degradations.degradations import (
    DEGRADATION_SETS,
    DEGRADATION_STREAMS,
    NEEDS_DONOR,
    degradations_named,
    degrade,
    degrade_image,
    degrade_tags,
)
from poise.processing.scenes.scenes import Scenes

IMAGES = (*DEGRADATION_SETS["imagenet_c"], *DEGRADATION_SETS["image_shifts"])
SCENES = Scenes("test", size=12, tasks=["vqa"], question_types=["color"])


def photo(width, height, seed=0):
    """Smooth noise with edges, as photographs have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def distance(one, other):
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other.convert("RGB"), dtype=float)).mean())


def test_there_are_fifteen_corruptions_of_imagenet_c():
    assert len(DEGRADATION_SETS["imagenet_c"]) == 15
    assert {name for names in DEGRADATION_SETS.values() for name in names} == set(DEGRADATION_STREAMS)
    assert degradations_named(["blur", "tag_failures", "blur"]) == ("blur", *DEGRADATION_SETS["tag_failures"])


@pytest.mark.parametrize("name", IMAGES)
def test_any_image_comes_back_in_its_size_and_a_stronger_severity_is_farther(name):
    donor = photo(60, 50, seed=9)
    for image in (photo(48, 48), photo(90, 61), photo(40, 70).convert("L"), photo(5, 3)):
        kept = image.copy()
        again = [degrade_image(image, name, 5, sample_id="a", donor=donor) for _ in range(2)]
        assert again[0].size == image.size and again[0].mode == "RGB" and again[0].tobytes() == again[1].tobytes()
        assert image.tobytes() == kept.tobytes()
    samples = [(photo(64, 64, seed), str(seed)) for seed in range(6)]
    mild, strong = (
        np.mean([distance(degrade_image(image, name, severity, 0, key, donor), image) for image, key in samples])
        for severity in (1, 5)
    )
    assert strong > 2
    # Elastic deformation and glass move large parts first and stir small places last; a flip is a flip.
    assert strong > mild or name in ("elastic_transform", "flip", "glass_blur")


@pytest.mark.parametrize("name", DEGRADATION_SETS["imagenet_c"])
def test_large_and_small_images_suffer_alike(name):
    """Lengths are scaled: at twice the size the damage, seen at the smaller size, is about the same."""
    damage = {112: 0.0, 224: 0.0}
    for side in damage:
        for seed in range(4):
            image = photo(side, side, seed)
            degraded = degrade_image(image, name, 3, 0, str(seed))
            damage[side] += distance(*(some.resize((56, 56), Image.Resampling.BOX) for some in (degraded, image)))
    small, large = damage.values()
    per_pixel = ("gaussian_noise", "shot_noise", "impulse_noise", "pixelate", "jpeg_compression", "glass_blur")
    assert 0.5 < large / small < 2 or name in per_pixel


def test_constants_of_the_published_table():
    gray = Image.new("RGB", (64, 64), (128, 128, 128))
    noisy = np.asarray(degrade_image(gray, "gaussian_noise", 2), dtype=float) / 255
    assert noisy.std() == pytest.approx(0.12, rel=0.05)
    salted = np.asarray(degrade_image(gray, "impulse_noise", 4))
    assert np.isin(salted, (0, 255)).mean() == pytest.approx(0.17, rel=0.1)
    image = photo(64, 64)
    faded = np.asarray(degrade_image(image, "contrast", 5), dtype=float)
    assert faded.std((0, 1)) == pytest.approx(0.05 * np.asarray(image, dtype=float).std((0, 1)), rel=0.1)
    bright = np.asarray(degrade_image(gray, "brightness", 3), dtype=float)
    assert bright.mean() == pytest.approx(128 + 0.3 * 255, abs=1)


def test_shifts_are_what_they_are_called():
    image = photo(64, 64)
    pixels = np.asarray(image, dtype=int)
    assert (np.asarray(degrade_image(image, "inversion", 5)) == 255 - pixels).all()
    assert (np.asarray(degrade_image(image, "flip", 3)) == pixels[:, ::-1]).all()
    assert (np.asarray(degrade_image(image, "flip", 4)) == pixels[::-1]).all()
    gray = np.asarray(degrade_image(image, "grayscale", 5), dtype=int)
    assert (np.ptp(gray, axis=-1) == 0).all()
    turned = np.sort(np.asarray(degrade_image(image, "channels_swapped", 5), dtype=int), axis=-1)
    assert (turned == np.sort(pixels, axis=-1)).all()
    tiles = np.asarray(degrade_image(image, "tiles_shuffled", 5), dtype=int)
    assert (np.sort(tiles.reshape(-1, 3), axis=0) == np.sort(pixels.reshape(-1, 3), axis=0)).all()
    donor = photo(64, 64, seed=3)
    half = np.asarray(degrade_image(image, "half_swapped", 3, donor=donor), dtype=int)
    from_donor = (half == np.asarray(donor, dtype=int)).all(-1).mean()
    assert 0.45 < from_donor < 0.55
    for name in NEEDS_DONOR:
        with pytest.raises(ValueError, match="donor=None"):
            degrade_image(image, name, 5)


TAGS = [["red square", 0.9], ["blue star", 0.8]]


def test_failures_of_tag_lists():
    assert degrade_tags(TAGS, "tags_foreign", 5, prior_tags=[["white ring", 0.7]]) == [["white ring", 0.7]]
    replaced = degrade_tags(TAGS, "tags_replaced", 5, prior_tags=["green star"])
    assert replaced == [["green star", 0.99], ["red square", 0.9]]  # the right star is gone
    assert sorted(degrade_tags(TAGS, "tags_attributes_swapped", 5)) == [["blue square", 0.9], ["red star", 0.8]]
    noise = degrade_tags(TAGS, "tags_noise", 5)
    assert len(noise) == 5 and not {name for name, _ in noise} & {name for name, _ in TAGS}
    assert [name for name, _ in degrade_tags(TAGS, "tags_noise", 2) if name in dict(TAGS)] == [
        "red square",
        "blue star",
    ]
    misspelt = degrade_tags(TAGS, "tags_misspelt", 5)
    assert [score for _, score in misspelt] == [0.9, 0.8]
    words = [word for name, _ in misspelt for word in name.split()]
    assert not set(words) & {"red", "square", "blue", "star"}
    for name in ("tags_foreign", "tags_replaced"):
        with pytest.raises(ValueError, match="'tags_"):
            degrade_tags(TAGS, name, 3)


def test_scenes_lend_images_and_tags_to_one_another():
    clean = SCENES.__getitems__(range(12))
    lists = [record["tags"] for record in clean]
    foreign = Scenes(
        "test", size=12, tasks=["vqa"], question_types=["color"], tag_corruption="tags_foreign", severity=5
    )
    for index, record in enumerate(foreign.__getitems__(range(12))):
        assert record["tags"] in lists[:index] + lists[index + 1 :]
        assert record["image"].tobytes() == clean[index]["image"].tobytes()
    halves = Scenes(
        "test", size=12, tasks=["vqa"], question_types=["color"], image_degradation="half_swapped", severity=3
    )
    assert all(
        one["image"].tobytes() != other["image"].tobytes() and one["tags"] == other["tags"]
        for one, other in zip(halves.__getitems__(range(12)), clean, strict=True)
    )
    with pytest.raises(ValueError, match="foreign_tags=None"):
        degrade(clean[0], "tags_foreign", 5)
