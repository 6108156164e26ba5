"""What is saved is what is loaded: weights, ties, dtypes; in parts, resized, through every Auto class."""

import json

import pytest
import torch
from safetensors import safe_open
from tiny_models import (
    LANGUAGES,
    ROUTERS,
    Sample,
    batch_of,
    decoder_inputs,
    open_model,
    text_config,
    tiny_model,
)
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, LlamaForCausalLM

import poise  # noqa: F401  registers the Auto classes
from poise.modeling import PoiseForConditionalGeneration, PoiseModel

# Equality to the last bit below: both sides run the same kernels, on weights that loading has aligned in memory.
pytestmark = pytest.mark.numerics
TWO = (Sample(), Sample(images=(2, 3), tags=(True, False)))


def outputs(model):
    with torch.no_grad():
        return model(**batch_of(model, TWO), **decoder_inputs(model, TWO))


def saved_names(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ROUTERS)
def test_loaded_logits_are_the_same(language, router, tmp_path):
    model = open_model(language, router_type=router)
    model.save_pretrained(tmp_path)
    loaded, report = PoiseForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(outputs(loaded).logits, outputs(model).logits)
    assert loaded.generation_config.suppress_tokens == [model.config.image_token_id]


@pytest.mark.parametrize(
    "fields",
    [
        {"soft_prompt_type": "none"},
        {"soft_prompt_type": "static"},
        {"soft_prompt_pooling": "mean", "soft_prompt_length": 1, "tag_score_encoding": "embedding"},
        {"projector_type": "aggregator", "vision_feature_layer": [0, 1, 2]},
        {"vision": "clip", "vision_feature_select": "full"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_every_kind_of_model_comes_back(fields, tmp_path):
    model = open_model(**fields)
    model.save_pretrained(tmp_path)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded).logits, outputs(model).logits)


@pytest.mark.parametrize("vision", ["siglip", "clip"])
def test_names_of_weights_survive_any_number_of_saves(vision, tmp_path):
    """transformers renames old checkpoints of other models, and undoes that when it saves; ours keep their names."""
    model = open_model(vision=vision)
    names = set(model.state_dict())
    for generation in range(3):
        model.save_pretrained(tmp_path / str(generation))
        assert saved_names(tmp_path / str(generation)) == names
        model = PoiseForConditionalGeneration.from_pretrained(tmp_path / str(generation))
    inner = PoiseModel.from_pretrained(tmp_path / "2")
    inner.save_pretrained(tmp_path / "inner")
    assert saved_names(tmp_path / "inner") == set(inner.state_dict())
    assert set(PoiseModel.from_pretrained(tmp_path / "inner").state_dict()) == set(inner.state_dict())


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModel])
@pytest.mark.parametrize("language", LANGUAGES)
def test_auto_classes(auto, language, tmp_path):
    model = open_model(language)
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    if auto is AutoModel:
        assert type(loaded) is PoiseModel
        with torch.no_grad():
            states = loaded(**batch_of(model, TWO), **decoder_inputs(model, TWO)).last_hidden_state
            expected = model.model(**batch_of(model, TWO), **decoder_inputs(model, TWO)).last_hidden_state
        assert torch.equal(states, expected)
    else:
        assert type(loaded) is PoiseForConditionalGeneration
        assert torch.equal(outputs(loaded).logits, outputs(model).logits)


def test_the_inner_model_alone_fits_into_the_whole_one(tmp_path):
    model = open_model()
    model.model.save_pretrained(tmp_path)
    loaded, report = PoiseForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(outputs(loaded).logits, outputs(model).logits)


TIES = [("llama", True), ("llama", False), ("t5", True)]  # T5 always ties


@pytest.mark.parametrize("language,tied", TIES)
def test_tied_weights_are_saved_once_and_tied_again(language, tied, tmp_path):
    model = open_model(language, text_fields={"tie_word_embeddings": tied})
    one, other = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (one is other) == tied
    model.save_pretrained(tmp_path)
    names = {name for name in saved_names(tmp_path) if "lm_head" in name or "embed_tokens" in name or "shared" in name}
    assert len(names) == (1 if tied else 2)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    assert torch.equal(outputs(loaded).logits, outputs(model).logits)


@pytest.mark.parametrize("language,tied", TIES)
def test_resized_embeddings(language, tied, tmp_path):
    model = open_model(language, text_fields={"tie_word_embeddings": tied})
    before = outputs(model).logits
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model.config.text_config.vocab_size == model.config.get_text_config().vocab_size == 70
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 70
    torch.testing.assert_close(outputs(model).logits[..., :60], before)
    labels = batch_of(model, TWO, labels=True)
    model(**labels).loss.backward()  # the loss knows the new vocabulary
    model.save_pretrained(tmp_path)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded).logits, outputs(model).logits)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_parts_offloaded(language, place, tmp_path):
    """Weights that stay on disk or are moved layer by layer give the same logits and answers."""
    model = open_model(language, router_type="reliability")
    model.save_pretrained(tmp_path / "model")
    device_map = {f"model.{name}": "cpu" for name, _ in model.model.named_children()}
    device_map |= {"model.language_model": place, "model.vision_tower": place}
    loaded = PoiseForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert place == "cpu" or any(p.device.type == "meta" for p in loaded.parameters())
    # What accelerate maps from disk for one forward pass may lie at any byte: other kernels round otherwise.
    torch.testing.assert_close(outputs(loaded).logits, outputs(model).logits, atol=1e-4, rtol=1e-4)
    batch = batch_of(model, TWO, side="left", answers=False)
    settings = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **settings), model.generate(**batch, **settings))


def test_device_map_auto_splits_no_layer(tmp_path):
    """Accelerate learns from the children which modules must stay whole."""
    model = tiny_model()
    assert {"LlamaDecoderLayer", "SiglipEncoderLayer"} <= set(model._no_split_modules)
    model.save_pretrained(tmp_path)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(outputs(loaded).logits, outputs(model).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_loaded_in_another_precision(dtype, language, tmp_path):
    model = open_model(language, router_type="reliability")
    model.save_pretrained(tmp_path)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    logits = outputs(loaded).logits
    if dtype == "auto":
        assert torch.equal(logits, outputs(model).logits)
    else:
        assert loaded.model.projector.linear_1.weight.dtype == dtype
        assert loaded.model.tag_encoder.embeddings.word_embeddings.weight.dtype == dtype
        # T5 overflows in float16 where it says so itself, and nowhere else.
        in_full = {name for name, p in loaded.named_parameters() if p.dtype == torch.float32}
        assert all(name.endswith(".wo.weight") for name in in_full)
        assert bool(in_full) == (language == "t5" and dtype == torch.float16)
        assert torch.isfinite(logits).all()


def test_statistics_load_without_a_warning_and_the_report_is_empty(tmp_path):
    model = tiny_model(router_type="reliability")
    model.save_pretrained(tmp_path)
    assert any("image_typicality.mean" in name for name in saved_names(tmp_path))
    _, report = PoiseForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())


def test_a_folder_of_another_architecture_is_one_clear_line(tmp_path):
    LlamaForCausalLM(text_config("llama")).save_pretrained(tmp_path)
    for wrong in (PoiseForConditionalGeneration, PoiseModel):
        with pytest.raises(ValueError, match=r"model_type='llama', not a Poise model: .*from_backbones") as mistake:
            wrong.from_pretrained(tmp_path)
        assert str(tmp_path) in str(mistake.value) and "\n" not in str(mistake.value)


def test_a_configuration_that_does_not_fit_its_weights_is_an_error(tmp_path):
    """Another width than that of the weights must not end in silently random layers."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["soft_prompt_length"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # the report above it names the layers
        PoiseForConditionalGeneration.from_pretrained(tmp_path)


def test_what_a_folder_holds(tmp_path):
    model = tiny_model(backbones={"vision": "a/b", "text": "c/d", "tag_encoder": "e/f"})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "poise" and config["architectures"] == ["PoiseForConditionalGeneration"]
    assert config["backbones"]["text"] == "c/d"
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM",
    }  # fmt: skip
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "modeling_poise.py"} <= files
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_sharded_checkpoints(tmp_path):
    model = open_model(router_type="gate")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded).logits, outputs(model).logits)
