"""Training: gradients reach what should learn and nothing else, on every kind of batch, however it is accumulated."""

import pytest
import torch
from tiny_models import (
    LANGUAGES,
    MIXED,
    ROUTERS,
    Sample,
    batch_of,
    cached_features,
    open_branches,
    open_model,
    tiny_config,
    tiny_model,
)
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, default_data_collator

from poise.modeling import PoiseForConditionalGeneration

pytestmark = pytest.mark.numerics

NEW_MODULES = ("projector", "soft_prompt", "router")


def new_parameters(model):
    """Parameters of projector, soft prompt and router, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if name.split(".")[1] in NEW_MODULES}


def frozen(model):
    """The model as `from_backbones` leaves it, in training mode."""
    model.freeze_backbones()
    return model.train()


def no_stream_dropout(model):
    """Switches whole-stream dropout off, as anyone would who switches dropout off."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ROUTERS)
def test_every_new_parameter_learns_within_two_steps_and_no_backbone_does(language, router):
    """Two steps, because a branch that starts at zero passes no gradient through itself in the first one."""
    fields = {"tag_score_encoding": "embedding", "projector_type": "aggregator", "vision_feature_layer": [-2, -1]}
    model = frozen(tiny_model(language, router_type=router, stream_dropout=0.5, **fields))
    optimizer = torch.optim.SGD(new_parameters(model).values(), lr=1.0)
    batch = batch_of(model, (*MIXED, *(Sample(images=(seed,)) for seed in range(20, 26))), labels=True)
    learnt = set()
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        learnt |= {name for name, p in new_parameters(model).items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    expected = set(new_parameters(model))
    if router == "reliability":
        # An image without tags has no tag stream there: it reads the router's null token instead.
        expected -= {"model.soft_prompt.no_tags"}
    assert learnt == expected
    assert all(p.grad is None for name, p in model.named_parameters() if name not in new_parameters(model))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("prompt", ["none", "static", "dynamic"])
def test_text_alone_gives_every_new_parameter_a_zero_gradient(language, router, prompt):
    """Processes that average gradients wait for each parameter: a batch of text alone must not leave any out."""
    if prompt == "none" and router in ("gate", "channel"):
        pytest.skip("no second stream to route")
    model = frozen(tiny_model(language, router_type=router, soft_prompt_type=prompt))
    model.get_output_embeddings().weight.requires_grad_(True)  # something of the language model learns too
    batch = batch_of(model, [Sample(images=()), Sample(images=(), question=(3, 4))], labels=True)
    before = model.eval()(**batch).loss
    loss = model.train()(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, before)
    for name, parameter in new_parameters(model).items():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("frozen_part", NEW_MODULES)
def test_text_alone_reaches_the_rest_when_one_part_is_frozen(frozen_part):
    model = frozen(tiny_model(router_type="gate"))
    getattr(model.model, frozen_part).requires_grad_(False)
    model(**batch_of(model, Sample(images=()), labels=True)).loss.backward()
    learning = {name for name, parameter in new_parameters(model).items() if parameter.requires_grad}
    assert learning and learning == {n for n, p in new_parameters(model).items() if p.grad is not None}


def test_text_alone_with_everything_new_frozen():
    model = frozen(tiny_model(router_type="reliability"))
    model.requires_grad_(False)
    head = model.get_output_embeddings().weight.requires_grad_(True)
    model(**batch_of(model, Sample(images=()), labels=True)).loss.backward()
    assert head.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not head)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("encoding", ["text", "embedding", "attention_bias"])
@pytest.mark.parametrize("tags", [(False, False), (True, False)])
def test_images_without_tags_leave_no_parameter_out(router, encoding, tags):
    model = frozen(open_model(router_type=router, tag_score_encoding=encoding))
    batch = batch_of(model, Sample(images=(1, 2), tags=tags), labels=True)
    assert ("tag_input_ids" in batch) == any(tags)
    model(**batch).loss.backward()
    assert [n for n, p in new_parameters(model).items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in new_parameters(model).values())
    if router != "reliability":  # which puts its own null token in the place of a missing stream
        assert model.model.soft_prompt.no_tags.grad.any()


def test_a_frozen_tower_keeps_no_graph_and_stays_in_evaluation_mode():
    model = frozen(tiny_model())
    assert not model.model.vision_tower.training and not model.model.tag_encoder.training
    assert model.model.projector.training
    assert not cached_features(model, batch_of(model, Sample()))["vision_features"].requires_grad
    model.model.vision_tower.requires_grad_(True)
    model.train()
    assert model.model.vision_tower.training
    assert cached_features(model, batch_of(model, Sample()))["vision_features"].requires_grad


def test_a_tag_encoder_can_be_trained():
    model = open_model(router_type="reliability").train()
    model(**batch_of(model, Sample(), labels=True)).loss.backward()
    left_out = [n for n, p in model.model.tag_encoder.named_parameters() if p.grad is None]
    assert left_out == ["embeddings.word_embeddings.weight"] or left_out == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(language, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = open_model(language, router_type="gate").train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_activation_checkpointing
        model(**batch_of(model, MIXED, labels=True)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("language", LANGUAGES)
def test_loss_is_the_mean_over_supervised_tokens(language):
    model = open_model(language)
    batch = batch_of(model, MIXED, labels=True)
    with torch.no_grad():
        output = model(**batch)
    labels, logits = batch["labels"], output.logits
    if language == "llama":
        labels, logits = labels[:, 1:], logits[:, :-1]
    kept = labels != -100
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits[kept], labels[kept]))
    summed = model(**batch, num_items_in_batch=10 * int(kept.sum())).loss
    torch.testing.assert_close(summed, output.loss / 10)


def test_targets_that_were_shifted_before_are_used():
    """Under sequence parallelism the caller shifts the labels, and only those are right."""
    model = open_model()
    batch = batch_of(model, MIXED, labels=True)
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    loss = model(**batch).loss
    torch.testing.assert_close(model(**batch, shift_labels=shifted).loss, loss)
    shifted = torch.where(shifted == -100, -100, 3)
    assert not torch.allclose(model(**batch, shift_labels=shifted).loss, loss)


class Samples(Dataset):
    """Eight equally wide rows with answers of different length."""

    def __init__(self, model):
        lengths = (1, 4, 2, 6, 3, 1, 5, 2)
        samples = [Sample(images=(i,), answer=tuple(range(20, 20 + n))) for i, n in enumerate(lengths)]
        # A decoder-only row ends with its answer, an encoder-decoder's labels are apart: pad both to one width.
        self.batch = batch_of(model, samples, labels=True, pad_to=32)

    def __len__(self):
        return 8

    def __getitem__(self, place):
        return {name: values[place] for name, values in self.batch.items()}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ["none", "gate", "reliability"])
def test_accumulating_two_by_four_equals_eight_by_one(language, router, tmp_path):
    """Through a real Trainer: same loss, same weights, same statistics after two steps of different shape."""
    results = []
    for size, steps in ((8, 1), (2, 4)):
        model = no_stream_dropout(frozen(tiny_model(language, router_type=router)))
        open_branches(model, std=0.1)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            num_train_epochs=2, learning_rate=1e-2, max_grad_norm=0.0, optim="sgd", report_to="none",
            remove_unused_columns=False, save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True,
            lr_scheduler_type="constant", train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=Samples(model), data_collator=default_data_collator
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results.append((losses, {k: v.clone() for k, v in model.state_dict().items()}))
    (one_losses, one), (other_losses, other) = results
    assert one_losses == pytest.approx(other_losses, rel=1e-4)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-3, msg=name)


def test_vision_features_train_like_pixels():
    """The feature cache's input gives the same loss and gradients as the images."""
    results = []
    for cached in (False, True):
        model = frozen(open_model(router_type="gate"))
        batch = batch_of(model, MIXED, labels=True)
        if cached:
            batch = cached_features(model, batch)
        loss = model(**batch).loss
        loss.backward()
        results.append([loss, *(p.grad for p in new_parameters(model).values())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_images_and_features_together_or_neither_is_one_clear_line():
    model = PoiseForConditionalGeneration(tiny_config())
    batch = batch_of(model, Sample())
    with pytest.raises(ValueError, match="pixel_values and vision_features: give exactly one"):
        model(pixel_values=batch["pixel_values"], **cached_features(model, batch))
    with pytest.raises(ValueError, match="pixel_values and vision_features: give exactly one"):
        model.get_image_features()
