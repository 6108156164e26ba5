"""`data.feature_cache`: frozen towers run once, and training is the same up to rounding."""

import json

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset, IterableDataset

from poise.modeling import image_streams
from poise.processing import TaskRecords, load_task_records, write_task_records
from poise.processing.records.record_data import UNREAD
from poise.processing.scenes.scenes import Scenes
from poise.training.feature_cache import frozen_towers
from poise.training.feature_cache.cached_records import CachedTrainingCollator
from poise.training.feature_cache.frozen_towers import cached_records
from poise.training.sft.assembly import assemble, prepare_for_training
from poise.training.sft.recipe import load_recipe
from poise.training.sft.stage import run_sft, training_arguments

pytestmark = pytest.mark.numerics
SMALL = {
    "data.scenes": {"size": 24, "tasks": ["vqa", "grounding"]},
    "data.evaluation": None,
    "per_device_train_batch_size": 4,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "model.soft_prompt_length": 2,
    "align_pictures": 0,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 8,
    "max_steps": 8,
    "learning_rates.new_modules": 1e-3,
}


def recipe_for(folder, **overrides):
    return load_recipe("demo", {**SMALL, "training.output_dir": str(folder), **overrides})


def run(folder, **overrides):
    """Losses and last weights of a short run that goes over its records more than once."""
    run_sft(recipe_for(folder, **overrides))
    checkpoint = folder / "checkpoint-8"
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 8
    return losses, load_file(checkpoint / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def uncached(tmp_path_factory):
    return run(tmp_path_factory.mktemp("uncached"))


@pytest.fixture
def tower_calls(monkeypatch):
    """Grows by one whenever the model itself runs a tower over images."""
    calls = []
    run_tower = image_streams.run_tower

    def counted(*args, **kwargs):
        calls.append(len(args[1]))
        return run_tower(*args, **kwargs)

    monkeypatch.setattr(image_streams, "run_tower", counted)
    return calls


def test_cached_training_is_the_same_to_rounding(uncached, tmp_path, tower_calls):
    losses, weights = run(tmp_path / "run", **{"data.feature_cache": str(tmp_path / "features")})
    assert tower_calls == []
    # A row's features depend on its place in the batch in the last bits where MKL treats the last rows of a matrix by
    # another kernel (MKL_CBWR=COMPATIBLE, AMD); eight steps make 1e-6 of it.
    assert losses == pytest.approx(uncached[0], rel=2e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, uncached[1][name], rtol=0, atol=2e-5)
    # Both kinds of features were kept: images, and tags.
    assert len(list((tmp_path / "features").glob("*/shard-00000.safetensors"))) == 2
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*/*.safetensors")}
    # What is read back is what was computed: from here on, equal to the last bit.
    again, weights_again = run(tmp_path / "again", **{"data.feature_cache": str(tmp_path / "features")})
    assert again == losses and all(torch.equal(weights_again[name], tensor) for name, tensor in weights.items())
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*/*.safetensors")}


def test_half_precision_storage_is_close(uncached, tmp_path):
    settings = {"data.feature_cache": True, "data.feature_cache_dtype": "float16"}
    losses, _ = run(tmp_path, **settings)
    assert losses != pytest.approx(uncached[0], rel=2e-5) and losses == pytest.approx(uncached[0], rel=0.05)
    kinds = set()
    for path in (tmp_path / "features").glob("*/*.safetensors"):
        kinds |= {(name, str(tensor.dtype)) for name, tensor in load_file(path).items()}
    assert ("vision_features", "torch.float16") in kinds and ("tag_features", "torch.float16") in kinds
    assert ("image_profile", "torch.float32") in kinds  # what the router measures distances in is not rounded


VARIANTS = [
    {"router_type": "channel", "projector_type": "aggregator", "vision_feature_layer": [1, 2, -1],
     "soft_prompt_pooling": "queries", "align_words": False},
    {"router_type": "gate", "tag_score_encoding": "embedding", "soft_prompt_pooling": "mean",
     "soft_prompt_length": 1},
    {"router_type": "none", "soft_prompt_type": "static", "model.tag_encoder": None, "align_words": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def mixed_records(tmp_path_factory):
    """Two questions about one image, text alone, a box, images without tags; files, as a user has them."""
    folder = tmp_path_factory.mktemp("records")
    records = Scenes("train", size=7, tasks=("vqa", "grounding", "caption")).__getitems__(range(7))
    records[1].update(image=None, tags=[], task="vqa", question="what color is snow ?", answers=["white"])
    records[3]["tags"] = []
    write_task_records(records, folder / "train.jsonl")
    lines = (folder / "train.jsonl").read_text().splitlines()
    second = {**json.loads(lines[0]), "id": "again", "task": "vqa", "question": "how many ?", "answers": ["one"]}
    (folder / "train.jsonl").write_text("\n".join([*lines, json.dumps(second)]) + "\n")
    return folder / "train.jsonl"


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_a_batch_of_everything_gives_the_same_loss_and_gradients(variant, mixed_records, tmp_path):
    recipe = recipe_for(
        tmp_path, **{"data.train": str(mixed_records), "data.feature_cache": str(tmp_path)}, **VARIANTS[variant]
    )
    records = load_task_records(mixed_records)
    model, processor = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    cached = cached_records(records, trained, processor, training_arguments(recipe), recipe.data)
    collator = CachedTrainingCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)
    gradients = []
    for source in (records, cached):
        for chosen in ([0, 2, 4, 5], [1, 3, 6, 7], [1, 1]):
            torch.manual_seed(0)
            trained.train()
            batch = collator([source[index] for index in chosen])
            assert ("pixel_values" in batch) == (source is records and chosen != [1, 1])
            assert ("vision_features" in batch) == (source is cached and chosen != [1, 1])
            trained(**batch).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None})
        trained.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    # Batches of other sizes than the cache's are summed in another order: equal to rounding, not to the bit.
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)
    assert len(cached.vision.cache) == 6  # eight records, one of text, two about one image


def test_a_changed_image_is_noticed(mixed_records, tmp_path):
    records = load_task_records(mixed_records)
    before = frozen_towers.image_names(records)
    assert before[0] == before[7] and before[1] is None
    image = mixed_records.parent / records.records[0]["image"]
    content = image.read_bytes()
    image.write_bytes(content + b" ")
    after = frozen_towers.image_names(records)
    image.write_bytes(content)
    assert before[0] != after[0] and before[2:7] == after[2:7]


def test_images_inside_a_table_are_told_apart_by_their_pixels():
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "red", "blue")]
    rows = {"id": list("abcd"), "image": [*images, None], "task": ["caption"] * 4, "captions": [["a"]] * 4}
    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image(), "task": datasets.Value("string"),
         "captions": datasets.List(datasets.Value("string"))}
    )  # fmt: skip
    records = TaskRecords(datasets.Dataset.from_dict(rows, features=features))
    assert [record["image"] for record in records.rows(range(4), images=False)] == [UNREAD] * 4
    red, again, blue, nothing = frozen_towers.image_names(records)
    assert red == again != blue and nothing is None


# ---- what cannot be cached -------------------------------------------------------------------------------------------


class Augmented(Dataset):
    """Another image every time."""

    def __init__(self):
        self.scenes, self.calls = Scenes("train", size=8), 0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.calls += 1
        record = self.scenes[index]
        record["image"] = record["image"].rotate(self.calls % 4 * 90)
        return record


class ByEpoch(Augmented):
    def set_epoch(self, epoch):
        self.calls = epoch


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Scenes("train", size=8))


@pytest.mark.parametrize(
    ("records", "message"),
    [(Augmented, "another record every time"), (ByEpoch, "another record every time"), (Stream, "not a stream")],
)
def test_what_changes_is_refused(records, message, tmp_path):
    recipe = recipe_for(tmp_path, **{"data.feature_cache": True})
    model, processor = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    with pytest.raises(ValueError, match=message) as caught:
        cached_records(records(), trained, processor, training_arguments(recipe), recipe.data)
    assert "\n" not in str(caught.value) and "feature_cache" in str(caught.value)


def test_degradations_that_are_fixed_by_row_are_cached(tmp_path):
    recipe = recipe_for(tmp_path, **{"data.feature_cache": True})
    model, processor = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    args = training_arguments(recipe)
    clean, noisy = (Scenes("train", size=8, image_degradation=name) for name in (None, "noise"))
    features = [
        cached_records(scenes, trained, processor, args, recipe.data)[3]["features"] for scenes in (clean, noisy)
    ]
    assert not torch.equal(features[0]["vision_features"], features[1]["vision_features"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.feature_cache": True, "learning_rates.vision_tower": 1e-5}, "learning_rates.vision_tower trains it"),
        ({"data.feature_cache": 3}, "data.feature_cache=3 is no folder"),
        ({"data.feature_cache": True, "data.feature_cache_dtype": "int8"}, "feature_cache_dtype='int8' is not known"),
    ],
)
def test_a_recipe_that_cannot_be_cached_is_refused_at_once(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        recipe_for(tmp_path, **overrides)


def test_a_tag_encoder_that_learns_is_not_cached(tmp_path):
    recipe = recipe_for(tmp_path, **{"data.feature_cache": True, "learning_rates.tag_encoder": 1e-5})
    model, processor = assemble(recipe)
    trained = prepare_for_training(model, recipe)
    cached = cached_records(Scenes("train", size=8), trained, processor, training_arguments(recipe), recipe.data)
    assert cached.tags is None and "vision_features" in cached[0]["features"]
