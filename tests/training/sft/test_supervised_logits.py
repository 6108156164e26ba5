"""Training computes logits where the next token is supervised: the same loss and gradients from a fraction of them."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from poise.processing.batching.packing import PackingCollator
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.assembly import assemble, prepare_for_training
from poise.training.sft.recipe import load_recipe
from poise.training.sft.stage import training_arguments
from poise.training.sft.trainer import PoiseTrainer, supervised_only, takes_a_mask

pytestmark = pytest.mark.numerics

# Everything random is off, so that two passes over one batch are the same computation.
STILL = {
    "model.soft_prompt_length": 2,
    "align_words": False,
    "align_pictures": 0,
    "stream_dropout": 0.0,
    "lora.dropout": 0.0,
}


@pytest.fixture(scope="module")
def records():
    """Answers of unequal length behind prompts of unequal length, one without an image."""
    records = Scenes("train", size=7, seed=3).__getitems__(range(7))
    records[4] = {"id": "t", "image": None, "task": "vqa", "question": "what color is it ?", "answers": ["red"]}
    return records


def trainer_for(folder, records, arguments=None, **overrides):
    recipe = load_recipe("demo", {**STILL, "training.output_dir": str(folder), **overrides})
    recipe.training.update(arguments or {})
    model, processor = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    args = training_arguments(recipe)
    return PoiseTrainer(trained, args, processor, recipe.learning_rates, train_dataset=records)


def step(trainer, batch, **arguments):
    """Loss, gradients by name and the number of positions that the head was given, of one pass."""
    seen = []
    head = trainer.model.get_base_model().get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    torch.manual_seed(0)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch), **arguments)
    if trainer.model.training:
        loss.backward()
    hook.remove()
    return loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}, seen


VARIANTS = {
    "lora": {},
    "gate": {"router_type": "gate"},
    "task-routed": {"lora.task_routed": True},
    "nf4": {"quantization": "nf4"},
    "prompt of one token": {"model.soft_prompt_length": 1, "soft_prompt_pooling": "mean"},
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_loss_and_gradients_are_those_of_all_logits(variant, records, tmp_path):
    trainer = trainer_for(tmp_path, records, **VARIANTS[variant])
    trainer.model.train()
    batch = trainer.data_collator(records)
    assert trainer.leaves_out_logits
    check_equal(trainer, batch, int((batch["labels"][:, 1:] != -100).sum()))


def check_equal(trainer, batch, supervised):
    """With the mean of one batch, and with the divisor of an accumulated one."""
    for items in (None, 100):
        trainer.leaves_out_logits = True
        few = step(trainer, batch, num_items_in_batch=items)
        trainer.leaves_out_logits = False
        all_of_them = step(trainer, batch, num_items_in_batch=items)
        assert few[2] == [supervised] and all_of_them[2] == [batch["labels"].numel()]
        torch.testing.assert_close(few[0], all_of_them[0], rtol=1e-6, atol=0)
        assert few[1].keys() == all_of_them[1].keys() and max(float(g.abs().max()) for g in few[1].values()) > 1e-3
        for name, gradient in all_of_them[1].items():
            torch.testing.assert_close(few[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_packed_rows_too(records, tmp_path):
    trainer = trainer_for(tmp_path, records)
    trainer.model.train()
    batch = PackingCollator(trainer.data_collator, 160)(records)
    assert len(batch["input_ids"]) < len(records)
    check_equal(trainer, batch, int((batch["labels"] != -100).sum()))


def test_evaluation_keeps_all_logits(records, tmp_path):
    trainer = trainer_for(tmp_path, records)
    trainer.model.eval()
    batch = trainer.data_collator(records)
    assert step(trainer, batch)[2] == [batch["labels"].numel()]


def test_where_it_stays_off(records, tmp_path):
    for arguments in ({"label_smoothing_factor": 0.1}, {"torch_compile": True}):
        assert not trainer_for(tmp_path, records, arguments).leaves_out_logits
    # Labels that somebody has shifted already belong to whoever splits the sequence.
    trainer = trainer_for(tmp_path, records)
    trainer.model.train()
    batch = trainer.data_collator(records)
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    assert step(trainer, {**batch, "shift_labels": shifted})[2] == [batch["labels"].numel()]
    nothing = {"labels": torch.full((2, 5), -100)}
    assert supervised_only(nothing) is nothing


def test_language_models_are_asked_whether_they_can(records, tmp_path):
    class NumbersOnly(GPT2LMHeadModel):
        def forward(self, *arguments, logits_to_keep=0, **others):
            return super().forward(*arguments, logits_to_keep=logits_to_keep, **others)

    model = trainer_for(tmp_path, records).model
    language = model.get_base_model().model
    assert takes_a_mask(model)
    language.language_model = NumbersOnly(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    assert not takes_a_mask(model)
    encoder_decoder, _ = assemble(load_recipe("demo", {**STILL, "model.text": "tiny:seq2seq_lm"}))
    assert not takes_a_mask(encoder_decoder)
