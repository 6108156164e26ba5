"""What every transformers model is held to: outputs, embeddings, initialization, introspection."""

import inspect

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
    padded,
    tiny_config,
    tiny_model,
)
from transformers import GenerationMixin
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from poise.modeling import PoiseForConditionalGeneration, PoiseModel

pytestmark = pytest.mark.numerics

TWO = (Sample(), Sample(images=(2, 3)))


def run(model, samples=TWO, **arguments):
    with torch.no_grad():
        return model(**batch_of(model, samples), **decoder_inputs(model, samples), **arguments)


@pytest.mark.parametrize("language", LANGUAGES)
def test_hidden_states_and_attentions_of_every_layer(language):
    model = open_model(language)
    model.set_attn_implementation("eager")
    for part in (model, model.model):
        output = run(part, output_hidden_states=True, output_attentions=True)
        length = batch_of(model, TWO)["input_ids"].shape[1]
        if language == "llama":
            assert [h.shape for h in output.hidden_states] == [(2, length, 48)] * 3
            assert [a.shape for a in output.attentions] == [(2, 4, length, length)] * 2
        else:
            assert [h.shape for h in output.encoder_hidden_states] == [(2, length, 48)] * 3
            assert [h.shape for h in output.decoder_hidden_states] == [(2, 3, 48)] * 4
            assert [a.shape for a in output.encoder_attentions] == [(2, 4, length, length)] * 2
            assert [a.shape for a in output.decoder_attentions] == [(2, 4, 3, 3)] * 3
            assert [a.shape for a in output.cross_attentions] == [(2, 4, 3, length)] * 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_tuples_hold_what_outputs_hold(language):
    model = open_model(language)
    for part in (model, model.model):
        output, values = run(part), run(part, return_dict=False)
        assert isinstance(output, ModelOutput) and isinstance(values, tuple)
        assert len(values) == len(output.to_tuple())
        assert torch.equal(values[0], output[0])
    labels = batch_of(model, TWO, labels=True)
    with torch.no_grad():
        loss, logits = model(**labels, return_dict=False)[:2]
        output = model(**labels)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)


@pytest.mark.parametrize("language", LANGUAGES)
def test_inner_model_and_head_make_the_whole(language):
    """What TRL's trainers do: `base_model`, then the output embeddings."""
    model = open_model(language, router_type="gate")
    assert model.base_model is model.model and isinstance(model.base_model, PoiseModel)
    states = run(model.base_model).last_hidden_state
    scale = 48**-0.5 if language == "t5" else 1.0  # T5 scales inside its head: another reason to keep the head whole
    torch.testing.assert_close(model.get_output_embeddings()(states * scale), run(model).logits)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 2])])
def test_only_the_logits_that_are_wanted(language, kept):
    model = open_model(language)
    everything = run(model).logits
    wanted = everything[:, -kept:] if isinstance(kept, int) else everything[:, kept]
    torch.testing.assert_close(run(model, logits_to_keep=kept).logits, wanted)


@pytest.mark.parametrize("language", LANGUAGES)
def test_embeddings_instead_of_ids(language):
    model = open_model(language, router_type="gate")
    batch = {**batch_of(model, MIXED), **decoder_inputs(model, MIXED)}
    with torch.no_grad():
        expected = model(**batch).logits
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
        assert torch.equal(model(**batch).logits, expected)
    with pytest.raises(ValueError, match="input_ids and inputs_embeds: give exactly one"):
        model(**batch, input_ids=torch.tensor([[1]]))


@pytest.mark.parametrize("language", LANGUAGES)
def test_getters_and_setters_of_embeddings(language):
    model = tiny_model(language, text_fields={"tie_word_embeddings": False} if language == "llama" else {})
    new = torch.nn.Embedding(60, 48)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new and model.model.get_input_embeddings() is new
    assert model.model.language_model.get_input_embeddings() is new
    head = torch.nn.Linear(48, 60, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head and model.model.language_model.get_output_embeddings() is head


def test_encoders_by_modality():
    for language in LANGUAGES:
        model = tiny_model(language)
        assert model.get_encoder(modality="image") is model.model.vision_tower
        assert model.get_decoder() is model.model.language_model.get_decoder()
        if language == "t5":
            assert model.get_encoder() is model.model.language_model.get_encoder()


def test_labels_of_an_encoder_decoder_are_shifted_once():
    model = open_model("t5")
    batch = batch_of(model, TWO, labels=True)
    with torch.no_grad():
        shifted = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        assert torch.equal(shifted[:, 1:], batch["labels"][:, :-1].clamp_min(0)) and not shifted[:, 0].any()
        labels = batch.pop("labels")
        by_hand = model(**batch, decoder_input_ids=shifted).logits
        output = model(**batch, labels=labels)
    assert torch.equal(output.logits, by_hand)
    kept = labels != -100
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(by_hand[kept], labels[kept]))


@pytest.mark.parametrize("language", LANGUAGES)
def test_precomputed_encoder_outputs_and_features(language):
    """Given by who has them already: no image is read again."""
    model = open_model(language, router_type="gate")
    batch = batch_of(model, TWO)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    images = {name: value for name, value in batch.items() if name not in text}
    decoder = decoder_inputs(model, TWO)
    with torch.no_grad():
        expected = model(**batch, **decoder)
        features = model.get_image_features(**images)
        assert torch.equal(model(**text, **decoder, mm_encoder_outputs={"image": features}).logits, expected.logits)
        if language == "t5":
            encoded = (expected.encoder_last_hidden_state,)
            again = model(attention_mask=text["attention_mask"], encoder_outputs=encoded, **decoder)
            assert torch.equal(again.logits, expected.logits)
    with pytest.raises(ValueError, match="pixel_values and mm_encoder_outputs: give only one"):
        model(**batch, **decoder, mm_encoder_outputs={"image": features})


def test_deterministic_and_independent_of_the_cache_flag():
    model = open_model(router_type="reliability")
    one = run(model).logits
    assert torch.equal(run(model).logits, one) and torch.equal(run(model, use_cache=False).logits, one)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ["none", "gate", "channel", "reliability"])
def test_everything_that_a_checkpoint_lacks_is_initialized(language, router):
    """A checkpoint without a single weight gives what a new model has: nothing keeps what memory happened to hold."""
    fields = {"router_type": router, "tag_score_encoding": "embedding", "soft_prompt_length": 4}
    fields |= {"projector_type": "aggregator", "vision_feature_layer": [1, 2]}
    model = PoiseForConditionalGeneration.from_pretrained(None, config=tiny_config(language, **fields), state_dict={})
    reference = tiny_model(language, **fields).state_dict()
    for name, value in model.state_dict().items():
        if language == "t5" and "language_model" in name:
            continue  # transformers passes over T5's own rule when the model around it is not one of its own
        spread, expected = (tensor.float().std(unbiased=False).item() for tensor in (value, reference[name]))
        assert spread == pytest.approx(expected, rel=0.5, abs=1e-3), name
        centre, expected = (tensor.float().mean().item() for tensor in (value, reference[name]))
        assert centre == pytest.approx(expected, abs=max(0.02, spread)), name


def test_names_that_transformers_looks_for():
    model = tiny_model()
    assert isinstance(model, GenerationMixin) and model.can_generate()
    assert model.main_input_name == "input_ids" and tuple(model.input_modalities) == ("image", "text")
    assert model.base_model_prefix == "model" and model.supports_gradient_checkpointing
    accepted = set(inspect.signature(model.forward).parameters)
    assert {"pixel_values", "tag_input_ids", "tag_attention_mask", "tag_scores", "labels", "logits_to_keep"} <= accepted
    assert model.accepts_loss_kwargs if hasattr(model, "accepts_loss_kwargs") else "kwargs" in accepted
    assert set(inspect.signature(model.model.forward).parameters) >= accepted - {"labels", "logits_to_keep"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_input_gradients_for_adapters(language):
    """PEFT under gradient checkpointing wants embeddings that carry a gradient, also where images fill them."""
    model = open_model(language)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    embeddings = model.model.embed_streams(padded([[1, 7, 8]], 0)["input_ids"])
    assert embeddings.requires_grad
    model.disable_input_require_grads()


def test_fields_of_the_image_features():
    model = open_model(router_type="gate")
    batch = batch_of(model, TWO)
    images = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    features = model.get_image_features(**images)
    assert [tuple(run.shape) for run in features.pooler_output] == [(11, 48)] * 3
    assert isinstance(model.get_image_features(**images, return_dict=False), tuple)


@pytest.mark.parametrize("language", LANGUAGES)
def test_placeholders_that_nothing_fills_are_refused(language):
    """An answer without the image would come out in silence."""
    model = open_model(language)
    inputs = {k: v for k, v in batch_of(model, Sample(), answers=False).items() if k in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="11 placeholder tokens for 0 image"):
        model(**inputs, **decoder_inputs(model, Sample()))
    with pytest.raises(ValueError, match="11 placeholder tokens for 0 image"):
        model.generate(**inputs, max_new_tokens=1)


def test_labels_on_placeholders_are_not_trained_on():
    """Trainers that supervise whole conversations label everything, their own shifted labels included."""
    model = open_model()
    batch = batch_of(model, MIXED, labels=True)
    everywhere = torch.where(batch["input_ids"] == model.config.image_token_id, batch["input_ids"], batch["labels"])
    assert (everywhere != batch["labels"]).any()
    with torch.no_grad():
        expected = model(**batch).loss
        assert torch.equal(model(**{**batch, "labels": everywhere}).loss, expected)
        shifted = torch.nn.functional.pad(everywhere[:, 1:], (0, 1), value=-100)
        torch.testing.assert_close(model(**{**batch, "labels": everywhere}, shift_labels=shifted).loss, expected)


def test_an_unknown_argument_is_said_once(caplog):
    model = open_model()
    batch = batch_of(model, Sample())
    logger = logging.get_logger("poise.modeling.modeling_poise")
    logger.propagate = True
    logger.warning_once.cache_clear()
    with torch.no_grad(), caplog.at_level("WARNING"):
        model(
            **batch,
            output_attentions=False,
            use_cache=False,
            position_ids=torch.arange(batch["input_ids"].shape[1])[None],
        )
        assert not caplog.records
        for _ in range(2):
            model(**batch, tag_score=batch["tag_scores"])
    assert [record.message.partition(":")[0] for record in caplog.records] == ["tag_score"]


def test_an_encoder_decoder_counts_positions_itself():
    model = open_model("t5")
    batch = {**batch_of(model, Sample()), **decoder_inputs(model, Sample())}
    with pytest.raises(ValueError, match="position_ids is given, but an encoder-decoder"):
        model(**batch, position_ids=torch.arange(batch["input_ids"].shape[1])[None])


@pytest.mark.parametrize("router", ["gate", "reliability"])
def test_dynamically_quantized_layers_leave_no_parameters_behind(router):
    """`torch.ao` replaces every `nn.Linear`; the projector then has no parameters at all."""
    model = open_model(router_type=router)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert not list(quantized.model.projector.parameters())
    with torch.no_grad():
        logits, expected = (m(**batch_of(m, Sample())).logits for m in (quantized, model))
    assert torch.nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("router", ROUTERS)
def test_an_exported_program_answers_for_other_inputs(router):
    """`torch.export` of one batch: images, tags and words are inputs, and no verdict of the router is frozen in."""
    model = open_model(router_type=router)
    traced, other = Sample(images=(1, 2)), Sample(images=(5, 6), question=(30, 31, 32), tags=(True, False))
    program = torch.export.export(model, (), {**batch_of(model, traced), "use_cache": False}, strict=False).module()
    with torch.no_grad():
        expected = model(**batch_of(model, other)).logits
        found = program(**batch_of(model, other), use_cache=False).logits
    # The program may fuse what the model adds one after another.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
