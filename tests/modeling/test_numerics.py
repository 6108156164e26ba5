"""The same numbers by every route: eager and SDPA attention, bfloat16 and float32, compiled and not."""

import shutil

import pytest
import torch
from tiny_models import (
    LANGUAGES,
    MIXED,
    ROUTERS,
    Sample,
    batch_of,
    decoder_inputs,
    open_model,
    real_logits,
)

from poise.modeling import PoiseForConditionalGeneration

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_eager_equals_sdpa(language, side, tmp_path):
    model = open_model(language, router_type="gate")
    model.save_pretrained(tmp_path)
    by = {}
    for kind in ("eager", "sdpa"):
        by[kind] = PoiseForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=kind)
        parts = (by[kind].config, *(getattr(by[kind].config, f"{p}_config") for p in ("vision", "text", "tag_encoder")))
        assert {part._attn_implementation for part in parts} == {kind}
    for one, other in zip(*(real_logits(model, MIXED, side=side) for model in by.values()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_attention_may_differ_between_the_parts(tmp_path):
    open_model().save_pretrained(tmp_path)
    kinds = {"vision_config": "sdpa", "text_config": "eager", "tag_encoder_config": "sdpa"}
    model = PoiseForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=kinds)
    assert {part: getattr(model.config, part)._attn_implementation for part in kinds} == kinds
    model.set_attn_implementation("eager")
    assert {getattr(model.config, part)._attn_implementation for part in kinds} == {"eager"}
    assert model.model.language_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ROUTERS)
def test_bfloat16_is_close_to_float32(language, router):
    model = open_model(language, router_type=router)
    full = torch.cat(real_logits(model, MIXED))
    half = torch.cat(real_logits(model.to(torch.bfloat16), MIXED))
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(full.flatten(), half.float().flatten(), dim=0) > 0.99
    generated = model.generate(**batch_of(model, MIXED, side="left", answers=False), max_new_tokens=3)
    assert generated.shape[0] == len(MIXED)


@pytest.mark.parametrize("router", ROUTERS)
def test_mixed_precision_training_step(router):
    """Under autocast, as `Trainer(bf16=True)` runs it: finite loss and gradients, close to those of float32."""
    model = open_model(router_type=router, channel_rank=3, stream_dropout=0.0)
    batch = batch_of(model.train(), MIXED, labels=True)
    with torch.no_grad():
        expected = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss.float(), expected, rtol=0.05, atol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# Tracing takes seconds a case.
COMPILED = [("llama", "none"), ("llama", "gate"), ("llama", "reliability"), ("t5", "channel"), ("t5", "reliability")]


@pytest.mark.slow
@pytest.mark.parametrize("language,router", COMPILED)
def test_compiles_without_a_graph_break(language, router):
    model = open_model(language, router_type=router, channel_rank=3)
    samples = (Sample(), Sample(images=(2,), tags=(False,), question=(10,)))
    batch = {**batch_of(model, samples), **decoder_inputs(model, samples)}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler on this machine")
def test_compiled_by_inductor_gives_the_same():
    """Once through the real compiler, with the router that has most of its own arithmetic."""
    model = open_model(router_type="reliability", text_fields={"num_hidden_layers": 1})
    batch = batch_of(model, Sample())
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True)(**batch).logits, model(**batch).logits, atol=1e-3, rtol=1e-2
        )
