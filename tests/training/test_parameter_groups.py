"""Which parameters learn, at which rate, and what the start-up checks say about them."""

import pytest
import torch

from poise.training.first_step_checks import modules_without_gradient
from poise.training.parameter_groups import count_parameters, group_of, optimizer_groups
from poise.training.sft.assembly import assemble, prepare_for_training


@pytest.fixture(scope="module")
def trained(small_recipe, tmp_path_factory):
    recipe = small_recipe(tmp_path_factory.mktemp("groups"), **{"learning_rates.tag_encoder": 1e-4})
    model, _ = assemble(recipe)
    return prepare_for_training(model, recipe)


def test_every_trainable_parameter_stands_in_exactly_one_group_with_its_rate(trained):
    rates = {"new_modules": 2e-3, "soft_prompt": 5e-4, "adapters": 1e-3, "tag_encoder": 1e-4}
    groups = optimizer_groups(trained, rates, weight_decay=0.1)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in trained.parameters() if p.requires_grad)
    assert {group["group"]: group["lr"] for group in groups} == rates
    for group in groups:
        assert {parameter.dim() > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}, group["group"]
        assert group["weight_decay"] in (0.0, 0.1)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_only_adapters_and_new_modules_learn_and_originals_stay(trained):
    for name, parameter in trained.named_parameters():
        inside = any(f".{module}.modules_to_save." in name for module in ("projector", "soft_prompt", "router"))
        learns = "lora_" in name or inside or ".tag_encoder.modules_to_save." in name
        assert parameter.requires_grad == learns, name


def test_adapters_touch_the_language_model_alone(trained):
    with_adapters = {name.split(".lora_")[0] for name, _ in trained.named_parameters() if "lora_" in name}
    assert with_adapters and all(".language_model." in name for name in with_adapters)
    assert not any("lm_head" in name for name in with_adapters)


def test_counts_by_group(trained):
    counts = count_parameters(trained)
    assert counts["total"] > counts["adapters"] + counts["new_modules"] + counts["tag_encoder"] > 0


def test_a_rate_without_parameters_is_refused(trained):
    with pytest.raises(ValueError, match="learning_rates.vision_tower"):
        optimizer_groups(trained, {"new_modules": 1.0, "adapters": 1.0, "tag_encoder": 1.0, "vision_tower": 1.0}, 0.0)


def test_names_fall_into_their_groups():
    assert group_of("base_model.model.model.language_model.model.layers.0.q_proj.lora_A.default.weight") == "adapters"
    assert group_of("model.language_model.model.layers.0.q_proj.weight") is None
    assert group_of("model.router.modules_to_save.default.image_complement.null") == "new_modules"
    prompt = "model.soft_prompt.modules_to_save.default.projection.weight"
    assert (group_of(prompt), group_of(prompt, ["soft_prompt"])) == ("new_modules", "soft_prompt")
    assert group_of("model.tag_encoder.embeddings.word_embeddings.weight") == "tag_encoder"


def test_modules_without_gradient_are_named():
    model = torch.nn.ModuleDict({"projector": torch.nn.Linear(2, 2), "router": torch.nn.Linear(2, 2)})
    model["projector"](torch.ones(1, 2)).sum().backward()
    assert modules_without_gradient(model) == (["router"], [])
    model["router"].weight.grad = torch.zeros(2, 2)
    assert modules_without_gradient(model) == ([], ["router"])
