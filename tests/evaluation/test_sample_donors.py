"""Donors are other samples, always the same ones; invented tags are what the data set makes likely."""

import pytest

from poise.evaluation.sample_donors import SwappableRecords, TagPrior, donor_index


@pytest.mark.parametrize("count", [2, 3, 7])
def test_nobody_lends_to_itself_and_everybody_else_does_in_time(count):
    for index in range(count):
        lenders = {donor_index(index, f"sample {seed}", count, "image", seed) for seed in range(60)}
        assert lenders == set(range(count)) - {index}


def test_a_donor_depends_on_id_what_and_seed_and_on_nothing_else():
    first = [donor_index(3, f"id {number}", 50, "image") for number in range(30)]
    assert first == [donor_index(3, f"id {number}", 50, "image") for number in range(30)]
    assert first != [donor_index(3, f"id {number}", 50, "tags") for number in range(30)]
    assert first != [donor_index(3, f"id {number}", 50, "image", seed=1) for number in range(30)]
    with pytest.raises(ValueError, match="records holds 1 sample"):
        donor_index(0, "a", 1, "image")


def test_what_has_nothing_to_lend_is_passed_over():
    records = [{"id": str(number), "image": None, "question": "?", "tags": []} for number in range(5)]
    records[3]["image"] = "the only image"
    swapped = SwappableRecords(records)
    assert [row["donors"]["image"] for row in swapped] == ["the only image"] * 3 + [None] + ["the only image"]
    assert all(row["donors"]["question"] == "?" and row["donors"]["tags"] == [] for row in swapped)
    assert set(SwappableRecords(records, what=("tags",))[0]["donors"]) == {"tags"}


def test_invented_tags_go_with_the_records_own_first_then_with_the_data_set():
    def record(*names):
        return {"tags": [(name, 0.9) for name in names]}

    prior = TagPrior(
        [record("dog", "ball", "dog"), record("dog", "ball"), record("dog", "leash"), *[record("car")] * 4]
    )
    # With "dog": ball twice, leash once; then by how frequent they are.
    assert prior.false_names(record("dog")) == ["ball", "leash", "car"]
    assert prior.false_names(record("ball")) == ["dog", "car", "leash"]
    assert prior.false_names({"tags": None}) == ["car", "dog", "ball", "leash"]
    assert prior.false_names({"tags": [], "metadata": {"prior_tags": ["red square"]}}) == ["red square"]
