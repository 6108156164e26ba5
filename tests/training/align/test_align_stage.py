"""`poise align`: cached features, recipe, training, resuming, several processes, what is written and measured."""

import json
import os
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from poise.commands.train import ALIGN
from poise.evaluation.calibration import mean_average_precision, retrieval_recall, tagging_scores
from poise.processing import Scenes, write_task_records
from poise.processing.records.tagged_records import load_tagger
from poise.training.align import stage as align
from poise.training.align.caption_pairs import CaptionPairs, caption_parts, load_pairs
from poise.training.align.pair_features import pair_features
from poise.training.align.recipe import load_align_recipe
from poise.training.align.stage import run_align
from poise.training.align.trainer import AlignTrainer

pytestmark = pytest.mark.numerics


def test_cached_features_are_the_computed_ones(tiny_dual_encoder, tiny_pair_processor, tmp_path):
    model, pairs = tiny_dual_encoder(), load_pairs("scenes", "test", {"size": 5})
    features = pair_features(model, tiny_pair_processor, pairs, tmp_path, torch.float32, parts=True)
    batch = features.__getitems__(range(len(features)))
    texts = [t for own in pairs.captions for t in [*own, *dict.fromkeys(sum(map(caption_parts, own), []))]]
    assert len(features) == len(texts)
    with torch.no_grad():
        images, words, *_ = model.head(**{name: value for name, value in batch.items() if not name.endswith("_rows")})
        pixels = tiny_pair_processor.image_processor(pairs.images(range(5)), return_tensors="pt")["pixel_values"]
        expected = model.get_image_features(pixels).pooler_output
        tokens = tiny_pair_processor.tokenizer(texts, padding=True, return_tensors="pt")
        spoken = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    torch.testing.assert_close(images, expected[batch["image_rows"]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(words, spoken, rtol=1e-4, atol=1e-5)


def test_matches_are_the_texts_written_of_an_image(tiny_dual_encoder, tiny_pair_processor, tmp_path):
    records = [
        {"id": "a", "image": None, "task": "caption", "captions": ["a red square and a blue star", "a red square"]},
        {"id": "b", "image": None, "task": "caption", "captions": ["a red square"]},
    ]
    for record in records:
        record["image"] = Image.new("RGB", (48, 48))
    from poise.processing import TaskRecords

    pairs = CaptionPairs(TaskRecords(records), "test")
    features = pair_features(tiny_dual_encoder(), tiny_pair_processor, pairs, tmp_path, torch.float32)
    batch = features.__getitems__(range(3))
    assert features.matches(batch["image_rows"], batch["text_rows"]).tolist() == [
        [True, True, True], [True, True, True], [False, True, True],
    ]  # fmt: skip


def test_captions_fall_into_phrases():
    caption = "three shapes : a red square , two blue stars and a ring"
    assert caption_parts(caption) == ["three shapes", "a red square", "two blue stars", "a ring"]
    assert caption_parts("a red square") == [] and caption_parts("Dogs, cats.") == []


def test_scores_by_hand():
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.2, 0.6]])
    truth = np.array([[False, True, True], [True, False, False]])
    # Row 1: true ones on places 2 and 3: (1/2 + 2/3) / 2. Row 2: the true one ties for 2 and loses: 1/3.
    assert mean_average_precision(scores, truth) == pytest.approx((7 / 12 + 1 / 3) / 2)
    result = tagging_scores(scores, truth)
    assert result["zero_shot_accuracy"] == 0.0 and result["chance"] == 0.5
    assert (result["precision"], result["recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert retrieval_recall(np.eye(3), [[0], [1], [2]])["image_to_text_recall@1"] == 1.0


@pytest.mark.slow
def test_a_short_run_is_far_above_chance_and_writes_all_that_it_measured(aligned):
    folder, model, metrics = aligned
    tags, retrieval = metrics["tags"], metrics["retrieval"]
    assert tags["zero_shot_accuracy"] > 3 * tags["chance"]
    assert retrieval["image_to_text_recall@1"] > 5 * retrieval["image_to_text_chance@1"]
    assert metrics["calibration_error_after"]["expected"] < metrics["calibration_error_before"]["expected"]
    assert json.loads((folder / "metrics.json").read_text())["tags"] == tags
    with Image.open(folder / "reliability.png") as image:
        assert image.size[0] > 400
    assert {"config.json", "tagger.json", "recipe.yaml", "modeling_dual_encoder.py"} <= {
        p.name for p in model.iterdir()
    }
    tagger = load_tagger(model)
    assert len(tagger.vocabulary) == 64 and tagger.temperature == metrics["calibration"]["temperature"]
    assert load_align_recipe(str(model / "recipe.yaml")).model["loss_type"] == tagger.model.config.loss_type


RICH = {"fusemix_alpha": 1.0, "structure_weight": 5.0, "structure_warmup_steps": 4, "loss_type": "sigmoid"}


@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.slow), RICH], ids=["plain", "rich"])
def test_a_resumed_run_is_the_same_run(align_recipe, tmp_path, options):
    settings = {"save_strategy": "steps", "save_steps": 3, "projector_dropout": 0.1, **options}
    whole, _ = run_align(align_recipe(tmp_path / "whole", **settings))
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    again, metrics = run_align(align_recipe(tmp_path / "again", **settings), resume=str(checkpoint))
    assert metrics["steps"] == 6
    first, second = (load_tagger(folder).model.head.state_dict() for folder in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options", [{"fusemix_alpha": 1.0}, {"structure_weight": 5.0, "structure_warmup_steps": 0, "structure_levels": 2}]
)
def test_regularizers_change_what_is_learned_and_nothing_in_evaluation(align_recipe, tmp_path, options):
    plain, mixed = align_recipe(tmp_path / "a"), align_recipe(tmp_path / "b", **options)
    losses = {}
    for name, recipe in (("plain", plain), ("mixed", mixed)):
        model, processor = align.build_dual_encoder(recipe)
        pairs, _ = align.load_alignment_data(recipe)
        features = pair_features(model, processor, pairs, recipe.data["feature_cache"], torch.float32)
        trainer = AlignTrainer(model.head, align.training_arguments(recipe), recipe, features, features)
        batch = features.__getitems__(range(32))
        torch.manual_seed(0)
        losses[name] = {
            "train": trainer.compute_loss(model.head.train(), batch).item(),
            "evaluation": trainer.compute_loss(model.head.eval(), batch).item(),
        }
    assert losses["plain"]["evaluation"] == losses["mixed"]["evaluation"]
    assert losses["plain"]["train"] != losses["mixed"]["train"]


def test_records_with_photos_can_be_aligned(align_recipe, tmp_path):
    scenes = Scenes("train", size=12, tasks=["caption"])
    write_task_records(scenes.__getitems__(range(12)), tmp_path / "train.jsonl")
    folder, metrics = run_align(
        align_recipe(
            tmp_path / "run", max_steps=2, per_device_train_batch_size=4,
            **{"data.train": str(tmp_path / "train.jsonl"), "data.evaluation": str(tmp_path / "train.jsonl")},
        )
    )  # fmt: skip
    assert metrics["retrieval"]["pictures"] == 6 and (folder / "tagger.json").is_file()


@pytest.mark.parametrize("name", ["align", "align_dinov2_roberta"])
def test_every_shipped_recipe_reads_back_as_itself(name, tmp_path):
    recipe = load_align_recipe(name)
    recipe.save(tmp_path / "recipe.yaml")
    assert load_align_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "aling"], "align"),
        (["--config", "align", "--loss_tpye", "sigmoid"], "loss_type"),
        (["--config", "align", "--loss_type", "softmax"], "sigmoid"),
        (
            ["--config", "align", "--data", "own.jsonl"],
            "data.evaluation='scenes' are drawn scenes, but data.train='own.jsonl'",
        ),
        (["--config", "align", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--config", "align", "--resume", "nowhere"], "is no folder"),
        (["--config", "align", "--gradient_accumulation_steps", "2"], "per_device_train_batch_size"),
        (["--config", "align", "--fusemix_alpha", "0"], "fusemix_alpha"),
        (["--config", "align", "--vocabulary", "nowhere.txt"], "nowhere.txt"),
        (["--config", "align", "--per_device_train_batch_size", "1"], "use 2 or more"),
        (["--config", "align", "--model.text", "null"], "model.text is missing"),
        (["--config", "align", "--embed_dim", "many"], "model.embed_dim='many' must be a whole number"),
        (["--config", "align", "--logit_scale_init_value", "hot"], "logit_scale_init_value='hot' must be a number"),
        (["--config", "align", "--model.dtype", "float31"], "model.dtype='float31' is not a torch dtype"),
        (["--config", "align", "--templates", "[photo]"], "templates holds 'photo' without {}"),
        (["--config", "align", "--templates", "a photo of a {}"], "must be a list of sentences"),
        (["--config", "align", "--vocabulary", "['a  dog', '']"], "vocabulary holds an empty name"),
    ],
)
def test_a_mistake_is_one_line_before_any_encoder_is_loaded(monkeypatch, words, message):
    def refuse(*args, **kwargs):
        raise AssertionError("an encoder was loaded before the mistake was found")

    monkeypatch.setattr(align.PoiseDualEncoder, "from_backbones", refuse)
    with pytest.raises((ValueError, OSError)) as caught:
        ALIGN.main(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_cannot_be_calibrated_keeps_what_it_trained(align_recipe, tmp_path, caplog):
    folder, metrics = run_align(align_recipe(tmp_path, max_steps=1, vocabulary=["pink elephant"]))
    assert "calibration" not in metrics and any("stays uncalibrated" in message for message in caplog.messages)
    assert load_tagger(folder).temperature is None


def test_words_of_drawn_scenes_for_other_records_stop_the_run_before_training(align_recipe, tmp_path):
    record = {
        "id": "a",
        "image": Image.new("RGB", (48, 48)),
        "task": "caption",
        "captions": ["a dog"],
        "tags": [["dog", 0.9]],
    }
    write_task_records([record, {**record, "id": "b"}], tmp_path / "own.jsonl")
    own = {"data.train": str(tmp_path / "own.jsonl"), "data.evaluation": None, "tagger.vocabulary": "scenes"}
    with pytest.raises(ValueError, match="holds none of the 1 tags of data.train=.*'dog'"):
        run_align(align_recipe(tmp_path / "run", max_steps=1, **own))


def test_a_checkpoint_of_another_loss_is_not_resumed(align_recipe, tmp_path):
    run_align(align_recipe(tmp_path, save_strategy="steps", save_steps=3, max_steps=3))
    with pytest.raises(ValueError, match="model.embed_dim"):
        run_align(align_recipe(tmp_path, embed_dim=16), resume="")


@pytest.mark.slow
def test_two_processes_train_as_one(align_recipe, tmp_path):
    alone, _ = run_align(align_recipe(tmp_path / "one", per_device_train_batch_size=32, max_steps=4))
    recipe = align_recipe(tmp_path / "two", per_device_train_batch_size=16, max_steps=4)
    recipe.save(tmp_path / "two.yaml")
    config = str(files("poise.training") / "accelerate" / "cpu_ddp.yaml")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", "poise", "align", "--config",
        str(tmp_path / "two.yaml"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    heads = [load_tagger(folder).model.head.state_dict() for folder in (alone, tmp_path / "two" / "model")]
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


# Runs where Poise cannot be imported: the folder must bring all that it needs.
ELSEWHERE = """
import sys

class NoPoise:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "poise":
            raise ModuleNotFoundError("Poise is not installed here")

sys.meta_path.insert(0, NoPoise())
import json
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

folder, image, results = sys.argv[1:]
labels = ["red square", "blue star", "green ring"]
answer = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)(
    image, candidate_labels=labels, hypothesis_template="a {}"
)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder)
inputs = processor(images=Image.open(image), text=["a " + x for x in labels], padding=True, return_tensors="pt")
logits = model(**inputs).logits_per_image[0].tolist()
assert not [name for name in sys.modules if name.partition(".")[0] == "poise"]
with open(results, "w") as file:
    json.dump([{item["label"]: item["score"] for item in answer}, logits, type(model).__module__], file)
"""


@pytest.mark.slow
def test_the_folder_loads_where_poise_is_not_installed(aligned, tmp_path):
    _, folder, _ = aligned
    image = Scenes("test", size=1)[0]["image"]
    image.save(tmp_path / "scene.png")
    (tmp_path / "script.py").write_text(ELSEWHERE)
    words = [folder, tmp_path / "scene.png", tmp_path / "results.json"]
    command = [sys.executable, str(tmp_path / "script.py"), *map(str, words)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    scores, logits, module = json.loads((tmp_path / "results.json").read_text())
    assert module.startswith("transformers_modules")
    model = load_tagger(folder)
    labels = ["red square", "blue star", "green ring"]
    with torch.no_grad():
        expected = model.model.head.logits(
            model.embed_images([image]), model.embed_texts([f"a {label}" for label in labels])
        )[0]
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-4)
    probability = expected.softmax(-1)
    assert [scores[label] for label in labels] == pytest.approx(probability.tolist(), abs=1e-4)
