"""Frozen backbones in NF4, int8, bfloat16 and float32: what is stored how, and that training is right on each."""

import json

import pytest
import torch

from poise.processing import Scenes, TrainingCollator
from poise.training.first_step_checks import module_rows, module_table
from poise.training.sft.assembly import assemble, prepare_for_training
from poise.training.sft.checkpoints import load_trained
from poise.training.sft.stage import run_sft

pytestmark = pytest.mark.numerics

bitsandbytes = pytest.importorskip("bitsandbytes")
QUANTIZED = {"nf4": "nf4 (double quantized)", "int8": "int8"}


@pytest.fixture(scope="module")
def questions():
    return Scenes("test", size=48, tasks=("vqa",), seed=3).__getitems__(range(48))


@torch.no_grad()
def answer_words(model, processor, records):
    """Log-probabilities at every position of the answers, (N, V)."""
    inputs = TrainingCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)(records)
    logits, labels = model.eval()(**inputs).logits, inputs["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != -100].float().log_softmax(-1)


def distance(right, found):
    """Share of words on which both agree where `right` is sure, and the mean divergence in nats."""
    sure = right.max(-1).values.exp() > 0.5
    agreement = (right.argmax(-1) == found.argmax(-1))[sure].float().mean().item()
    divergence = torch.nn.functional.kl_div(found, right, log_target=True, reduction="batchmean").item()
    return agreement, divergence


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_table_says_what_is_quantized_and_what_learns(quantization, small_recipe, tmp_path):
    recipe = small_recipe(tmp_path, **{"model.quantization": quantization})
    model, _ = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    rows = {(row.part, row.dtype, row.group): row for row in module_rows(trained, recipe.learning_rates)}
    assert {part for part, dtype, _ in rows if dtype == QUANTIZED[quantization]} == {"language_model"}
    linear = rows["language_model", QUANTIZED[quantization], None]
    assert {"q_proj", "down_proj"} <= set(linear.layers) and "lm_head" not in linear.layers
    full, _ = assemble(small_recipe(tmp_path))
    blocks = [m for n, m in full.model.language_model.named_modules() if isinstance(m, torch.nn.Linear) and "." in n]
    assert linear.parameters == sum(m.weight.numel() for m in blocks)  # not the bytes that they are packed into
    assert {key[0] for key, row in rows.items() if row.group == "new_modules"} == {"projector", "router"}
    assert {key[0] for key, row in rows.items() if row.group == "soft_prompt"} == {"soft_prompt"}
    assert rows["language_model", "float32", "adapters"].rate == "0.001"
    lines = module_table(trained, recipe.learning_rates).splitlines()
    assert lines[0].split()[:3] == ["module", "dtype", "trainable"] and lines[-1].endswith("%)")


@pytest.mark.parametrize("text", ["causal_lm", "seq2seq_lm"])
def test_a_quantized_model_answers_as_the_full_one(text, small_recipe, questions, tmp_path):
    """
    Both sides of the threshold: four bits cost this tiny model something (0.15 and 0.35 nats when this was written),
    eight next to nothing, and a model whose weights are unpacked in the wrong order is far off.
    """
    words = {}
    for quantization in ("none", "nf4", "int8"):
        overrides = {"model.quantization": quantization, "text": f"tiny:{text}", "align_words": False}
        model, processor = assemble(small_recipe(tmp_path, **overrides))
        words[quantization] = answer_words(model, processor, questions)
        if quantization == "nf4":
            for layer in (m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)):
                packed = layer.weight.data.view(torch.uint8)
                packed.copy_(packed << 4 | packed >> 4)  # the two weights of every byte change places
            words["broken"] = answer_words(model, processor, questions)
    agreement, divergence = distance(words["none"], words["nf4"])
    assert agreement >= 0.8 and divergence <= 0.5
    agreement, divergence = distance(words["none"], words["int8"])
    assert agreement >= 0.98 and divergence <= 0.05
    agreement, divergence = distance(words["none"], words["broken"])
    assert agreement < 0.8 or divergence > 0.5


def test_evaluations_in_between_change_no_gradient(small_recipe, tmp_path):
    """With NF4 weights repacked by the first evaluation, every later gradient would be another one."""
    norms = []
    for name, strategy in (("without", "no"), ("with", "steps")):
        settings = {"model.quantization": "nf4", "eval_strategy": strategy, "eval_steps": 1, "stream_dropout": 0.0}
        recipe = small_recipe(tmp_path / name, **settings, save_strategy="steps", save_steps=4)
        run_sft(recipe)
        state = json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text())
        norms.append([entry["grad_norm"] for entry in state["log_history"] if "grad_norm" in entry])
        evaluated = [entry for entry in state["log_history"] if "eval_vqa_accuracy" in entry]
        assert len(evaluated) == (4 if strategy == "steps" else 0)
    assert len(norms[0]) == 4 and norms[0] == norms[1]


def test_no_layer_is_repacked_where_the_processor_could(small_recipe, questions, tmp_path, monkeypatch):
    """On CPUs with AVX512-BF16 bitsandbytes repacks at the first forward without gradients, unless told not to."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    repacked = []
    name = "_convert_weight_packed_for_cpu"
    monkeypatch.setattr(f"bitsandbytes.nn.modules.{name}", lambda *args, **kw: repacked.append(1) or args[1])
    model, processor = assemble(small_recipe(tmp_path, **{"model.quantization": "nf4"}))
    answer_words(model, processor, questions[:2])
    assert not repacked
    layer = next(m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    layer.support_avx512bf16_for_cpu = True  # the trap is there, and the check above would see it
    with pytest.raises(Exception):  # noqa: B017 - what our stand-in returns is of no use to the layer
        answer_words(model, processor, questions[:2])
    assert repacked


def test_what_learns_on_bfloat16_backbones_is_float32(small_recipe, tmp_path):
    recipe = small_recipe(
        tmp_path,
        max_steps=2,
        **{"dtype": "bfloat16", "learning_rates.tag_encoder": 1e-4},
    )
    model, _ = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    dtypes: dict[bool, set] = {True: set(), False: set()}
    for name, parameter in trained.named_parameters():
        if ".original_module." not in name:
            dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    folder, metrics = run_sft(recipe)
    assert metrics["steps"] == 2 and metrics["train_loss"] < 20
    loaded, _ = load_trained(folder)
    assert loaded.dtype == torch.bfloat16
