"""A fine-tuned model of four steps that preference training starts from, and a recipe that starts there."""

import pytest

from poise.training.preference.recipe import load_preference_recipe

FINE_TUNING = {
    "align_pictures": 0,
    "data.scenes": {"size": 64, "tasks": ["vqa"], "question_types": ["color"]},
    "data.evaluation": None,
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "dataloader_num_workers": 0,
    "eval_strategy": "no",
    "disable_tqdm": True,
}
SMALL = {
    "data.scenes": {"size": 40, "seed": 5, "prior_strength": 0.5, "question_types": ["color"]},
    "data.evaluation": None,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory):
    """`fine_tuned(router)`: the folder of a model that was fine-tuned for four steps."""
    from poise.training.sft.recipe import load_recipe
    from poise.training.sft.stage import run_sft

    folders = {}

    def make(router):
        if router not in folders:
            output = tmp_path_factory.mktemp(f"sft_{router}")
            changes = {**FINE_TUNING, "router_type": router, "training.output_dir": str(output)}
            folders[router] = run_sft(load_recipe("demo", changes))[0]
        return folders[router]

    return make


@pytest.fixture(scope="session")
def small_preference_recipe(fine_tuned):
    """`small_preference_recipe(output_dir, router, **overrides)`: four steps on forty scenes."""

    def make(output_dir, router="reliability", **overrides):
        changes = {**SMALL, "model.folder": str(fine_tuned(router)), "output_dir": str(output_dir), **overrides}
        return load_preference_recipe("preference_scenes", changes)

    return make
