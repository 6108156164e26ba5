"""`poise sft --config vlm_router`: only what is new learns, a stopped run goes on as if it had not stopped."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from tiny_folders import BACKBONES, FOLDERS, llava
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from poise.command_line import main
from poise.evaluation.chat_collator import ChatCollator, chat_log_likelihoods
from poise.evaluation.probing.parts import model_parts
from poise.modeling.modeling_vlm_router import RoutedVlm
from poise.processing.batching.collators import IGNORED
from poise.processing.prompts import target_text
from poise.processing.scenes.scenes import Scenes
from poise.training.backbone_loading import read_config
from poise.training.vlm_router.answer_collator import AnswerCollator
from poise.training.vlm_router.decision_costs import _least_gain, measure_decision_costs
from poise.training.vlm_router.recipe import load_vlm_router_recipe
from poise.training.vlm_router.stage import check_resumable

SCENES = "scenes:train,size=12,tasks=vqa"


@pytest.mark.parametrize("family", FOLDERS)
@torch.no_grad()
def test_labels_are_the_answers_behind_their_prompts(family, tmp_path):
    """The loss over them is the log-likelihood that one prompt and answer at a time have, whatever the padding."""
    folder = FOLDERS[family](tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    records = [{**record, "tags": []} for record in Scenes("test", size=3, tasks=("vqa",))]
    batch = AnswerCollator(model_parts(model.eval()), processor)(records)
    labels = batch.pop("labels")
    logits = model(**batch).logits[:, -labels.shape[1] :].float().log_softmax(-1)
    if "decoder_input_ids" not in batch:
        logits, labels = logits[:, :-1], labels[:, 1:]
    found = logits.gather(-1, labels.clamp_min(0)[..., None])[..., 0].masked_fill(labels == IGNORED, 0.0).sum(-1)
    collator = ChatCollator(processor, model.config)
    expected, counts = chat_log_likelihoods(model, collator, records, [target_text(record) for record in records])
    assert (labels != IGNORED).sum(-1).tolist() == counts
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_a_stream_is_left_out_where_that_pays(tmp_path):
    """What answers are worth without it decides how sure the router must be; measured on the training data."""
    torch.manual_seed(0)
    model = RoutedVlm.from_vlm(llava(tmp_path), str(BACKBONES / "tag_encoder"))
    processor = AutoProcessor.from_pretrained(model.config.vlm)
    torch.nn.init.normal_(model.route.reader.out.weight)
    torch.nn.init.normal_(model.route.router.image_complement.null)
    model.route.trained.fill_(True)
    records = [record for record in Scenes("test", size=12, tasks=("vqa",)) if record["tags"]][:5]
    collator = AnswerCollator(model_parts(model), processor)
    given = [{**records[0], "tags": []}, *records]  # one that tells nothing about tags
    model.train()
    found = measure_decision_costs(model, collator, given)
    assert model.training and model.route.fixed is None
    tokenizer = AutoTokenizer.from_pretrained(BACKBONES / "tag_encoder")
    chat = ChatCollator(processor, model.config, tag_tokenizer=tokenizer)
    others = [*records[1:], records[0]]
    swapped = {name: [{**r, name: o[name]} for r, o in zip(records, others, strict=True)] for name in ("image", "tags")}
    blank = [{**record, "image": Image.new("RGB", record["image"].size, (127, 127, 127))} for record in records]
    model.eval()
    conditions = {
        "both": (records, 1, 1), "tags_alone": (records, 0, 1), "image_alone": (records, 1, 0),
        "image_blank": (blank, 1, 1), "image_of_another": (swapped["image"], 1, 1),
        "tags_of_another": (swapped["tags"], 1, 1),
    }  # fmt: skip
    for name, (asked, *weights) in conditions.items():
        with model.route.fixed_weights(*weights):
            likelihoods, _ = chat_log_likelihoods(model, chat, asked, [target_text(record) for record in records])
        assert found[name] == pytest.approx(torch.tensor(likelihoods).exp().mean().item(), rel=1e-3), name
    assert found["both"] != pytest.approx(found["tags_alone"], rel=1e-2)
    assert measure_decision_costs(model, collator, given[:2]) == {}  # nothing to swap with
    # A strange stream is worth (.1 + .1 + .1 + .9) / 4 = .3: .2 is gained, give or take nothing.
    assert _least_gain(*(torch.full((9,), value) for value in (0.5, 0.9, 0.1))) == pytest.approx(0.2)
    spread = torch.tensor([0.4, 0.6])  # .2 ± 1.96 · .1414 / √2
    assert _least_gain(spread, torch.full((2,), 0.9), torch.full((2,), 0.1)) == pytest.approx(0.004, rel=1e-4)

    route = model.route
    for losses, gains, least in (
        ((0.4, 0.4), (0.2, 0.0), (2 / 3, 1.0)),
        ((-0.1, 0.1), (0.1, 0.3), (0.5, 0.5)),
        ((0.1, 0.3), (-0.1, 0.1), (1.0, 0.75)),
    ):
        route.set_thresholds(losses, gains)
        assert route.thresholds.tolist() == pytest.approx(least)
    odds = torch.tensor([1.0])  # that both are sound, against one of 3 - 4 that the image has failed
    evidence = (odds * 0.0, odds * -1.0, odds * 0.0, odds * 0.0, odds > 0)
    assert route.router.weigh(*evidence)[0].tolist() == [[0.0, 1.0]]
    assert route.router.weigh(*evidence, torch.tensor([0.8, 0.5]))[0].tolist() == [[1.0, 1.0]]


def train(vlm, output, *words):
    line = ["sft", "--config", "vlm_router", "--vlm", vlm, "--tag_encoder", str(BACKBONES / "tag_encoder")]
    line += ["--data", SCENES, "--lora.r", "2", "--max_steps", "4", "--save_steps", "2", "--use_cpu", "true"]
    line += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--output_dir", str(output)]
    return main([*line, *words])


@pytest.mark.slow
def test_a_run_trains_what_is_new_and_goes_on_after_a_stop(tmp_path, caplog):
    caplog.set_level("INFO")
    vlm = llava(tmp_path / "vlm")
    assert train(vlm, tmp_path / "whole") == 0
    assert f"poise publish {tmp_path / 'whole'} --repo user/name --dry-run" in caplog.text
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    assert train(vlm, tmp_path / "stopped", "--resume") == 0
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped")]
    early = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    assert weights[0].keys() == weights[1].keys() and any("lora_B" in name for name in weights[0])
    assert all(name.startswith("route.") or "lora_" in name for name in weights[0])
    for name, value in weights[0].items():  # the same sums in the same order
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-7)
    for part in ("lora_B", "route.reader.out"):
        moved = [name for name in early if part in name and not torch.equal(early[name], weights[0][name])]
        assert moved and all(weights[0][name].abs().sum() > 0 for name in moved)

    model = RoutedVlm.from_pretrained(tmp_path / "whole" / "model")
    assert model.config.lora["r"] == 2 and model.config.vlm == vlm
    loaded = {name: value for name, value in model.state_dict().items() if model.is_new(name)}
    assert loaded.keys() == weights[0].keys()
    plain = AutoModelForImageTextToText.from_pretrained(vlm).state_dict()
    own = {name.replace(".base_layer", ""): value for name, value in model.vlm.state_dict().items()}
    same = [name for name in plain if name in own]
    assert same and all(torch.equal(plain[name], own[name]) for name in same)
    with pytest.raises(ValueError, match="lora.r=2"):
        recipe = {"vlm": vlm, "tag_encoder": str(BACKBONES / "tag_encoder"), "data.train": SCENES, "lora.r": 4}
        check_resumable(tmp_path / "whole" / "checkpoint-2", load_vlm_router_recipe("vlm_router", recipe))


def test_what_is_published_is_small_and_names_its_base(tmp_path, capsys):
    vlm = llava(tmp_path / "vlm")
    model = RoutedVlm.from_vlm(vlm, str(BACKBONES / "tag_encoder"), router_type="gate", lora={"r": 2})
    model.save_pretrained(tmp_path / "run" / "model")
    line = ["publish", str(tmp_path / "run"), "--repo", "user/router", "--dry-run", "--license", "mit"]
    assert main(line) == 1 and "config.vlm=" in capsys.readouterr().err  # nobody else has this folder
    config = tmp_path / "run" / "model" / "config.json"
    settings = {**json.loads(config.read_text()), "vlm": "user/vlm", "tag_encoder": "user/encoder"}
    config.write_text(json.dumps(settings))
    scores = {"data": "own.jsonl", "metrics": {"vqa_accuracy": 0.5, "vqa_samples": 10.0}}
    (tmp_path / "run" / "evaluation" / "own-vqa").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "own-vqa" / "metrics.json").write_text(json.dumps(scores))
    assert main(line) == 0 and "nothing was uploaded: leave out --dry-run" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "run" / "published").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_vlm_router.py", "image_route.py"} <= files
    card = ModelCard.load(tmp_path / "run" / "published" / "README.md")
    assert card.data.base_model == "user/vlm" and card.data.license == "mit" and "a gate weighs" in card.content
    assert "| VQA accuracy | 0.500 | 10 |" in card.content


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model.vlm=None: name a Hub id"),
        ({"vlm": "x"}, "data.train is missing"),
        ({"vlm": "x", "data.train": "scenes", "router_type": "gat"}, "did you mean 'gate'"),
        ({"vlm": "x", "data.train": "scenes", "lora.r": None}, "without it neither stands"),
        ({"vlm": "x", "data.train": "scenes", "soft_prompt_length": 0}, "soft_prompt_length=0 must be"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        load_vlm_router_recipe("vlm_router", settings)


def test_a_folder_is_the_same_with_and_without_a_slash_and_a_finished_run_says_so(tmp_path):
    settings = {"vlm": f"{tmp_path}/", "tag_encoder": "x", "data.train": "scenes"}
    recipe = load_vlm_router_recipe("vlm_router", settings)
    assert recipe.model.vlm == str(tmp_path)
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"a finished run \(model\) that saved no checkpoint \(training\.save_strategy\)"
    ):
        check_resumable(tmp_path / "run", recipe)


def test_what_is_missing_can_come_of_a_shipped_recipe_or_backbone(tmp_path, capsys):
    assert main(["sft"]) == 1
    assert "or give --config a recipe file, or the name of a shipped one: demo, photos" in capsys.readouterr().err
    with pytest.raises(ValueError, match="model.tag_encoder=.*tiny:tag_encoder ships with Poise"):
        read_config("model.tag_encoder", str(tmp_path))
