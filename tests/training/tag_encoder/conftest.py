"""One tiny run of the tag-encoder stage that several tests look at."""

import pytest

from poise.training.tag_encoder.recipe import load_tag_encoder_recipe

SMALL = {
    "data.scenes": {"size": 200},
    "data.held_out": 0.2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "logging_steps": 1,
    "disable_tqdm": True,
    "save_strategy": "epoch",
}


@pytest.fixture(scope="session")
def small_tag_recipe():
    """`small_tag_recipe(output_dir, **overrides)`: the recipe on 200 scenes, two epochs."""

    def make(output_dir, **overrides):
        return load_tag_encoder_recipe(
            "tag_encoder_scenes", {**SMALL, "training.output_dir": str(output_dir), **overrides}
        )

    return make


@pytest.fixture(scope="session")
def finished_tag_run(small_tag_recipe, tmp_path_factory):
    """(folder of the run, folder of its tag encoder, results)."""
    from poise.training.tag_encoder.stage import run_tag_encoder

    folder = tmp_path_factory.mktemp("tags")
    return (folder, *run_tag_encoder(small_tag_recipe(folder, score_encoding="embedding")))
