"""A projector that starts with the words of tags says, patch by patch, what a picture shows."""

import pytest
import torch

from poise.processing.scenes.layout import COLORS
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.assembly import assemble
from poise.training.sft.recipe import load_recipe
from poise.training.sft.ridge_initialization import align_pictures, feature_batches

PICTURES = 512


def model_and_processor(**overrides):
    return assemble(load_recipe("demo", {"align_words": False, "router_type": "none", **overrides}))


@pytest.fixture(scope="module", params=["mlp", "aggregator"])
def aligned(request):
    layers = {"vision_feature_layer": [2, 4]} if request.param == "aggregator" else {}
    model, processor = model_and_processor(projector_type=request.param, **layers)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scenes = Scenes("train", size=PICTURES, tasks=["vqa"])
    explained = align_pictures(model, processor, feature_batches(model, processor, scenes, PICTURES))
    return model, processor, before, explained


def colour_of_patch(model, processor, scenes):
    """For objects of a picture: the colour word whose embedding is nearest to the token in the middle of its box."""
    records = scenes.__getitems__(range(len(scenes)))
    pixels = processor.image_processor([record["image"] for record in records], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values=pixels).image_hidden_states  # (N, 36, D)
        ids = [processor.tokenizer(f" {color}", add_special_tokens=False)["input_ids"][0] for color in COLORS]
        words = model.get_input_embeddings()(torch.tensor(ids))  # (8, D)
    words = words - words.mean(0)
    said = torch.einsum("npd,cd->npc", tokens - tokens.mean((0, 1)), words).argmax(-1)  # (N, 36)
    pairs = []
    for row, record in enumerate(records):
        for item in record["metadata"]["objects"]:
            x, y, width, height = item["bbox"]
            patch = int(y + height / 2) // 8 * 6 + int(x + width / 2) // 8
            pairs.append((COLORS[int(said[row, patch])], item["color"]))
    return sum(said == true for said, true in pairs) / len(pairs)


def test_patches_say_the_colours_of_what_they_show(aligned):
    """Chance is 1/8. The scenes are new, and their colours contradict the prior that the tags of training follow."""
    model, processor, _, explained = aligned
    assert 0.4 < explained <= 1.0
    untrained, _ = model_and_processor()
    scenes = Scenes("prior_broken", size=64, tasks=["vqa"])
    assert colour_of_patch(model, processor, scenes) > 0.5
    assert colour_of_patch(untrained, processor, scenes) < 0.35


def test_only_the_last_layer_is_set_and_its_tokens_have_the_size_of_words(aligned):
    model, processor, before, _ = aligned
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 2 and all("projector" in name and "linear_2" in name for name in changed)
    pixels = processor.image_processor(
        [record["image"] for record in Scenes("train", size=32).__getitems__(range(32))], return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values=pixels).image_hidden_states  # (N, 36, D)
    size = (tokens - tokens.mean((0, 1))).square().mean().sqrt()
    assert torch.isclose(size, model.get_input_embeddings().weight.square().mean().sqrt(), rtol=0.3)


def test_a_stream_of_records_and_pictures_without_tags(aligned):
    model, processor, _, explained = aligned
    scenes = Scenes("train", size=PICTURES, tasks=["vqa"])
    batches = list(feature_batches(model, processor, iter(scenes), 100))
    assert sum(len(tags) for _, tags in batches) == 100
    untagged = ({**record, "tags": []} for record in scenes)
    with pytest.raises(ValueError, match="align_pictures found 0 pictures.*align_pictures=0"):
        align_pictures(model, processor, feature_batches(model, processor, untagged, 10))


def test_a_wrong_number_is_noticed_in_the_recipe():
    with pytest.raises(ValueError, match="model.align_pictures='many'"):
        load_recipe("demo", {"align_pictures": "many"})
