"""A router on a pretrained model is looked into like any model: what is read is what the router passes on."""

import pytest
import torch
from test_vlm_router import TAGS, opened, routed
from tiny_folders import BACKBONES, llava
from transformers import AutoProcessor

from poise import model_loading
from poise.command_line import main
from poise.evaluation.model_errors import UnsupportedProbe
from poise.evaluation.probing.answers import greedy_answers
from poise.evaluation.probing.image_features import Change
from poise.evaluation.probing.parts import model_parts
from poise.evaluation.probing.prompt_batch import PromptBatch
from poise.evaluation.robustness.router_weights import image_trust
from poise.modeling.modeling_vlm_router import RoutedVlm
from poise.processing.scenes.scenes import Scenes
from poise.training.atomic_folders import finished_folder


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def prompts(request):
    torch.manual_seed(0)
    model, inputs = routed(request.param)
    return PromptBatch(model_parts(opened(model)), {**inputs, **TAGS})


@torch.no_grad()
def test_the_prompt_is_read_with_routed_image_tokens(prompts):
    model, vlm = prompts.parts.model, prompts.parts.vlm
    assert prompts.parts.is_routed and prompts.parts.config is vlm.config
    own = model(**prompts.inputs).logits
    rows = prompts.image_rows(prompts.image)
    assert torch.equal(prompts.logits([Change(prompts.image, rows)]), own)
    assert not torch.allclose(prompts.logits([Change(prompts.image, rows.mean(0))]), own, atol=1e-4)
    # The rows are the router's, not the projector's.
    plain = PromptBatch(model_parts(vlm), {name: value for name, value in prompts.inputs.items() if name not in TAGS})
    assert not torch.allclose(plain.image_rows(plain.image), rows, atol=1e-4)


@torch.no_grad()
def test_the_tower_rests_while_tokens_are_replaced(prompts):
    assert prompts.features is not None
    runs = []
    handle = prompts.parts.vlm.get_encoder("image").register_forward_hook(lambda *_: runs.append(1))
    try:
        assert greedy_answers(prompts, max_new_tokens=3) == greedy_answers(prompts, max_new_tokens=3, use_cache=False)
    finally:
        handle.remove()
    assert not runs


@torch.no_grad()
def test_an_error_in_the_code_of_a_model_is_one_line_and_ours_stays(prompts, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(prompts.parts.layers[0], "forward", fails)
    error = AttributeError("no such thing\nhere")
    with pytest.raises(UnsupportedProbe, match=r"its own code raises AttributeError: no such thing here") as caught:
        prompts.logits()
    assert "\n" not in str(caught.value)
    error = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError):
        prompts.logits()

    def ours(*args):
        prompts.image_rows(None)  # this file's mistake, within the model

    monkeypatch.undo()
    handle = prompts.parts.layers[0].register_forward_pre_hook(ours)
    with pytest.raises(TypeError):
        prompts.logits()
    handle.remove()


def test_an_image_that_the_router_distrusts_is_warned_of(tmp_path, monkeypatch, capsys):
    model = RoutedVlm.from_vlm(llava(tmp_path / "vlm"), str(BACKBONES / "tag_encoder"))
    processor = AutoProcessor.from_pretrained(tmp_path / "vlm")
    record = Scenes("test", size=1, tasks=("vqa",))[0]
    asked = (model, processor, record["image"], record["question"], record["tags"])
    assert image_trust(*asked) == 1.0  # before enough was seen
    assert image_trust(model.vlm, *asked[1:]) is None
    model.route.router.judge = lambda *evidence: (torch.tensor([[0.25, 1.0]]), None)
    assert image_trust(*asked) == 0.25

    record["image"].save(tmp_path / "image.png")
    monkeypatch.setattr(model_loading, "load_model", lambda *_, **__: (model, processor))
    line = ["ask", str(tmp_path / "vlm"), str(tmp_path / "image.png"), "what color ?", "--max-new-tokens", "2"]
    assert main([*line, "--tags", "red star:0.9"]) == 0
    printed = capsys.readouterr()
    assert "warning: the image is unlike those that the router has seen, trust 0.25 of 1" in printed.err
    assert main([*line, "--abstain"]) == 0
    assert capsys.readouterr().out.startswith("(no answer: the image is unlike")

    page = tmp_path / "look.html"
    words = ["--output", str(page), "--cells", "2", "--max-new-tokens", "1"]
    assert main(["look", *line[1:4], "--tags", "red star:0.9", *words]) == 0
    assert "router trusts the image to 25 %" in page.read_text().replace("\u2009", " ").replace("\u00a0", " ")


def test_the_run_of_a_router_is_named_like_any_run_and_asked_without_an_image(tmp_path, capsys):
    vlm, run = llava(tmp_path / "vlm"), tmp_path / "run"
    with finished_folder(run / "model") as written:
        RoutedVlm.from_vlm(vlm, str(BACKBONES / "tag_encoder"), router_type="gate").save_pretrained(written)
        AutoProcessor.from_pretrained(vlm).save_pretrained(written)
    Scenes("test", size=1)[0]["image"].save(tmp_path / "image.png")
    page = tmp_path / "look.html"
    line = ["look", str(run), str(tmp_path / "image.png"), "what color ?", "--tags", "red star", "--output", str(page)]
    assert main([*line, "--cells", "2", "--max-new-tokens", "1"]) == 0
    assert "not asked: " not in capsys.readouterr().err and "without the image" in page.read_text()
    for name in (run, run / "model"):
        assert model_loading.output_folder(str(name), "diagnosis") == run / "diagnosis"
