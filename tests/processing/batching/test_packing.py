"""Packed training is unpacked training: the same loss for every token, whatever the router."""

import pytest
import torch

from poise.processing import TrainingCollator
from poise.processing.batching.batch_description import describe_batch
from poise.processing.batching.packing import PackingCollator, _labels, packed_bins, padding_places
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.assembly import assemble
from poise.training.sft.packing import check_packing, packing_errors
from poise.training.sft.recipe import load_recipe

pytestmark = pytest.mark.numerics

ROUTERS = ("none", "gate", "channel", "reliability")
BASE = {"align_words": False, "align_pictures": 0, "model.soft_prompt_length": 2,
        }  # fmt: skip


@pytest.fixture(scope="module")
def mixed_records():
    """Questions, captions and boxes of unequal length, one without an image, one without tags."""
    records = Scenes("train", size=9, seed=3).__getitems__(range(9))
    records[2] = {**records[2], "tags": []}
    records[4] = {"id": "t", "image": None, "task": "vqa", "question": "what color is it ?", "answers": ["red"]}
    return records


def assembled(**overrides):
    model, processor = assemble(load_recipe("demo", {**BASE, **overrides}))
    return model.eval(), processor


def token_losses(model, batch):
    """Losses of the supervised tokens, sorted by (label, value): rows may come in another order."""
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]  # (B, T - 1, V)
    targets = labels[:, 1:]
    keep = targets != -100
    losses = torch.nn.functional.cross_entropy(logits[keep].double(), targets[keep], reduction="none")
    return torch.tensor(sorted(losses.tolist()))


@pytest.mark.parametrize(("router", "attention"), [*((name, "sdpa") for name in ROUTERS), ("reliability", "eager")])
def test_every_token_has_the_loss_that_it_has_alone(mixed_records, router, attention):
    model, processor = assembled(router_type=router)
    for parameter in model.model.router.parameters() if model.model.router is not None else ():
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation({"text_config": attention})
    collate = TrainingCollator(processor)
    packed = PackingCollator(collate, 160)(mixed_records)
    assert 1 < len(packed["input_ids"]) < len(mixed_records)
    alone = [token_losses(model, collate([record])) for record in mixed_records]
    together = token_losses(model, packed)
    assert torch.allclose(torch.cat(alone).sort().values, together, atol=2e-5)
    # A test that could not fail: without positions the samples of a row see one another.
    mixed = PackingCollator(collate, 160)(mixed_records)
    mixed.pop("position_ids")
    assert not torch.allclose(together, token_losses(model, mixed), atol=1e-3)


def test_the_loss_and_the_gradients_of_a_step_are_the_same(mixed_records):
    model, processor = assembled(router_type="gate")
    model.freeze_backbones()
    collate = TrainingCollator(processor)
    found = []
    for collator in (collate, PackingCollator(collate, 200)):
        model.zero_grad()
        loss = model(**collator(mixed_records)).loss
        loss.backward()
        found.append((loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5) and found[0][1].abs().max() > 1e-3


def test_every_token_of_a_packed_row_keeps_its_task(mixed_records):
    """Task-routed adapters: rows of several tasks, in each token the mixture of its own sample."""
    model, processor = assembled(router_type="gate", **{"lora.task_routed": True})
    for pair in model.model.task_adapters.pairs.values():
        torch.nn.init.normal_(pair.up, std=0.05, generator=torch.Generator().manual_seed(1))
    collate = TrainingCollator(processor)
    packed = PackingCollator(collate, 160)(mixed_records)
    assert packed["task_ids"].shape == packed["input_ids"].shape
    assert any(len(row.unique()) > 1 for row in packed["task_ids"])
    alone = torch.cat([token_losses(model, collate([record])) for record in mixed_records]).sort().values
    together = token_losses(model, dict(packed))
    assert torch.allclose(alone, together, atol=2e-5)
    # One task for all tokens is another computation.
    one_task = {**packed, "task_ids": torch.zeros_like(packed["task_ids"])}
    assert not torch.allclose(alone, token_losses(model, one_task), atol=1e-3)


def test_samples_fill_rows_and_a_long_one_gets_its_own():
    bins = packed_bins([5, 30, 4, 9, 2, 50], 20)
    assert sorted(sample for row in bins for sample in row) == list(range(6))
    assert bins[:2] == [[5], [1]] and [0, 3, 2, 4] == sorted(bins[2], key=[0, 3, 2, 4].index)
    assert len(bins) == 3


def test_the_first_token_of_a_sample_is_no_target_even_where_its_prompt_was_cut_to_nothing():
    """The token before it in the row belongs to another sample."""
    assert _labels([], [5, 6]) == [-100, 6] and _labels([3, 4], [5, 6]) == [-100, -100, 5, 6]


def test_padding_is_known_without_a_mask(mixed_records):
    _, processor = assembled()
    collate = TrainingCollator(processor)
    packed, padded = PackingCollator(collate, 160)(mixed_records), collate(mixed_records)
    tokens = int(padded["attention_mask"].sum())
    assert (~padding_places(packed)).sum() == tokens == (~padding_places(padded)).sum()
    assert padding_places(packed).float().mean() < padding_places(padded).float().mean()
    assert describe_batch(packed, processor).startswith(f"9 samples in {len(packed['input_ids'])} rows, 8 images")
    supervised = [int((batch["labels"] != -100).sum()) for batch in (packed, padded)]
    assert supervised[0] == supervised[1]


def test_what_cannot_be_exact_is_refused():
    _, processor = assembled(router_type="gate")
    with pytest.raises(ValueError, match="needs a decoder-only language model"):
        PackingCollator(TrainingCollator(processor, is_encoder_decoder=True), 100)
    with pytest.raises(ValueError, match="capacity=1"):
        PackingCollator(TrainingCollator(processor), 1)


def test_the_model_itself_is_asked_whether_its_attention_keeps_samples_apart():
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=50, **small))
    assert packing_errors(llama)[0] == 0 and packing_errors(llama)[1] < 1e-5
    half = packing_errors(llama.to(torch.bfloat16))
    assert half[0] == 0 and half[1] < 0.05
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    assert packing_errors(gpt2)[0] == 0 and packing_errors(gpt2)[1] < 1e-5
    # It takes distances from its mask and knows no position_ids, so nothing keeps the samples apart.
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=2))
    assert packing_errors(bloom)[0] > 1e-3
    model, _ = assembled()
    model.model.language_model = bloom
    with pytest.raises(ValueError, match="not exact for BloomForCausalLM with attn_implementation=.*changes another"):
        check_packing(model)
    # Kept apart, but counted from the beginning of the row: absolute positions that nobody can set.
    gpt2.transformer.wpe.register_forward_pre_hook(lambda module, places: torch.arange(places[0].shape[1])[None])
    model.model.language_model = gpt2
    with pytest.raises(ValueError, match="not exact for GPT2LMHeadModel: .* does not follow position_ids"):
        check_packing(model)
