"""One finished run of `poise align` that several tests look at."""

import pytest


@pytest.fixture(scope="session")
def align_recipe(tmp_path_factory):
    """`align_recipe(output_dir, **overrides)`: the shipped recipe on few scenes, whose features are kept."""
    from poise.training.align.recipe import load_align_recipe

    features = tmp_path_factory.mktemp("features")

    def make(output_dir, **overrides):
        small = {
            "data.scenes": {"size": 240, "prior_strength": 0.0}, "evaluation_size": 80, "embed_dim": 32,
            "data.feature_cache": str(features), "data.feature_dtype": "float32", "max_steps": 6,
            "per_device_train_batch_size": 32, "per_device_eval_batch_size": 32, "logging_steps": 1,
            "training.output_dir": str(output_dir), "disable_tqdm": True,
        }  # fmt: skip
        return load_align_recipe("align", {**small, **overrides})

    return make


@pytest.fixture(scope="session")
def aligned(align_recipe, tmp_path_factory):
    """(folder of the run, folder of its model, metrics) of 60 short steps: far from finished, far above chance."""
    from poise.training.align.stage import run_align

    folder = tmp_path_factory.mktemp("aligned")
    model, metrics = run_align(align_recipe(folder, max_steps=60, **{"data.scenes": {"size": 600}}))
    return folder, model, metrics
