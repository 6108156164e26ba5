"""Degraded records: pure, complete, and nothing where there is nothing to degrade."""

from collections import Counter

import pytest
from small_vlms import object_records

from poise.evaluation.robustness.degraded_records import CLEAN, DegradedRecords
from poise.evaluation.sample_donors import TagPrior, donor_index
from poise.processing.degradations.degradations import DEGRADATION_SETS, DEGRADATION_STREAMS
from poise.processing.scenes.scenes import Scenes

NAMED = {
    "image": {"noise", "blur", "jpeg", "occlusion", "low_light", "blank", "swapped_image"},
    "tags": {"tags_dropped", "tags_invented", "tags_shuffled", "tags_removed", "tags_adversarial"},
    "question": {"typos", "dropped_words", "paraphrase"},
}


@pytest.fixture(scope="module")
def scenes():
    return Scenes("prior_broken", size=6, tasks=["vqa"])


def content(record):
    image = record["image"]
    return (image.tobytes(), image.size, str(record["tags"]), record["question"], record["id"], str(record["cell"]))


def test_every_degradation_that_was_asked_for_exists():
    for stream, names in NAMED.items():
        assert {name for name in DEGRADATION_SETS["standard"] if DEGRADATION_STREAMS[name] == stream} == names


def test_every_record_comes_clean_and_in_every_cell(scenes):
    degraded = DegradedRecords(scenes)
    assert len(degraded) == 6 * (1 + 15 * 5)
    ids = [degraded[index]["id"] for index in range(len(degraded))]
    assert len(set(ids)) == len(ids)
    sources = Counter(name.split(" ")[0] for name in ids)
    assert sources == {scenes[index]["id"]: 76 for index in range(6)}
    assert [degraded[76 * index]["id"] for index in range(6)] == [f"{scenes[i]['id']} {CLEAN}" for i in range(6)]


@pytest.mark.parametrize("name", DEGRADATION_SETS["standard"])
def test_a_degraded_sample_is_a_pure_function(name, scenes):
    """Of sample, degradation, severity and seed: neither the order of calls nor what else is asked for matters."""
    whole, alone = DegradedRecords(scenes), DegradedRecords(scenes, [name], [2, 5], clean=False)
    places = {whole[index]["id"]: index for index in range(len(whole) - 1, -1, -1)}  # backwards: another order of calls
    other_seed = DegradedRecords(scenes, [name], [2, 5], seed=1, clean=False)
    differs_from_clean = differs_by_seed = 0
    for index in range(len(alone)):
        first, again = content(alone[index]), content(whole[places[alone[index]["id"]]])
        assert first == again == content(DegradedRecords(list(scenes), [name], [2, 5], clean=False)[index])
        clean = whole[places[f"{alone[index]['cell']['source']} {CLEAN}"]] if alone[index]["cell"] else None
        differs_from_clean += clean is not None and first[:4] != content(clean)[:4]
        differs_by_seed += first[:4] != content(other_seed[index])[:4]
        untouched = {"image": (2, 3), "tags": (0, 1, 3), "question": (0, 1, 2)}[DEGRADATION_STREAMS[name]]
        if clean is not None:
            assert all(first[part] == content(clean)[part] for part in untouched)
    assert differs_from_clean
    assert differs_by_seed or name in ("blur", "jpeg", "blank", "tags_adversarial")  # these draw nothing


def test_nothing_to_degrade():
    records = object_records(3)
    records[0]["tags"], records[1]["image"] = [], None
    records[2] |= {"task": "caption", "captions": ["a dog"], "question": None}
    degraded = DegradedRecords(records, ["noise", "tags_removed", "typos"], [3])
    cells = [degraded[index]["cell"] for index in range(len(degraded))]
    present = [None if cell is None else cell["degradation"] for cell in cells]
    assert present == [CLEAN, "noise", None, "typos", CLEAN, None, "tags_removed", "typos", CLEAN, "noise", None, None]


def test_swapped_images_are_other_samples():
    records = object_records(4)
    degraded = DegradedRecords(records, ["swapped_image"], [5], clean=False)
    images = [record["image"].tobytes() for record in records]
    for index in range(4):
        found = degraded[index]["image"].tobytes()
        assert found in images and found != images[index]
    with pytest.raises(ValueError, match="records holds 1 sample, but swapping needs another one"):
        DegradedRecords(records[:1], ["swapped_image"], [5])[1]
    with pytest.raises(ValueError, match="one sample with image only"):
        DegradedRecords([records[0], {**records[1], "image": None}], ["swapped_image"], [5])[1]


def test_donors_are_spread_and_never_oneself():
    found = [donor_index(index, f"r{index}", 50, "image") for index in range(50)]
    assert all(0 <= donor < 50 and donor != index for index, donor in enumerate(found))
    assert len(set(found)) > 25 and found != [donor_index(i, f"r{i}", 50, "tags") for i in range(50)]


def test_the_prior_invents_what_usually_comes_along():
    records = [{"tags": [("dog", 0.9), ("ball", 0.8)]}] * 3 + [
        {"tags": [("dog", 0.9), ("cat", 0.7)]},
        {"tags": [("sky", 0.9)]},
    ]
    prior = TagPrior(records)
    assert prior.false_names({"tags": [("dog", 0.5)]})[:2] == ["ball", "cat"]
    assert prior.false_names({"tags": []}) == ["dog", "ball", "cat", "sky"]
    assert prior.false_names({"tags": [], "metadata": {"prior_tags": ["red dog"]}}) == ["red dog"]
    degraded = DegradedRecords(
        [{**record, "id": str(n), "task": "vqa", "image": None, "question": "?"} for n, record in enumerate(records)],
        ["tags_adversarial"], [5], clean=False,
    )  # fmt: skip
    assert [name for name, _ in degraded[3]["tags"]] == ["ball"]
    alone = DegradedRecords(
        [{"id": "a", "task": "vqa", "image": None, "question": "?", "tags": [("dog", 1.0)]}], ["tags_invented"], [1]
    )
    assert alone[1]["cell"] is None  # no other name is known


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"degradations": ["smoke"]}, "degradation='smoke' is no degradation"),
        ({"severities": [0]}, "severity=0 is not 1, 2, 3, 4 or 5"),
    ],
)
def test_bad_arguments(arguments, text, scenes):
    with pytest.raises(ValueError, match=text):
        DegradedRecords(scenes, **arguments)


def test_places_outside():
    with pytest.raises(IndexError, match="outside of the 2 degraded records"):
        DegradedRecords(object_records(1), ["blur"], [1])[2]


def test_tags_are_lent_by_another_record(scenes):
    degraded = DegradedRecords(scenes, ["tags_foreign", "half_swapped"], [5], clean=False)
    others = [scenes[index]["tags"] for index in range(6)]
    for index in range(6):
        foreign = degraded[2 * index]
        assert foreign["cell"] is None or foreign["tags"] in others[:index] + others[index + 1 :]
        assert degraded[2 * index + 1]["image"].tobytes() != scenes[index]["image"].tobytes()
