"""NF4: only the language model's linear layers are quantized, they train, and what is saved is what is loaded."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from poise.modeling import PoiseForConditionalGeneration

from .test_backbones import ask

pytestmark = pytest.mark.numerics

bitsandbytes = pytest.importorskip("bitsandbytes")


def nf4(**fields):
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **fields)


@pytest.fixture(scope="module", params=["llama", "t5"])
def arguments(request, backbones):
    return backbones.arguments(text=request.param)


def build(arguments, **fields):
    torch.manual_seed(0)
    fields = {"router_type": "reliability", "projector_type": "aggregator", "vision_feature_layer": [1, 2], **fields}
    return PoiseForConditionalGeneration.from_backbones(**arguments, quantization_config=nf4(), **fields)


def linear_layers(model):
    """Names of quantized and of full linear layers."""
    quantized, full = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            quantized.add(name)
        elif isinstance(module, torch.nn.Linear):
            full.add(name)
    return quantized, full


def check_only_the_language_model_is_quantized(model):
    quantized, full = linear_layers(model)
    assert quantized and all(name.startswith("model.language_model.") for name in quantized)
    left_out = {name for name in full if name.startswith("model.language_model.")}
    # The head stays, and what T5 wants in float32.
    assert all(name.endswith(("lm_head", ".wo")) for name in left_out)
    for part in ("vision_tower", "tag_encoder", "projector", "soft_prompt", "router"):
        kept = {name for name in full if name.startswith(f"model.{part}.")}
        assert kept, part
        assert {dict(model.named_modules())[name].weight.dtype for name in kept} == {torch.float32}, part


def test_what_is_quantized_and_what_is_kept(arguments):
    model = build(arguments)
    check_only_the_language_model_is_quantized(model)
    assert model.is_loaded_in_4bit and model.is_quantized and model.quantization_method == "bitsandbytes"
    assert model.config.quantization_config.bnb_4bit_quant_type == "nf4"
    assert not hasattr(model.config.text_config, "quantization_config")
    _, full = linear_layers(model)
    assert full <= set(model.config.quantization_config.llm_int8_skip_modules)
    assert torch.isfinite(ask(model)).all()


def test_close_to_the_full_model(arguments):
    full = PoiseForConditionalGeneration.from_backbones(**arguments, soft_prompt_type="static")
    torch.manual_seed(0)
    quantized = build(
        arguments, soft_prompt_type="static", router_type="none", projector_type="mlp", vision_feature_layer=None
    )
    quantized.model.projector.load_state_dict(full.model.projector.state_dict())
    quantized.model.soft_prompt.load_state_dict(full.model.soft_prompt.state_dict())
    one, other = ask(full).flatten(), ask(quantized).flatten()
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9


def test_saved_and_loaded(arguments, tmp_path):
    model = build(arguments)
    model.save_pretrained(tmp_path)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path)
    check_only_the_language_model_is_quantized(loaded)
    assert linear_layers(loaded) == linear_layers(model)
    assert torch.equal(ask(loaded), ask(model))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(ask(PoiseForConditionalGeneration.from_pretrained(tmp_path / "again")), ask(model))


def test_quantized_while_it_is_loaded(arguments, tmp_path):
    """A full checkpoint under a quantization configuration whose list names the parts to leave alone."""
    full = PoiseForConditionalGeneration.from_backbones(**arguments, router_type="reliability")
    full.save_pretrained(tmp_path)
    keep = [
        "model.vision_tower",
        "model.tag_encoder",
        "model.projector",
        "model.soft_prompt",
        "model.router",
        "lm_head",
    ]
    loaded = PoiseForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=nf4(llm_int8_skip_modules=keep)
    )
    quantized, _ = linear_layers(loaded)
    assert quantized and all(name.startswith("model.language_model.") for name in quantized)
    assert torch.isfinite(ask(loaded)).all()


def step(model):
    """Gradient of every new parameter after one backward pass."""
    model.train()
    model.zero_grad()
    run = [model.config.image_token_id] * (model.config.num_image_tokens + model.config.num_prompt_tokens)
    ids = torch.tensor([[1, *run, 4, 5, 6]])
    torch.manual_seed(0)
    tags = torch.tensor([[4, 5, 6]])
    batch = {
        "input_ids": ids, "pixel_values": torch.randn(1, 3, 24, 24),
        "tag_input_ids": tags, "tag_attention_mask": torch.ones_like(tags), "tag_scores": tags / 10,
    }  # fmt: skip
    labels = torch.tensor([[5, 6]]) if model.config.is_encoder_decoder else torch.where(ids < 5, -100, ids)
    model(**batch, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_evaluation_between_training_steps_changes_no_gradient(arguments):
    """On some CPUs the first evaluation would repack the weights into a form without a gradient; see `backbones.py`."""
    model = build(arguments, stream_dropout=0.0, router_type="gate")
    before = step(model)
    ask(model.eval())
    after = step(model)
    assert before.keys() == after.keys() and any("projector" in name for name in before)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_repacking_is_off_on_every_cpu(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = build(arguments)
    model.save_pretrained(tmp_path)
    for each in (model, PoiseForConditionalGeneration.from_pretrained(tmp_path)):
        switches = [m.support_avx512bf16_for_cpu for m in each.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
        assert switches and not any(switches)


def test_the_backbones_are_frozen_and_the_rest_learns(arguments):
    model = build(arguments)
    learning = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"projector", "soft_prompt", "router"}


def test_without_the_library_is_one_clear_line(arguments, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match="bitsandbytes"):
        build(arguments)
