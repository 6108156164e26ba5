"""After the first step: a module that should learn and got no gradient ends the run, unless that is allowed."""

from types import SimpleNamespace

import pytest
import torch

from poise.modeling.modeling_poise import PoiseModel
from poise.training.first_step_checks import GradientCheck
from poise.training.sft.stage import run_sft

FIRST = SimpleNamespace(global_step=0, is_world_process_zero=True)


@pytest.fixture
def model():
    """A projector that learned something in this step, and a router that the loss does not depend on."""
    model = torch.nn.ModuleDict({"projector": torch.nn.Linear(2, 2), "router": torch.nn.Linear(2, 2)})
    model["projector"](torch.ones(1, 2)).sum().backward()
    return model


def test_only_the_first_step_is_looked_at_and_only_what_is_not_allowed_ends_it(model, caplog):
    with pytest.raises(ValueError, match="router should learn but got no gradient in the first step") as caught:
        GradientCheck().on_pre_optimizer_step(None, FIRST, None, model=model)
    assert "\n" not in str(caught.value) and "checks.allow_without_gradient" in str(caught.value)
    GradientCheck().on_pre_optimizer_step(None, SimpleNamespace(global_step=1), None, model=model)
    with caplog.at_level("INFO"):
        GradientCheck(allowed=["router"]).on_pre_optimizer_step(None, FIRST, None, model=model)
    assert caplog.messages == ["no gradient in the first step, as allowed: router"]


def test_a_gradient_of_exactly_zero_is_said(model, caplog):
    for parameter in model["router"].parameters():
        parameter.grad = torch.zeros_like(parameter)
    with caplog.at_level("INFO"):
        GradientCheck().on_pre_optimizer_step(None, FIRST, None, model=model)
    (said,) = caplog.messages
    assert said.startswith("router got a gradient of exactly zero in the first step")


def test_a_run_whose_router_is_passed_by_ends_at_its_first_step(small_recipe, tmp_path, monkeypatch, caplog):
    """As under a trainer that calls some inner part of the model: the loss goes down, and the router never learns."""
    whole = PoiseModel.get_image_features

    def unrouted(self, *args, **kwargs):
        router, self._modules["router"] = self._modules["router"], None
        try:
            return whole(self, *args, **kwargs)
        finally:
            self._modules["router"] = router

    monkeypatch.setattr(PoiseModel, "get_image_features", unrouted)
    settings = {
        "max_steps": 1,
        "router_type": "gate",
        "save_strategy": "no",
        "eval_strategy": "no",
    }
    with pytest.raises(ValueError, match="router should learn but got no gradient"):
        run_sft(small_recipe(tmp_path / "refused", **settings))
    with caplog.at_level("INFO"):
        run_sft(small_recipe(tmp_path / "allowed", **settings, **{"checks.allow_without_gradient": ["router"]}))
    assert "no gradient in the first step, as allowed: router" in caplog.messages
