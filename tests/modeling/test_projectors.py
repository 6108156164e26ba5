"""Projectors: shapes, several vision layers, and an aggregator that starts as the deep features themselves."""

import pytest
import torch
from tiny_models import image_inputs, open_branches, tiny_config, tiny_model

from poise.modeling.projectors import AggregatorProjector, MLPProjector

pytestmark = pytest.mark.numerics


def vision_states(model, pixels):
    """All hidden states of the tower, a tuple of (N, P, Dv)."""
    with torch.no_grad():
        return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layers", [None, -1, 0, [1, 2], [-3, -2, -1]])
def test_mlp_reads_the_chosen_layers_side_by_side(layers):
    model = tiny_model(vision_feature_layer=layers, soft_prompt_type="none")
    pixels = image_inputs([1, 2])["pixel_values"]
    states = vision_states(model, pixels)
    if layers is None:
        chosen = model.model.vision_tower(pixels).last_hidden_state
    else:
        chosen = torch.cat([states[layer] for layer in (layers if isinstance(layers, list) else [layers])], dim=-1)
    projector = model.model.projector
    expected = projector.linear_2(torch.nn.functional.gelu(projector.linear_1(chosen)))
    torch.testing.assert_close(model.get_image_features(pixel_values=pixels).image_hidden_states, expected)


def test_aggregator_starts_as_its_deep_features():
    """An `mlp` of the last layer alone, until its zero branches have learnt; then the middle layers count."""
    model = tiny_model(vision_feature_layer=[0, 1, 2], projector_type="aggregator", soft_prompt_type="none")
    pixels = image_inputs([1, 2])["pixel_values"]
    deep = vision_states(model, pixels)[2]
    mlp_alone = model.model.projector.mlp(deep[:, None])
    assert torch.equal(model.get_image_features(pixel_values=pixels).image_hidden_states, mlp_alone)
    open_branches(model)
    grown = model.get_image_features(pixel_values=pixels).image_hidden_states
    assert not torch.allclose(grown, model.model.projector.mlp(deep[:, None]), atol=1e-2)


@pytest.mark.parametrize("middle", [0, 1])
def test_aggregator_reads_every_middle_layer(middle):
    torch.manual_seed(0)
    projector = AggregatorProjector(32, 48, 3)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    features = torch.randn(2, 3, 9, 32)
    changed = features.clone()
    changed[:, middle] = torch.randn(2, 9, 32)
    assert not torch.allclose(projector(features), projector(changed), atol=1e-3)


@pytest.mark.parametrize(("dim", "heads"), [(32, 1), (96, 1), (192, 3), (144, 2), (200, 2)])
def test_aggregator_of_any_width(dim, heads):
    """A head for every 64 channels, or the next number that divides the width."""
    projector = AggregatorProjector(dim, 48, 2)
    assert projector(torch.randn(1, 2, 4, dim)).shape == (1, 4, 48)
    assert projector.blocks[0].num_heads == heads


def test_mlp_has_the_activation_of_the_configuration():
    features = torch.randn(1, 1, 4, 32)
    torch.manual_seed(0)
    gelu = MLPProjector(32, 48, 1)
    relu = MLPProjector(32, 48, 1, "relu")
    relu.load_state_dict(gelu.state_dict())
    expected = gelu.linear_2(gelu.linear_1(features[:, 0]).relu())
    torch.testing.assert_close(relu(features), expected)
    assert not torch.allclose(gelu(features), expected)


def test_class_token_is_kept_or_dropped():
    """CLIP puts a class token first: "patch" drops it, "full" keeps it and counts it."""
    states = {}
    for select, tokens in (("patch", 9), ("full", 10)):
        torch.manual_seed(0)
        model = tiny_model(vision="clip", vision_feature_select=select, soft_prompt_type="none")
        assert model.config.num_image_tokens == tokens
        pixels = image_inputs([1])["pixel_values"]
        states[select] = model.get_image_features(pixel_values=pixels).image_hidden_states
        assert states[select].shape[1] == tokens
    assert tiny_config(vision="clip").num_prefix_tokens == 1
    torch.testing.assert_close(states["patch"], states["full"][:, 1:])
