"""One tiny run that several tests look at."""

import pytest

from poise.training.sft.recipe import load_recipe

SMALL = {
    "data.scenes": {"size": 64, "tasks": ["vqa"], "question_types": ["color"]},
    "data.evaluation_samples": 4,
    "per_device_train_batch_size": 4,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "model.soft_prompt_length": 2,
    "align_pictures": 0,
}


@pytest.fixture(scope="session")
def small_recipe():
    """`small_recipe(output_dir, **overrides)`: the demo's recipe on 64 scenes, a few steps."""

    def make(output_dir, **overrides):
        return load_recipe("demo", {**SMALL, "training.output_dir": str(output_dir), "max_steps": 4, **overrides})

    return make


@pytest.fixture(scope="session")
def finished_run(small_recipe, tmp_path_factory):
    """(folder of the run, folder of its model, metrics) of four steps with checkpoints after two and four."""
    from poise.training.sft.stage import run_sft

    folder = tmp_path_factory.mktemp("run")
    recipe = small_recipe(folder, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2)
    model, metrics = run_sft(recipe)
    return folder, model, metrics
