import math

import numpy as np
import pytest

from poise.processing.tags import Tag, check_tag, check_tags, check_tags_of_images, parse_tags


def test_pairs_mappings_and_numpy_numbers_become_tags():
    assert check_tag(["dog", 1]) == Tag("dog", 1.0)
    assert check_tag({"name": " traffic\n light ", "score": np.float32(0.5)}) == Tag("traffic light", 0.5)


def test_tags_are_sorted_by_falling_score_and_equal_ones_keep_their_order():
    assert [tag.name for tag in check_tags([("a", 0.2), ("b", 0.9), ("c", 0.2)])] == ["b", "a", "c"]
    assert check_tags(None) == []


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        (("dog", math.nan), ValueError, "must lie in [0, 1]"),
        (("dog", 1.01), ValueError, "must lie in [0, 1]"),
        (("dog", -0.1), ValueError, "must lie in [0, 1]"),
        (("  ", 0.5), ValueError, "name is empty"),
        (("dog", "0.5"), TypeError, "must be a number"),
        (("dog", True), TypeError, "must be a number"),
        ((7, 0.5), TypeError, "must be a string"),
        (("dog",), TypeError, "not a tag"),
        ({"name": "dog"}, TypeError, "must be a number"),
    ],
)
def test_a_bad_tag_is_named_with_its_place(entry, error, words):
    with pytest.raises(error) as caught:
        check_tags_of_images([[("cat", 0.3)], [("dog", 0.5), entry]], 2)
    message = str(caught.value)
    assert message.startswith("tags[1][1]=") and words in message and "\n" not in message


def test_one_list_per_image():
    assert check_tags_of_images([("dog", 0.5)], 1) == [[Tag("dog", 0.5)]]  # the inner list alone, for a single image
    assert check_tags_of_images([None, [("dog", 0.5)]], 2) == [[], [Tag("dog", 0.5)]]
    assert check_tags_of_images(None, 2) == [[], []]
    assert check_tags_of_images([[]], 1) == [[]]
    with pytest.raises(ValueError, match="tags holds 1 lists for 2 images"):
        check_tags_of_images([[("dog", 0.5)]], 2)
    with pytest.raises(TypeError, match="one list per image"):
        check_tags_of_images("dog:0.5", 1)
    with pytest.raises(TypeError, match=r"tags\[0\]='dog' is not a list"):
        check_tags_of_images(["dog", "cat"], 2)


def test_parsing_what_is_typed():
    assert parse_tags("ball:0.6, dog:0.97,") == [Tag("dog", 0.97), Tag("ball", 0.6)]
    assert parse_tags("ratio 16:9:0.5") == [Tag("ratio 16:9", 0.5)]
    assert parse_tags("yellow star, ball:0.6") == [Tag("yellow star", 1.0), Tag("ball", 0.6)]
    assert parse_tags("") == []


@pytest.mark.parametrize(("text", "words"), [("dog:high", "is no number"), ("dog:2", "[0, 1]"), (":0.5", "empty")])
def test_parsing_names_what_is_wrong(text, words):
    with pytest.raises(ValueError, match="dog|name") as caught:
        parse_tags(text)
    assert words in str(caught.value)
