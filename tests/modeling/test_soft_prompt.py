"""Soft prompts: static and dynamic, both poolings, the three ways in which scores enter, images without tags."""

import pytest
import torch
from tiny_models import LANGUAGES, Sample, batch_of, image_inputs, open_model, tiny_model

from poise.modeling.soft_prompt import TokenPooling

pytestmark = pytest.mark.numerics

ENCODINGS = ("text", "embedding", "attention_bias")
POOLINGS = (("mean", 1), ("queries", 8))


def prompt_of(model, **changes):
    """Soft-prompt tokens (2, K, D) of two tagged images."""
    inputs = {**image_inputs([1, 4]), **changes}
    with torch.no_grad():
        return model.get_image_features(**inputs).soft_prompt_hidden_states


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("prompt,length", [("none", 0), ("static", 3), ("dynamic", 8)])
def test_number_of_tokens_and_where_they_stand(language, prompt, length):
    """P image tokens, then K prompt tokens, in the image's one run of placeholders."""
    model = open_model(language, soft_prompt_type=prompt, soft_prompt_length=length or 1)
    assert (model.config.num_image_tokens, model.config.num_prompt_tokens) == (9, length)
    batch = batch_of(model, Sample(), answers=False)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 9 + length
    images = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
    features = model.get_image_features(**images)
    assert features.image_hidden_states.shape == (1, 9, 48)
    assert features.soft_prompt_hidden_states.shape == (1, length, 48)
    run = torch.cat([features.image_hidden_states, features.soft_prompt_hidden_states], dim=1)[0]
    assert torch.equal(features.pooler_output[0], run)
    embeddings = model.model.embed_streams(batch["input_ids"], features=features)
    assert torch.equal(embeddings[0, 1 : 10 + length], run)


def test_none_has_no_parameters_and_no_tag_encoder():
    model = tiny_model(soft_prompt_type="none")
    assert model.model.soft_prompt is None and not hasattr(model.model, "tag_encoder")
    assert model.config.tag_encoder_config is None


def test_static_is_one_prompt_for_every_image():
    model = open_model(soft_prompt_type="static", soft_prompt_length=3)
    prompt = model.get_image_features(**image_inputs([1, 2], tags=False)).soft_prompt_hidden_states
    assert torch.equal(prompt[0], prompt[1]) and torch.equal(prompt[0], model.model.soft_prompt.prompt)


@pytest.mark.parametrize("length", [2, 4, 6])
def test_tokens_are_the_tags_own_as_far_as_they_are_scored(length):
    """The first K tag tokens, each with its score's share; the rest of it, and of the places, is the empty vector."""
    pooling = TokenPooling(length, 3)
    torch.nn.init.normal_(pooling.empty)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, generator=generator)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    scores = torch.rand(2, 4, generator=generator)
    pooled = pooling(features, mask, scores.log())
    assert pooled.shape == (2, length, 3)
    for image in range(2):
        for place in range(length):
            there = place < 4 and bool(mask[image, place])
            share = float(scores[image, place]) if there else 0.0
            own = share * features[image, place] if there else 0.0
            torch.testing.assert_close(pooled[image, place], own + (1 - share) * pooling.empty)
    torch.testing.assert_close(pooling(features, mask)[:, :2], features[:, :2])  # without scores all of it


@pytest.mark.parametrize("pooling,length", POOLINGS)
def test_dynamic_is_another_prompt_for_other_tags(pooling, length):
    model = open_model(soft_prompt_pooling=pooling, soft_prompt_length=length)
    prompt = prompt_of(model)
    assert prompt.shape == (2, length, 48)
    assert (prompt[0] - prompt[1]).abs().max() > 0.01
    if length > 1:  # K tokens that say the same would be one token
        assert (prompt[0, :1] - prompt[0, 1:]).abs().amax(-1).min() > 0.01


@pytest.mark.parametrize("pooling,length", POOLINGS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_scores_matter_where_they_should(encoding, pooling, length):
    """As an embedding or a bias another score is another prompt; as text the scores stand in the words alone."""
    model = open_model(tag_score_encoding=encoding, soft_prompt_pooling=pooling, soft_prompt_length=length)
    scores = image_inputs([1, 4])["tag_scores"]
    other = prompt_of(model, tag_scores=scores.flip(-1) * 0.5 + 0.1)
    assert torch.equal(prompt_of(model), other) == (encoding == "text")


def test_a_score_embedding_starts_closed():
    """The tag encoder starts with the inputs it was pretrained on: the scores say nothing before training."""
    model = tiny_model(tag_score_encoding="embedding")
    assert torch.equal(prompt_of(model), prompt_of(model, tag_scores=torch.rand(2, 6)))
    text = tiny_model(tag_score_encoding="text")
    text.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(prompt_of(model), prompt_of(text))


@pytest.mark.parametrize("pooling,length", POOLINGS)
def test_a_tag_of_score_zero_weighs_next_to_nothing(pooling, length):
    """`attention_bias`: a tag weighs its score times what it would weigh, so score 0 is as if it were not pooled."""
    model = open_model(soft_prompt_pooling=pooling, soft_prompt_length=length)
    soft_prompt = model.model.soft_prompt
    features = torch.randn(1, 4, 32)
    everything = torch.ones(1, 4, dtype=torch.bool)
    three = torch.tensor([[True, True, True, False]])
    scores = torch.tensor([[0.9, 0.5, 0.7, 0.0]])
    with torch.no_grad():
        with_it = soft_prompt.pooling(features, everything, scores.clamp_min(1e-4).log())
        without = soft_prompt.pooling(features, three, scores.clamp_min(1e-4).log())
        full_score = soft_prompt.pooling(features, everything, torch.tensor([[0.9, 0.5, 0.7, 1.0]]).log())
    torch.testing.assert_close(with_it, without, atol=5e-3, rtol=5e-3)
    assert (full_score - without).abs().max() > 0.05


def test_mean_pooling_with_a_bias_is_the_score_weighted_mean():
    model = open_model(soft_prompt_pooling="mean", soft_prompt_length=1)
    features, mask = torch.randn(1, 3, 32), torch.tensor([[True, True, False]])
    scores = torch.tensor([[0.8, 0.2, 0.9]])
    pooled = model.model.soft_prompt.pooling(features, mask, scores.log())
    torch.testing.assert_close(pooled[0, 0], 0.8 * features[0, 0] + 0.2 * features[0, 1])
    plain = model.model.soft_prompt.pooling(features, mask)
    torch.testing.assert_close(plain[0, 0], features[0, :2].mean(0))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pooling,length", POOLINGS)
def test_an_image_without_tags_gets_the_learned_prompt(encoding, pooling, length):
    """No tag inputs at all, an all-zero row beside tagged images, in training and at inference: the same prompt."""
    model = open_model(tag_score_encoding=encoding, soft_prompt_pooling=pooling, soft_prompt_length=length)
    learned = model.model.soft_prompt.no_tags
    for training in (False, True):
        model.train(training)
        for seeds, tags in (([1, 2], False), ([1, 2], [True, False])):
            features = model.get_image_features(**image_inputs(seeds, tags=tags))
            assert torch.equal(features.soft_prompt_hidden_states[1], learned)
        assert not torch.equal(features.soft_prompt_hidden_states[0], learned)


def test_order_of_images_is_kept_and_padding_ignored():
    model = open_model()
    inputs = image_inputs([1, 4])
    flipped = {name: value.flip(0) for name, value in inputs.items()}
    torch.testing.assert_close(prompt_of(model, **flipped), prompt_of(model).flip(0), atol=1e-5, rtol=1e-4)


def test_published_dynamic_lion_is_mean_pooling_and_one_linear_projection():
    """K = 1: BERT's last hidden states, averaged over the tags' tokens, through one linear map."""
    model = open_model(soft_prompt_pooling="mean", soft_prompt_length=1, tag_score_encoding="text")
    inputs = image_inputs([1, 4])
    with torch.no_grad():
        hidden = model.model.tag_encoder(inputs["tag_input_ids"], inputs["tag_attention_mask"]).last_hidden_state
        kept = inputs["tag_attention_mask"][..., None]
        mean = (hidden * kept).sum(1) / kept.sum(1)
        expected = model.model.soft_prompt.projection(mean)[:, None]
    torch.testing.assert_close(prompt_of(model), expected, atol=1e-5, rtol=1e-4)
