"""The walk of one sample in docs/architecture.md: its files exist, its shapes are those of the demo's model."""

import re
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_place_that_it_names_exists():
    for name in re.findall(r"`((?:modeling|processing|training|evaluation|hub_cards)/[\w/*]*(?:\.py)?)`", PAGE):
        assert list(REPOSITORY.glob(name)), name


def test_the_walk_has_the_shapes_of_the_demo():
    from poise.modeling.vision_features import encode_image
    from poise.processing import GenerationCollator, Scenes
    from poise.training.sft.assembly import assemble
    from poise.training.sft.recipe import load_recipe

    model, processor = assemble(load_recipe("demo"))
    prompt, width = (int(number) for number in re.search(r"K = (\d+) prompt tokens,\s+width D = (\d+)", PAGE).groups())
    patches, again = (int(number) for number in re.search(r"with (\d+) \+ (\d+) `<image>` tokens", PAGE).groups())
    assert prompt == again == model.config.num_prompt_tokens and patches == model.config.num_image_tokens

    inputs, _ = GenerationCollator(processor, is_encoder_decoder=False)(
        Scenes("test", size=2, tasks=("vqa",)).__getitems__([0, 1])
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum().item() == 2 * (patches + prompt)
    assert tuple(inputs["pixel_values"].shape) == (2, 3, 48, 48) and "(N, 3, 48, 48)" in PAGE
    tags = {name: inputs[name] for name in ("tag_input_ids", "tag_attention_mask", "tag_scores")}
    assert len({tuple(value.shape) for value in tags.values()}) == 1
    question = {name: inputs[name] for name in ("question_input_ids", "question_attention_mask")}
    assert {tuple(value.shape) for value in question.values()} == {(2, 64)} and "(N, 64)" in PAGE
    with torch.no_grad():
        features, profile = encode_image(model.model.vision_tower, inputs["pixel_values"], model.config)
        streams = model.get_image_features(pixel_values=inputs["pixel_values"], **tags, **question)
    assert (features.shape[0], *features.shape[2:]) == (2, patches, width) and "(N, S, 36, 96)" in PAGE
    assert profile.shape[1] % 6 == 0 and "(N, 6·L)" in PAGE
    assert tuple(streams.image_hidden_states.shape) == (2, patches, width) and f"(N, {patches}, D)" in PAGE
    assert tuple(streams.soft_prompt_hidden_states.shape) == (2, prompt, width) and f"(N, {prompt}, D)" in PAGE
    assert tuple(streams.router_weights.shape) == (2, 2) and "weights (N, 2)" in PAGE
