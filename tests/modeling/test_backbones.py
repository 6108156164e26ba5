"""`from_backbones`: every tower, language model and tag encoder, from folders as the Hub has them."""

import json

import pytest
import torch
from backbone_folders import TOKENIZER_SIZE
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers import logging as transformers_logging

from poise.modeling import PoiseForConditionalGeneration
from poise.modeling.backbones import processor_image_size

# Name: image side, tokens before the patches, patches.
TOWERS = {
    "siglip": (24, 0, 9),
    "siglip_composite": (24, 0, 9),
    "clip": (24, 1, 9),
    "clip_composite": (24, 1, 9),
    "vit": (24, 1, 9),
    "dinov2": (32, 1, 16),
    "dinov2_registers": (32, 4, 16),
}


def build(arguments, **fields):
    return PoiseForConditionalGeneration.from_backbones(**arguments, **fields)


def ask(model, images=1):
    """Logits for a short prompt with images; T5's for its first decoder token."""
    side = model.config.vision_image_size or model.config.vision_config.image_size
    run = [model.config.image_token_id] * (model.config.num_image_tokens + model.config.num_prompt_tokens)
    ids = torch.tensor([[1, *run * images, 4, 5]])
    torch.manual_seed(0)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(images, 3, side, side)}
    if model.config.soft_prompt_type == "dynamic":
        tags = torch.randint(4, 20, (images, 3))
        inputs |= {"tag_input_ids": tags, "tag_attention_mask": torch.ones_like(tags), "tag_scores": tags / 20}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", TOWERS)
def test_tower_gives_its_own_patches(name, backbones, caplog):
    """Last hidden state without class and register tokens, with the pretrained weights, at the processor's size."""
    side, prefix, patches = TOWERS[name]
    with caplog.at_level("WARNING"):
        model = build(backbones.arguments(name))
    assert "newly initialized" not in caplog.text
    config = model.config
    assert (config.num_prefix_tokens, config.num_image_tokens) == (prefix, patches)
    processor = AutoImageProcessor.from_pretrained(backbones("vision", name))
    from PIL import Image

    pixels = processor(Image.effect_noise((50, 40), 80).convert("RGB"), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (side, side)
    reference = AutoModel.from_pretrained(backbones("vision", name))
    reference = getattr(reference, "vision_model", reference)
    with torch.no_grad():
        expected = reference(pixels).last_hidden_state[:, prefix:]
        image = model.model.projector(expected[:, None])
        found = model.get_image_features(pixel_values=pixels)
    assert expected.shape[1] == patches
    torch.testing.assert_close(found.image_hidden_states, image, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(ask(model)).all()


@pytest.mark.parametrize("name", ["siglip", "clip", "vit", "dinov2"])
def test_tower_at_another_size_stretches_its_positions(name, backbones):
    model = build(backbones.arguments(name), vision_image_size=40)
    assert model.config.num_image_tokens == 25
    assert torch.isfinite(ask(model)).all()


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"size": 30}, 30),
        ({"size": {"height": 30, "width": 30}}, 30),
        ({"size": {"height": 40, "width": 30}}, None),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 30, "width": 30}, "do_center_crop": True}, 30),
        ({"size": {"height": 40, "width": 40}, "crop_size": {"height": 30, "width": 30}}, 40),
    ],
)
def test_the_side_that_an_image_processor_produces(settings, side, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert processor_image_size(str(tmp_path)) == side


@pytest.mark.parametrize("name", ["clip", "dinov2_registers"])
def test_chosen_layers_and_all_tokens(name, backbones):
    _, prefix, patches = TOWERS[name]
    model = build(backbones.arguments(name), vision_feature_layer=[-2, -1], vision_feature_select="full")
    assert model.config.num_image_tokens == prefix + patches
    assert model.model.projector.linear_1.in_features == 64
    assert torch.isfinite(ask(model, images=2)).all()


@pytest.mark.parametrize("name", ["llama", "llama_full", "llama_tied", "llama_with_placeholder", "t5"])
def test_language_model_keeps_its_answers_and_knows_the_placeholder(name, backbones):
    model = build(backbones.arguments(text=name))
    rows = model.get_input_embeddings().weight.shape[0]
    # A padded vocabulary has room for the placeholder already; a full one grows by one row.
    assert rows == (TOKENIZER_SIZE + 1 if name in ("llama_full", "llama_tied") else 64)
    assert model.config.image_token_id == TOKENIZER_SIZE
    assert model.config.text_config.vocab_size == model.get_output_embeddings().weight.shape[0] == rows
    ids = torch.tensor([[1, 4, 5, 6]])
    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    reference = auto.from_pretrained(backbones("text", name)).eval()
    decoder = {"decoder_input_ids": torch.tensor([[0, 4]])} if name == "t5" else {}
    with torch.no_grad():
        expected, found = reference(ids, **decoder).logits, model(input_ids=ids, **decoder).logits
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected)
    assert model.config.is_encoder_decoder == (name == "t5")
    assert torch.isfinite(ask(model)).all()


def test_processor_and_model_agree_on_the_placeholder(backbones):
    from poise.processing.processing_poise import PoiseProcessor

    for text in ("llama", "llama_full", "llama_with_placeholder", "t5"):
        arguments = backbones.arguments(text=text)
        model = build(arguments)
        processor = PoiseProcessor.from_backbones(**arguments, config=model.config)
        assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
        assert len(processor.tokenizer) <= model.get_input_embeddings().weight.shape[0]


def test_backbones_are_frozen_new_modules_learn_and_ids_are_kept(backbones):
    arguments = backbones.arguments()
    model = build(arguments, router_type="gate")
    assert not model.training
    learning = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    resting = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert learning == {"projector", "soft_prompt", "router"}
    assert resting == {"vision_tower", "tag_encoder", "language_model"}
    assert model.config.backbones == arguments


def test_without_tags_no_tag_encoder_is_needed_or_loaded(backbones):
    for prompt in ("none", "static"):
        model = build(backbones.arguments(tags=False), soft_prompt_type=prompt)
        assert not hasattr(model.model, "tag_encoder")
        assert model.config.backbones["tag_encoder"] is None
        assert torch.isfinite(ask(model)).all()


def test_dtype_is_of_every_part(backbones):
    model = build(backbones.arguments(), router_type="reliability", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert ask(model).dtype == torch.bfloat16


def test_new_modules_start_as_in_a_fresh_model(backbones):
    """The backbones keep their weights, and initialization still reaches what is new."""
    model = build(
        backbones.arguments(), router_type="channel", projector_type="aggregator", vision_feature_layer=[1, 2]
    )
    assert not model.model.projector.blocks[0].out.weight.any()
    assert (model.model.router.image_blend == 0).all()
    assert 0.5 < model.model.soft_prompt.pooling.queries.std() < 1.5
    assert 0.01 < model.model.projector.mlp.linear_1.weight.std() < 0.03


def test_pooling_layers_that_nobody_reads_are_left_out(backbones):
    for name in ("siglip", "clip", "vit"):
        names = [name for name, _ in build(backbones.arguments(name)).named_parameters()]
        assert not [name for name in names if "pooler" in name or ".head." in name and "vision" in name]


# ---- mistakes, found before a weight is read -------------------------------------------------------------------------


@pytest.fixture
def no_weights(monkeypatch):
    """Reading weights fails the test."""

    def fail(*arguments, **keywords):
        pytest.fail("weights were read before the mistake was found")

    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        monkeypatch.setattr(auto, "from_pretrained", fail)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"router_type": "chanel"}, r"router_type='chanel' is not known: .* Did you mean 'channel'\?"),
        ({"projector_type": "aggregater"}, r"projector_type='aggregater'.* Did you mean 'aggregator'\?"),
        ({"soft_prompt_type": "dinamic"}, r"soft_prompt_type='dinamic'.* Did you mean 'dynamic'\?"),
        ({"projector_type": "aggregator"}, r"projector_type='aggregator'.*vision_feature_layer=None selects 1: give"),
        ({"vision_feature_layer": 9}, r"vision_feature_layer=9 names hidden state 9, .* use -3 to 2"),
        ({"soft_prompt_pooling": "mean"}, r"soft_prompt_length=8 does not fit .*: set soft_prompt_length=1"),
    ],
)
def test_a_wrong_field_is_one_clear_line(fields, message, backbones, no_weights):
    with pytest.raises(ValueError, match=message) as mistake:
        build(backbones.arguments(), **fields)
    assert "\n" not in str(mistake.value)


def test_a_missing_tag_encoder_is_one_clear_line(backbones, no_weights):
    with pytest.raises(ValueError, match="tag_encoder=None, but soft_prompt_type='dynamic'.*'static' or 'none'"):
        build(backbones.arguments(tags=False))


def test_a_tower_of_variable_resolution_is_one_clear_line(backbones, no_weights):
    with pytest.raises(ValueError, match="NaFlex SigLIP 2.*use a fixed-resolution one"):
        build(backbones.arguments("siglip2_naflex"))


def test_a_vision_tower_that_is_none_is_one_clear_line(backbones, no_weights):
    arguments = {**backbones.arguments(), "vision": backbones("text", "llama")}
    with pytest.raises(ValueError, match="vision_config.model_type='llama' is no vision tower"):
        build(arguments)


def test_a_checkpoint_with_missing_weights_is_one_clear_line(backbones, tmp_path):
    """A BERT's folder whose configuration says ViT would otherwise give a random tower."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "vit"
    shutil.copytree(backbones("vision", "vit"), folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: w for n, w in weights.items() if "layers.1." not in n and "layer.1." not in n}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"vision='.*' lacks \d+ weights of a ViTModel, such as"):
        build({**backbones.arguments(), "vision": str(folder)})


def test_an_unknown_field_is_one_clear_line(backbones, no_weights):
    with pytest.raises(
        ValueError, match=r"router_typ='gate' is no field of PoiseConfig\. Did you mean 'router_type'\?"
    ):
        build(backbones.arguments(), router_typ="gate")


def test_nothing_is_said_when_all_is_well(backbones, caplog):
    """No warning about unexpected or missing weights: those that are left out on purpose are known."""
    transformers_logging.enable_propagation()
    with caplog.at_level("WARNING", logger="transformers"):
        build(backbones.arguments("clip_composite", "t5"))
    transformers_logging.disable_propagation()
    assert "unexpected" not in caplog.text.lower() and "missing" not in caplog.text.lower()
