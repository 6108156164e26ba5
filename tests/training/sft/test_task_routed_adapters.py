"""One adapter for image-level and one for region-level tasks: batches of both, saved, resumed, published."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from poise.modeling.task_routed_adapters import ADAPTER_TASKS, AdapterHook
from poise.processing import Scenes, TrainingCollator
from poise.training.parameter_groups import optimizer_groups
from poise.training.run_files import base_of, last_checkpoint
from poise.training.sft.assembly import assemble, prepare_for_training
from poise.training.sft.checkpoints import load_trained
from poise.training.sft.stage import run_sft

pytestmark = pytest.mark.numerics

MIXED = {
    "lora.task_routed": True,
    "lora.r": 4,
    "data.scenes": {"size": 64, "tasks": ["caption", "vqa", "grounding"]},
    "per_device_train_batch_size": 6,
    "stream_dropout": 0.0,
    "data.max_new_tokens": 3,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def run(small_recipe, tmp_path_factory):
    """(folder of the run, folder of its model) of four steps on all three tasks."""
    folder = tmp_path_factory.mktemp("routed")
    model, _ = run_sft(small_recipe(folder, **MIXED))
    return folder, model


@pytest.fixture(scope="module")
def finished(run):
    """Model whose two adapters differ strongly, and its processor."""
    model, processor = load_trained(run[1])
    torch.manual_seed(0)
    for pair in model.model.task_adapters.pairs.values():
        torch.nn.init.normal_(pair.up, std=0.05)
    return model, processor


def records():
    return Scenes("test", size=6, tasks=("caption", "vqa", "grounding")).__getitems__(range(6))


def batch(model, processor, chosen):
    return TrainingCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)(chosen)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_the_collator_names_every_records_task(finished):
    model, processor = finished
    chosen = records()
    assert [processor.tasks[place] for place in batch(model, processor, chosen)["task_ids"]] == [
        record["task"] for record in chosen
    ]


def test_a_sample_of_a_mixed_batch_is_computed_as_alone(finished):
    model, processor = finished
    chosen = records()
    together = logits(model, batch(model, processor, chosen))
    for row, record in enumerate(chosen):
        alone = logits(model, batch(model, processor, [record]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-3, atol=1e-3)


def test_the_task_decides_and_the_first_one_is_the_default(finished):
    model, processor = finished
    inputs = batch(model, processor, records()[:1])
    by_task = []
    for place in range(len(ADAPTER_TASKS)):
        by_task.append(logits(model, {**inputs, "task_ids": torch.tensor([place])}))
    inputs.pop("task_ids")
    assert torch.equal(logits(model, inputs), by_task[0])
    tasks = list(ADAPTER_TASKS)
    assert (by_task[tasks.index("grounding")] - by_task[0]).abs().max() > 0.1


def test_tasks_may_be_given_for_every_position(finished):
    model, processor = finished
    inputs = batch(model, processor, records())
    packed = inputs["task_ids"][:, None].expand(inputs["input_ids"].shape)  # (B, T)
    torch.testing.assert_close(logits(model, {**inputs, "task_ids": packed}), logits(model, inputs))


def test_every_beam_of_a_sample_does_its_task(finished):
    model, processor = finished
    question = [{"type": "image", "image": records()[0]["image"]}, {"type": "text", "text": "the star"}]

    def answers(task, **settings):
        chat = [{"role": "user", "task": task, "content": question}]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert inputs["task_ids"].tolist() == [list(ADAPTER_TASKS).index(task)]
        return model.generate(**inputs, max_new_tokens=6, do_sample=False, **settings).tolist()

    assert answers("grounding") != answers("vqa")
    assert answers("grounding", num_beams=3, use_cache=True) == answers("grounding", num_beams=3, use_cache=False)


def test_an_unknown_task_and_a_model_without_tasks(finished, finished_run):
    _, processor = finished
    with pytest.raises(ValueError, match="task='ocr' is not known: choose one of vqa, caption, grounding"):
        processor(text="what ?", task="ocr")
    _, plain = load_trained(finished_run[1])
    with pytest.raises(ValueError, match="leave task out"):
        plain(text="what ?", task="vqa")


def test_the_mixing_weights_learn_with_the_new_modules_and_do_not_decay(small_recipe, tmp_path):
    recipe = small_recipe(tmp_path, **MIXED)
    model, _ = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    adapters = base_of(trained).model.task_adapters.modules_to_save["default"]
    own = adapters.mixing_table()
    assert own["vqa"] == own["caption"] == {"image": 1.0, "region": 0.0}
    assert own["grounding"] == {"image": 0.0, "region": 1.0}
    groups = optimizer_groups(trained, recipe.learning_rates, weight_decay=0.1)
    place = {id(p): group for group in groups for p in group["params"]}
    mixing = place[id(adapters.task_mixing)]
    assert (mixing["group"], mixing["weight_decay"]) == ("new_modules", 0.0)
    assert place[id(next(iter(adapters.pairs.values())).up)]["group"] == "adapters"


def test_untrained_adapters_change_nothing(small_recipe, tmp_path):
    model, processor = assemble(small_recipe(tmp_path, **MIXED))
    inputs = batch(model, processor, records()[:2])
    with_hooks = logits(model, inputs)
    for layer in model.model.language_model.modules():
        for key, hook in list(layer._forward_hooks.items()):
            if isinstance(hook, AdapterHook):
                del layer._forward_hooks[key]
    assert torch.equal(with_hooks, logits(model, inputs))


def test_checkpoints_hold_both_adapters_and_resume_exactly(run, small_recipe, tmp_path):
    folder, model_folder = run
    weights = load_file(last_checkpoint(folder) / "adapter_model.safetensors")
    assert any("task_mixing" in name for name in weights) and any("task_adapters.pairs" in name for name in weights)
    assert not any("lora_" in name or "language_model." in name for name in weights)
    shutil.copytree(folder / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    resumed, _ = run_sft(small_recipe(tmp_path / "again", **MIXED), resume="")
    one, two = (load_file(path / "model.safetensors") for path in (model_folder, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.task_adapters.task_mixing"], one["model.task_adapters.task_mixing"].round())


def test_a_checkpoint_answers_as_the_finished_model(run):
    checkpoint, processor = load_trained(last_checkpoint(run[0]))
    model, _ = load_trained(run[1])
    inputs = batch(model, processor, records())
    assert torch.equal(logits(checkpoint, inputs), logits(model, inputs))


@pytest.mark.slow
def test_on_a_quantized_language_model(small_recipe, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder, _ = run_sft(small_recipe(tmp_path, **{**MIXED, "model.quantization": "nf4"}))
    checkpoint, processor = load_trained(last_checkpoint(tmp_path))
    model, _ = load_trained(folder)
    inputs = batch(base_of(model), processor, records())
    assert torch.equal(logits(checkpoint, inputs), logits(model, inputs))
    other = {**inputs, "task_ids": 2 - inputs["task_ids"]}
    assert not torch.equal(logits(model, inputs), logits(model, other))


def test_adapters_of_an_encoder_decoder(small_recipe, tmp_path):
    recipe = small_recipe(tmp_path, **{**MIXED, "text": "tiny:seq2seq_lm", "align_words": False})
    model, processor = assemble(recipe)
    torch.manual_seed(0)
    for pair in model.model.task_adapters.pairs.values():
        torch.nn.init.normal_(pair.up, std=0.05)
    chosen = records()
    together = logits(model, batch(model, processor, chosen))
    alone = logits(model, batch(model, processor, chosen[2:3]))[0]
    torch.testing.assert_close(together[2, : len(alone)], alone, rtol=1e-3, atol=1e-3)
    inputs = batch(model, processor, chosen)
    inputs.pop("labels")
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=2)
    inputs["task_ids"] = 2 - inputs["task_ids"]
    other = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=2)
    assert tokens.shape != other.shape or not torch.equal(tokens, other)


WITHOUT_POISE = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("clean_process", sys.argv[1])
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.PoiseIsNotInstalled)
import torch
model, processor = clean_process.load(sys.argv[2])
values = {}
for task in processor.tasks:
    inputs = processor(images=sys.argv[3], text="<image>\\nthe star", task=task, return_tensors="pt")
    with torch.no_grad():
        values[task] = model(**inputs).logits[0, -1].tolist()
Path(sys.argv[4]).write_text(json.dumps(values))
"""


@pytest.mark.slow
def test_a_published_folder_routes_tasks_without_poise(finished, repository, tmp_path):
    model, processor = finished
    model.save_pretrained(tmp_path / "published")
    processor.save_pretrained(tmp_path / "published")
    image = tmp_path / "scene.png"
    records()[0]["image"].save(image)
    command = [sys.executable, "-c", WITHOUT_POISE, str(repository / "hub_cards" / "publishing" / "clean_process.py"),
               str(tmp_path / "published"), str(image), str(tmp_path / "logits.json")]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    values = json.loads((tmp_path / "logits.json").read_text())
    for task in ADAPTER_TASKS:
        inputs = processor(images=str(image), text="<image>\nthe star", task=task, return_tensors="pt")
        expected = logits(model, inputs)[0, -1]
        torch.testing.assert_close(torch.tensor(values[task]), expected, rtol=1e-4, atol=1e-4)
    assert values["vqa"] != values["grounding"]
