"""LoRA, DoRA and rsLoRA: loaded as they were trained, merged as they were loaded, also from a quantized run."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from poise.command_line import main as poise
from poise.commands.merge import main as merge
from poise.hub_cards.publishing.publishable_folder import write_publishable_folder
from poise.modeling import PoiseForConditionalGeneration
from poise.processing import GenerationCollator, Scenes
from poise.training.run_files import last_checkpoint
from poise.training.sft.assembly import assemble
from poise.training.sft.checkpoints import load_trained, merged_model, trained_folder
from poise.training.sft.stage import run_sft

KINDS = {
    "lora": {},
    "rslora": {"lora.use_rslora": True},
    "dora": {"lora.use_dora": True},
    "dora_nf4": {"lora.use_dora": True, "model.quantization": "nf4"},
    "lora_nf4": {"model.quantization": "nf4"},
    "lora_int8": {"model.quantization": "int8"},
}


@torch.no_grad()
def logits(model, processor):
    inputs, _ = GenerationCollator(processor)(Scenes("test", size=4, tasks=("vqa",)).__getitems__(range(4)))
    return model(**inputs).logits


SLOW = ("dora", "dora_nf4", "lora_int8", "rslora")


def kinds(*names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.fixture(scope="module", params=kinds(*sorted(KINDS)))
def run(request, small_recipe, tmp_path_factory):
    """(kind, folder of the run, logits of the model that left the trainer)."""
    if "nf4" in request.param or "int8" in request.param:
        pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp(request.param)
    kept = {}

    class Keep(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
            kept["logits"] = logits(model.eval(), processing_class)

    recipe = small_recipe(folder, max_steps=2, save_strategy="steps", save_steps=2, **KINDS[request.param])
    run_sft(recipe, callbacks=[Keep()])
    return request.param, folder, kept["logits"]


def test_a_checkpoint_is_loaded_as_it_was_trained(run):
    kind, folder, trained = run
    model, processor = load_trained(last_checkpoint(folder))
    torch.testing.assert_close(logits(model, processor), trained, rtol=1e-4, atol=1e-4)
    if "dora" in kind:
        magnitudes = [p for n, p in model.named_parameters() if "lora_magnitude_vector" in n]
        assert magnitudes
        with torch.no_grad():
            for magnitude in magnitudes:
                magnitude.mul_(1.5)
        assert (logits(model, processor) - trained).abs().max() > 0.01  # they matter, so losing them would show


def test_merged_answers_as_with_adapters(run):
    kind, folder, trained = run
    model, processor = merged_model(last_checkpoint(folder))
    assert not isinstance(model, PeftModel) and not any("lora_" in name for name, _ in model.named_parameters())
    assert not getattr(model, "is_quantized", False)
    # int8 rounds activations, too; nothing that is merged can repeat that.
    near = 0.05 * trained.abs().max().item() if kind == "lora_int8" else 1e-3
    torch.testing.assert_close(logits(model, processor), trained, rtol=1e-3, atol=near)
    if "nf4" in kind:
        whole, _ = merged_model(folder, base="full")
        difference = (logits(whole, processor) - trained).abs().max()
        assert difference > 1e-2  # the backbone's own weights are not those that were trained on


@pytest.mark.parametrize("run", ["lora_nf4"], indirect=True)
def test_the_command_writes_a_model_that_transformers_loads_and_anybody_may_publish(run, tmp_path):
    _, folder, trained = run
    assert merge([str(folder), str(tmp_path / "merged")]) == 0
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    model = PoiseForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    _, processor = load_trained(tmp_path / "merged")
    torch.testing.assert_close(logits(model, processor), trained, rtol=1e-3, atol=1e-3)
    model.config.backbones = {"vision": "somebody/vision", "text": "somebody/text", "tag_encoder": "somebody/tags"}
    published = write_publishable_folder(model, processor, tmp_path / "published", check=False)
    assert ModelCard.load(published / "README.md").data.base_model_relation == "finetune"
    with pytest.raises(ValueError, match="not empty"):
        merge([str(folder), str(tmp_path / "merged")])


def test_a_trained_vision_tower_travels_with_the_adapter(small_recipe, tmp_path):
    rates = {"learning_rates.vision_tower": 1e-3, "learning_rates.tag_encoder": 1e-3}
    recipe = small_recipe(tmp_path, max_steps=3, save_strategy="steps", save_steps=3, **rates)
    model, _ = run_sft(recipe)
    weights = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    assert any(".vision_tower." in name for name in weights) and any(".tag_encoder." in name for name in weights)
    (checkpoint, processor), (finished, _) = load_trained(tmp_path / "checkpoint-3"), load_trained(model)
    torch.testing.assert_close(logits(checkpoint, processor), logits(finished, processor), rtol=1e-3, atol=1e-3)
    untouched, _ = assemble(recipe)
    name = "vision_tower.embeddings.patch_embedding.weight"
    assert not torch.equal(finished.model.get_parameter(name), untouched.model.get_parameter(name))


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_a_run_is_found_by_its_folder(run, tmp_path):
    _, folder, _ = run
    assert trained_folder(folder) == folder / "model"
    assert trained_folder(folder / "checkpoint-2") == folder / "checkpoint-2"
    with pytest.raises(ValueError, match="neither a finished model nor a checkpoint"):
        trained_folder(tmp_path)
    with pytest.raises(ValueError, match="choose one of dequantized, full"):
        merged_model(folder, base="4bit")


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_evaluate_takes_a_checkpoint_and_a_run(run, tmp_path, capsys):
    _, folder, _ = run
    settings = ["--data", "scenes:test", "--task", "vqa", "--samples", "4", "--json", "--max-new-tokens", "2"]
    for place, name in enumerate((folder / "checkpoint-2", folder)):
        assert poise(["evaluate", str(name), *settings, "--output", str(tmp_path / str(place))]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["vqa_samples"] > 0
