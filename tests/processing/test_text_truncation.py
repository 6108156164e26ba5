import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.processing.text_truncation import positions_to_keep

IMAGE, BOS = 9, 8


def test_text_goes_from_the_side_that_was_asked_for():
    row = [BOS, 1, IMAGE, IMAGE, 2, 3, IMAGE, 4]
    assert [row[i] for i in positions_to_keep(row, {IMAGE, BOS}, 6, "right")] == [BOS, 1, IMAGE, IMAGE, 2, IMAGE]
    assert [row[i] for i in positions_to_keep(row, {IMAGE, BOS}, 6, "left")] == [BOS, IMAGE, IMAGE, 3, IMAGE, 4]
    assert positions_to_keep(row, {IMAGE, BOS}, 8, "left") == list(range(8))


def test_too_little_room_for_the_placeholders():
    with pytest.raises(ValueError, match="max_length=3 is less than the 4 image placeholders.*at least 4"):
        positions_to_keep([1, IMAGE, IMAGE, IMAGE, IMAGE], {IMAGE}, 3, "right")


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 30), st.sampled_from(["left", "right"]))
def test_placeholders_survive_in_order(row, max_length, side):
    kept_ids = {IMAGE, BOS}
    if sum(token in kept_ids for token in row) > max_length:
        return
    kept = positions_to_keep(row, kept_ids, max_length, side)
    assert kept == sorted(set(kept)) and len(kept) == min(len(row), max_length)
    special = [position for position, token in enumerate(row) if token in kept_ids]
    assert set(special) <= set(kept)
