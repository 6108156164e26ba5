"""A soft prompt that starts with the language model's own words."""

import pytest
import torch

from poise.processing import Tag
from poise.processing.tag_tokens import tokenize_tags
from poise.training.sft.assembly import assemble
from poise.training.sft.ridge_initialization import align_words, word_targets


@pytest.fixture(scope="module")
def aligned(small_recipe, tmp_path_factory):
    """(model, processor, share of variance explained) of the demo's backbones."""
    model, processor = assemble(small_recipe(tmp_path_factory.mktemp("words"), **{"soft_prompt_length": 8}))
    return model, processor, align_words(model, processor)


def test_prompt_tokens_lie_next_to_their_words_in_the_language_model(aligned):
    model, processor, explained = aligned
    assert explained > 0.5
    rows = tokenize_tags([[Tag("red square", 1.0), Tag("blue circle", 1.0)]], processor.tag_tokenizer, False)
    ids, mask, scores = (torch.from_numpy(rows[name]) for name in ("tag_input_ids", "tag_attention_mask", "tag_scores"))
    with torch.no_grad():
        prompt = model.model.soft_prompt(1, model.model.tag_encoder, ids, mask.bool(), scores)[0]  # (K, D)
    table = model.get_input_embeddings().weight  # (V, D)
    names = ["red", "square", "blue", "circle"]
    places = [ids[0].tolist().index(processor.tag_tokenizer.convert_tokens_to_ids(name)) for name in names]
    nearest = torch.cdist(prompt[places], table).argmin(-1)
    assert processor.tokenizer.batch_decode(nearest[:, None]) == names


def test_targets_are_the_language_models_own_embeddings(aligned):
    model, processor, _ = aligned
    targets = word_targets(model, processor)
    (red,) = processor.tokenizer(" red", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(
        targets[processor.tag_tokenizer.convert_tokens_to_ids("red")], model.get_input_embeddings().weight[red].detach()
    )


def test_the_same_seed_gives_the_same_projection(aligned):
    model, processor, _ = aligned
    weight = model.model.soft_prompt.projection.weight.detach().clone()
    align_words(model, processor)
    assert torch.equal(weight, model.model.soft_prompt.projection.weight)


def test_queries_have_no_words(small_recipe, tmp_path):
    with pytest.raises(ValueError, match="soft_prompt_pooling='tokens' or 'mean'"):
        assemble(small_recipe(tmp_path, soft_prompt_pooling="queries", align_words=True))
