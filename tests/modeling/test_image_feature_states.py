"""What the vision tower saw comes with the image features: its last state always, the others when asked for."""

import pytest
import torch
from tiny_models import ROUTERS, cached_features, image_inputs, open_model, text_config, vision_config
from transformers import LlavaConfig, LlavaModel

pytestmark = pytest.mark.numerics

IMAGES = 3
ASKED = (
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"output_hidden_states": True, "output_attentions": True},
)


def described(output):
    """Shapes of the tower's states, field by field."""
    return {
        "last_hidden_state": tuple(output.last_hidden_state.shape),
        # Without the first: unasked, LLaVA holds one state, which its projector reads, among None for the others.
        "hidden_states": [tuple(state.shape) for state in output.hidden_states or () if state is not None][1:],
        "attentions": output.attentions and [tuple(weights.shape) for weights in output.attentions],
    }


@pytest.fixture(scope="module")
def llava():
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision_config("clip"), text_config=text_config("llama"), image_token_id=5,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaModel(config).eval()
    model.set_attn_implementation("eager")
    return model


def open_clip(router="none", **fields):
    model = open_model(vision="clip", router_type=router, **fields)
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "+".join(asked))
def test_states_are_shown_as_llava_shows_them(llava, asked):
    images = image_inputs(range(IMAGES))
    model = open_clip()
    ours = described(model.get_image_features(**images, **asked))
    assert ours == described(llava.get_image_features(images["pixel_values"], **asked))
    for flag in asked:
        setattr(model.config, flag, True)
    assert described(model.get_image_features(**images)) == ours


@torch.no_grad()
@pytest.mark.parametrize("router", ROUTERS)
def test_the_states_are_the_towers_own_and_change_nothing(router):
    model, images = open_clip(router), image_inputs(range(IMAGES))
    alone = model.get_image_features(**images)
    asked = model.get_image_features(**images, output_hidden_states=True, output_attentions=True)
    tower = model.model.vision_tower(images["pixel_values"], output_hidden_states=True, output_attentions=True)
    assert torch.equal(alone.last_hidden_state, tower.last_hidden_state)
    assert torch.equal(alone.last_hidden_state, asked.last_hidden_state)
    for field in ("hidden_states", "attentions"):
        # The reliability router reads every state; without being asked nobody keeps them in memory.
        assert getattr(alone, field) is None
        assert all(map(torch.equal, getattr(asked, field), getattr(tower, field)))
    assert all(map(torch.equal, alone.pooler_output, asked.pooler_output))


@torch.no_grad()
def test_nothing_is_asked_of_the_tower_that_nobody_wants():
    model, images = open_clip(), image_inputs([1])
    arguments = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args, kwargs: arguments.append(kwargs),
                                                       with_kwargs=True)  # fmt: skip
    model.get_image_features(**images)
    model.get_image_features(**images, output_hidden_states=False, output_attentions=True)
    assert arguments[0] == {"return_dict": True}
    assert arguments[1] == {"return_dict": True, "output_attentions": True}


@torch.no_grad()
def test_features_computed_before_bring_no_states():
    model = open_clip("reliability")
    features = model.get_image_features(**cached_features(model, image_inputs([1])), output_hidden_states=True)
    assert features.last_hidden_state is features.hidden_states is features.attentions is None


@torch.no_grad()
@pytest.mark.parametrize("return_dict", [True, False, None])
def test_tuples_begin_with_the_last_state(return_dict):
    model, images = open_clip(), image_inputs(range(IMAGES))
    if return_dict is not None:
        model.model.config.return_dict = return_dict
    output = model.get_image_features(**images)
    if return_dict is False:
        assert isinstance(output, tuple) and output[0].shape == (IMAGES, 10, 32)
        assert [tuple(run.shape) for run in output[1]] == [(11, 48)] * IMAGES
    else:
        assert output[0] is output.last_hidden_state and output[1] is output.pooler_output
