"""The gate: closed it is the identity, open it scales each stream by its weight."""

import pytest
import torch
from tiny_models import (
    LANGUAGES,
    MIXED,
    batch_of,
    image_inputs,
    open_branches,
    open_model,
    real_logits,
    tiny_model,
)

pytestmark = pytest.mark.numerics


def same_but(model, **fields):
    """A model with the same weights and another router."""
    other = tiny_model("t5" if model.config.is_encoder_decoder else "llama", seed=5, **fields)
    missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert all(".router." in name for name in missing)
    return other


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ["gate", "reliability"])
@pytest.mark.parametrize("training", [False, True])
def test_an_untrained_router_is_the_identity(language, router, training):
    """Bit for bit what `router_type="none"` gives; in training too, with whole-stream dropout off."""
    samples = [sample.but(tags=None) for sample in MIXED]  # untagged images: see test_reliability_router.py
    none = tiny_model(language, router_type="none")
    open_branches(none)
    routed = same_but(none, router_type=router, stream_dropout=0.0)
    if training:
        none.train(), routed.train()
    for row, other in zip(real_logits(none, samples), real_logits(routed, samples), strict=True):
        torch.testing.assert_close(row, other, atol=1e-6, rtol=1e-6)


def test_weights_scale_the_streams():
    """Twice its softmax weight: the image's stream by 2·w₁, the prompt's by 2·w₂, computed here by hand."""
    model = open_model(router_type="gate")
    none = same_but(model, router_type="none")
    inputs = image_inputs([1, 2, 3], tags=[True, False, True])
    routed, plain = model.get_image_features(**inputs), none.get_image_features(**inputs)
    pooled = torch.cat([plain.image_hidden_states.mean(1), plain.soft_prompt_hidden_states.mean(1)], dim=-1)
    weights = model.model.router.gate(pooled).softmax(-1)
    torch.testing.assert_close(routed.router_weights, weights)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert weights.std() > 0.01
    scaled_image = 2 * weights[:, :1, None] * plain.image_hidden_states
    scaled_prompt = 2 * weights[:, 1:, None] * plain.soft_prompt_hidden_states
    torch.testing.assert_close(routed.image_hidden_states, scaled_image)
    torch.testing.assert_close(routed.soft_prompt_hidden_states, scaled_prompt)


def test_weights_come_out_of_the_model():
    """One row for each of the six images, from both model classes."""
    model = open_model(router_type="gate")
    for output in (model(**batch_of(model, MIXED)), model.model(**batch_of(model, MIXED))):
        assert output.router_weights.shape == (6, 2)
        assert output.image_hidden_states.shape == (6, 9, 48)
        assert output.soft_prompt_hidden_states.shape == (6, 2, 48)
