"""Soft prompts start with the language model's own words; a projector says, patch by patch, what an image shows."""

import pytest
import torch

from poise.processing import Tag
from poise.processing.scenes.layout import COLORS
from poise.processing.scenes.scenes import Scenes
from poise.processing.tag_tokens import tokenize_tags
from poise.training.sft.assembly import assemble
from poise.training.sft.recipe import load_recipe
from poise.training.sft.ridge_initialization import align_pictures, align_words, feature_batches, word_targets

IMAGES = 512


def model_and_processor(**overrides):
    return assemble(load_recipe("demo", {"align_words": False, "router_type": "none", **overrides}))


@pytest.fixture(scope="module", params=["mlp", "aggregator"])
def aligned_projector(request):
    layers = {"vision_feature_layer": [2, 4]} if request.param == "aggregator" else {}
    model, processor = model_and_processor(projector_type=request.param, **layers)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scenes = Scenes("train", size=IMAGES, tasks=["vqa"])
    explained = align_pictures(model, processor, feature_batches(model, processor, scenes, IMAGES))
    return model, processor, before, explained


def colour_of_patch(model, processor, scenes):
    """For objects of an image: the colour word whose embedding is nearest to the token in the middle of its box."""
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


def test_patches_say_the_colours_of_what_they_show(aligned_projector):
    """Chance is 1/8. The scenes are new, and their colours contradict the prior that the tags of training follow."""
    model, processor, _, explained = aligned_projector
    assert 0.4 < explained <= 1.0
    untrained, _ = model_and_processor()
    scenes = Scenes("prior_broken", size=64, tasks=["vqa"])
    assert colour_of_patch(model, processor, scenes) > 0.5
    assert colour_of_patch(untrained, processor, scenes) < 0.35


def test_only_the_last_layer_is_set_and_its_tokens_have_the_size_of_words(aligned_projector):
    model, processor, before, _ = aligned_projector
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 2 and all("projector" in name and "linear_2" in name for name in changed)
    pixels = processor.image_processor(
        [record["image"] for record in Scenes("train", size=32).__getitems__(range(32))], return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values=pixels).image_hidden_states  # (N, 36, D)
    size = (tokens - tokens.mean((0, 1))).square().mean().sqrt()
    assert torch.isclose(size, model.get_input_embeddings().weight.square().mean().sqrt(), rtol=0.3)


def test_a_stream_of_records_and_images_without_tags(aligned_projector):
    model, processor, _, explained = aligned_projector
    scenes = Scenes("train", size=IMAGES, tasks=["vqa"])
    batches = list(feature_batches(model, processor, iter(scenes), 100))
    assert sum(len(tags) for _, tags in batches) == 100
    untagged = ({**record, "tags": []} for record in scenes)
    with pytest.raises(ValueError, match="align_pictures found 0 images.*align_pictures=0"):
        align_pictures(model, processor, feature_batches(model, processor, untagged, 10))


def test_a_wrong_number_is_noticed_in_the_recipe():
    with pytest.raises(ValueError, match="model.align_pictures='many'"):
        load_recipe("demo", {"align_pictures": "many"})


@pytest.fixture(scope="module")
def aligned_prompt(small_recipe, tmp_path_factory):
    """(model, processor, share of variance explained) of the demo's backbones."""
    model, processor = assemble(small_recipe(tmp_path_factory.mktemp("words"), **{"soft_prompt_length": 8}))
    return model, processor, align_words(model, processor)


def test_prompt_tokens_lie_next_to_their_words_in_the_language_model(aligned_prompt):
    model, processor, explained = aligned_prompt
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


def test_targets_are_the_language_models_own_embeddings(aligned_prompt):
    model, processor, _ = aligned_prompt
    targets = word_targets(model, processor)
    (red,) = processor.tokenizer(" red", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(
        targets[processor.tag_tokenizer.convert_tokens_to_ids("red")], model.get_input_embeddings().weight[red].detach()
    )


def test_the_same_seed_gives_the_same_projection(aligned_prompt):
    model, processor, _ = aligned_prompt
    weight = model.model.soft_prompt.projection.weight.detach().clone()
    align_words(model, processor)
    assert torch.equal(weight, model.model.soft_prompt.projection.weight)


def test_queries_have_no_words(small_recipe, tmp_path):
    with pytest.raises(ValueError, match="soft_prompt_pooling='tokens' or 'mean'"):
        assemble(small_recipe(tmp_path, soft_prompt_pooling="queries", align_words=True))
