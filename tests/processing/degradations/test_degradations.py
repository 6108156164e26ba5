"""Degradations are pure functions of (sample, degradation, severity, seed) and get worse with the severity."""

import numpy as np
import pytest
from PIL import Image

from poise.processing.degradations.degradations import (
    DEGRADATION_STREAMS,
    SEVERITIES,
    degrade,
    degrade_image,
    degrade_question,
    degrade_tags,
)
from poise.processing.degradations.image_degradations import IMAGE_DEGRADATIONS
from poise.processing.degradations.question_corruption import QUESTION_CORRUPTIONS
from poise.processing.degradations.tag_corruption import TAG_CORRUPTIONS
from poise.processing.scenes.scenes import Scenes


@pytest.fixture(scope="module")
def records():
    return Scenes("test", size=80, tasks=["vqa"]).__getitems__(range(80))


@pytest.fixture(scope="module")
def donor():
    return Scenes("train", size=1)[0]["image"]


def content(record: dict) -> tuple:
    return np.asarray(record["image"]).tobytes(), str(record["tags"]), record["question"]


@pytest.mark.parametrize("name", sorted(set(DEGRADATION_STREAMS) - {"tags_foreign"}))
def test_pure_and_only_its_own_stream(name, records, donor):
    stream = DEGRADATION_STREAMS[name]
    changed_somewhere = False
    for record in records[:12]:
        before = content(record)
        once = degrade(record, name, 4, seed=1, donor=donor)
        assert content(degrade(record, name, 4, seed=1, donor=donor)) == content(once)
        assert content(record) == before  # the input is left alone
        same = [a == b for a, b in zip(before, content(once), strict=True)]
        untouched = [index for index, where in enumerate(("image", "tags", "question")) if where != stream]
        assert all(same[index] for index in untouched)
        assert once["answers"] == record["answers"] and once["metadata"] == record["metadata"]
        changed_somewhere |= not all(same)
    assert changed_somewhere


# These draw nothing, and foreign tags are those of another sample.
FIXED = {
    "blur", "jpeg", "blank", "tags_adversarial", "tags_replaced", "tags_foreign", "defocus_blur", "zoom_blur",
    "brightness", "contrast", "pixelate", "jpeg_compression", "flip", "inversion", "grayscale", "overexposure",
    "underexposure", "posterization", "solarization", "overlaid", "downscaled", "aliased", "vignette", "sepia",
    "color_fringes", "tags_scores_inverted",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(DEGRADATION_STREAMS) - FIXED))
def test_seed_and_sample_draw_other_accidents(name, records, donor):
    seeds = [[content(degrade(record, name, 3, seed=s, donor=donor)) for record in records[:20]] for s in (0, 1)]
    assert seeds[0] != seeds[1]
    renamed = [content(degrade({**record, "id": "x" + record["id"]}, name, 3, donor=donor)) for record in records[:20]]
    assert renamed != seeds[0]


@pytest.mark.parametrize("name", sorted(set(IMAGE_DEGRADATIONS) - {"swapped_image"}))
def test_images_get_worse(name, records):
    """Mean distance to the clean image grows with the severity; for JPEG, whose errors jump, at least over all."""
    distance = []
    for severity in SEVERITIES:
        pairs = [(r["image"], degrade_image(r["image"], name, severity, sample_id=r["id"])) for r in records[:40]]
        distance.append(np.mean([np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]))
    assert distance[0] > 0.5
    assert all(later > earlier * 0.98 for earlier, later in zip(distance[:-1], distance[1:], strict=True))
    assert distance[4] > 1.5 * distance[0]


@pytest.mark.parametrize("size", [(48, 48), (640, 427), (33, 200), (1, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_any_image(size, mode):
    image = Image.effect_noise(size, 60).convert("RGB").convert(mode)
    for name in IMAGE_DEGRADATIONS:
        result = degrade_image(image, name, 5, donor=image)
        assert result.size == size and result.mode == "RGB"


def test_photographs_suffer_like_scenes():
    """Occlusion hides its share of any image; blank leaves one colour."""
    image = Image.new("RGB", (640, 426), (10, 200, 30))
    for severity, share in zip(SEVERITIES, (0.1, 0.2, 0.35, 0.5, 0.7), strict=True):
        hidden = np.asarray(degrade_image(image, "occlusion", severity)) != np.asarray(image)
        assert abs(hidden.any(axis=2).mean() - share) < 0.01
    noise = Image.effect_noise((64, 48), 60)
    assert len(degrade_image(noise, "blank", 5).getcolors()) == 1


def test_shares_of_samples_nest(records, donor):
    for name in ("swapped_image", "tags_removed"):
        hit = [
            {r["id"] for r in records if r["tags"] and content(degrade(r, name, s, donor=donor)) != content(r)}
            for s in SEVERITIES
        ]
        assert all(a <= b for a, b in zip(hit[:-1], hit[1:], strict=True))
        assert len(hit[4]) == sum(bool(r["tags"]) for r in records) and 4 < len(hit[0]) < 30


def test_tag_corruptions(records):
    tagged = [record for record in records if len(record["tags"]) >= 2]
    for record in tagged:
        names = [name for name, _ in record["tags"]]
        kept = [{n for n, _ in degrade(record, "tags_dropped", s)["tags"]} for s in SEVERITIES]
        assert all(b <= a for a, b in zip(kept[:-1], kept[1:], strict=True)) and kept[0] <= set(names)
        for severity in SEVERITIES:
            invented = degrade(record, "tags_invented", severity)["tags"]
            new = [name for name, _ in invented if name not in names]
            assert len(new) == (1, 1, 2, 2, 3)[severity - 1] and set(new) <= set(record["metadata"]["prior_tags"])
            adversarial = degrade(record, "tags_adversarial", severity)["tags"]
            assert [name for name, _ in adversarial] == [record["metadata"]["misleading_tag"]]
            shuffled = degrade(record, "tags_shuffled", severity)["tags"]
            assert sorted(name for name, _ in shuffled) == sorted(names)
            for tags in (invented, adversarial, shuffled):
                assert all(0 <= score <= 1 for _, score in tags)
                assert [score for _, score in tags] == sorted((score for _, score in tags), reverse=True)
        assert sorted(score for _, score in degrade(record, "tags_shuffled", 5)["tags"]) == sorted(
            score for _, score in record["tags"]
        )
        assert degrade(record, "tags_removed", 5)["tags"] == []


def test_two_tags_always_exchange_their_scores():
    tags = [["dog", 0.9], ["ball", 0.2]]
    for seed in range(10):
        assert degrade_tags(tags, "tags_shuffled", 5, seed) == [["ball", 0.9], ["dog", 0.2]]


def test_tags_of_photographs():
    tags = [["dog", 0.97]]
    assert degrade_tags(tags, "tags_invented", 1, prior_tags=["dog", "ball"])[1][0] == "ball"
    with pytest.raises(ValueError, match=r"prior_tags=None.*pass prior_tags"):
        degrade_tags(tags, "tags_invented", 1)
    with pytest.raises(ValueError, match="prior_tags is empty"):
        degrade_tags(tags, "tags_adversarial", 1)
    for name in set(TAG_CORRUPTIONS) - {"tags_invented", "tags_adversarial"}:
        assert degrade_tags([], name, 3) == []


def test_questions(records):
    question = "what color is the dog to the left of the table ?"
    for name in QUESTION_CORRUPTIONS:
        texts = [degrade_question(question, name, severity, sample_id="a") for severity in SEVERITIES]
        assert all(text != question and text.strip() for text in texts)
    assert "dog" in degrade_question(question, "paraphrase", 4)
    for severity in SEVERITIES:
        dropped = degrade_question(question, "dropped_words", severity).split()
        words = question.split()
        assert len(dropped) < len(words) and all(word in words for word in dropped)
        assert dropped[-1] == "?" and len(dropped) >= 2
    # An unknown sort of question keeps its words, and short or strange texts do not break anything.
    assert "why so ?" in degrade_question("why so ?", "paraphrase", 1)
    for text in ("", "?", "a", "日本 ?", "it is 5 o'clock"):
        for name in QUESTION_CORRUPTIONS:
            for severity in SEVERITIES:
                assert isinstance(degrade_question(text, name, severity), str)


def test_errors(records):
    with pytest.raises(ValueError, match=r"degradation='nois'.*did you mean 'noise'"):
        degrade(records[0], "nois", 3)
    for severity in (0, 6, 2.5, True, "3"):
        with pytest.raises(ValueError, match=r"severity=.*1, 2, 3, 4 or 5"):
            degrade(records[0], "noise", severity)
    with pytest.raises(ValueError, match=r"is no tags degradation"):
        degrade_tags([], "noise", 3)
    with pytest.raises(ValueError, match="donor=None"):
        degrade(records[0], "swapped_image", 3)
    with pytest.raises(ValueError, match="no 'id'"):
        degrade({"question": "x"}, "typos", 3)
    with pytest.raises(TypeError, match="open it"):
        degrade({**records[0], "image": "a.jpg"}, "noise", 3)
    assert degrade({**records[0], "image": None}, "noise", 3)["image"] is None


@pytest.mark.parametrize("knob, name", [("image_degradation", "blur"), ("tag_corruption", "tags_invented")])
def test_scenes_apply_them(knob, name):
    clean, dirty = Scenes("test", size=6), Scenes("test", size=6, **{knob: name}, severity=4)
    for index in range(6):
        assert content(degrade(clean[index], name, 4)) == content(dirty[index])


def test_scenes_apply_several_and_swap_with_a_scene_of_their_own():
    scenes = Scenes("test", size=30, image_degradation="swapped_image", question_corruption="typos", severity=5)
    clean = Scenes("test", size=30)
    images = {np.asarray(record["image"]).tobytes() for record in clean}
    for index in range(30):
        image = np.asarray(scenes[index]["image"]).tobytes()
        assert image in images and image != np.asarray(clean[index]["image"]).tobytes()
        assert scenes[index]["question"] != clean[index]["question"]
