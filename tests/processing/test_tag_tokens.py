import numpy as np
import pytest

from poise.processing.tag_tokens import tag_line, tag_prompt_words, tokenize_tags
from poise.processing.tags import Tag

from .conftest import piece_tokenizer

DOG, BALL = Tag("doggy", 0.97), Tag("traffic light", 0.61)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids.tolist())


def test_every_token_carries_the_score_of_its_tag():
    tokenizer = piece_tokenizer()
    batch = tokenize_tags([[DOG, BALL], [], [BALL]], tokenizer, with_scores=False)
    mean = (0.97 + 0.61) / 2
    assert words(tokenizer, batch["tag_input_ids"][0]) == "[CLS] dog ##gy , traffic light [SEP]".split()
    np.testing.assert_allclose(batch["tag_scores"][0], [mean, 0.97, 0.97, mean, 0.61, 0.61, mean], rtol=1e-6)
    assert batch["tag_attention_mask"].tolist() == [[1] * 7, [0] * 7, [1] * 4 + [0] * 3]
    assert not batch["tag_input_ids"][1].any() and not batch["tag_scores"][1].any()
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tag_input_ids": "int64",
        "tag_attention_mask": "int64",
        "tag_scores": "float32",
    }


def test_scores_as_text_belong_to_their_tag():
    tokenizer = piece_tokenizer()
    batch = tokenize_tags([[DOG, BALL]], tokenizer, with_scores=True)
    said = words(tokenizer, batch["tag_input_ids"][0])
    assert said == "[CLS] dog ##gy 0 . 9 ##7 , traffic light 0 . 6 ##1 [SEP]".split()
    np.testing.assert_allclose(batch["tag_scores"][0, 3:7], 0.97, rtol=1e-6)
    np.testing.assert_allclose(batch["tag_scores"][0, 8:14], 0.61, rtol=1e-6)


def test_the_longest_prefix_of_whole_tags_is_kept():
    tokenizer = piece_tokenizer(max_length=8)
    batch = tokenize_tags([[Tag("dog", 0.9)] + [BALL] * 4], tokenizer, with_scores=False)
    # [CLS] dog , traffic light , traffic [SEP] would cut a tag in two.
    assert words(tokenizer, batch["tag_input_ids"][0]) == "[CLS] dog , traffic light [SEP]".split()
    mean = (0.9 + 0.61) / 2  # of the tags that are left
    np.testing.assert_allclose(batch["tag_scores"][0], [mean, 0.9, mean, 0.61, 0.61, mean], rtol=1e-6)


@pytest.mark.parametrize("limit", range(4, 20))
def test_no_limit_is_exceeded_and_no_more_is_cut_than_needed(limit):
    tokenizer = piece_tokenizer(max_length=limit)
    tags = [DOG, BALL, Tag("cat", 0.3), Tag("red ball", 0.2)]
    ids = tokenize_tags([tags], tokenizer, with_scores=False)["tag_input_ids"][0]
    fitting = [
        len(tags[:count])
        for count in range(1, 5)
        if len(piece_tokenizer()(tag_line(tags[:count], False)[0])["input_ids"]) <= limit
    ]
    expected = tag_line(tags[: max(fitting, default=1)], False)[0]
    assert len(ids) <= limit
    assert ids.tolist() == tokenizer(expected, truncation=True)["input_ids"]


def test_a_single_tag_longer_than_the_encoder_is_cut_inside():
    tokenizer = piece_tokenizer(max_length=4)
    batch = tokenize_tags([[Tag("red blue red blue", 0.5)]], tokenizer, with_scores=False)
    assert words(tokenizer, batch["tag_input_ids"][0]) == "[CLS] red blue [SEP]".split()


def test_commas_separate_tags_so_none_stays_in_a_name():
    assert tag_line([Tag("crane, bird", 0.5), DOG], False)[0] == "crane bird, doggy"


def test_words_for_the_prompt():
    assert tag_prompt_words([DOG, BALL]) == "tags : doggy , traffic light ."
    assert tag_prompt_words([]) == ""


def test_no_tags_at_all():
    assert tokenize_tags([[], []], piece_tokenizer(), False)["tag_input_ids"].shape == (2, 0)
