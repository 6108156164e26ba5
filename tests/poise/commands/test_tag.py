"""`poise tag` with a tiny untrained model of each kind, through the real command, and its meaning on drawn scenes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    ResNetConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from poise.command_line import main
from poise.commands.tag import _calibration, _rescaled
from poise.processing import load_task_records, write_task_records
from poise.processing.records.model_tagger import Found, ModelTagger, _name_of, kind_of, words_of
from poise.processing.records.tagged_records import load_tagger
from poise.processing.scenes.scenes import Scenes
from poise.processing.taggers import ZeroShotTagger

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE = {"height": 32, "width": 32}
NAMES = {0: "red square", 1: "dog, domestic dog", 2: "traffic_light"}


def tokenizer_in(folder):
    """CLIP's, over single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz."
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def clip(folder):
    text = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64, "eos_token_id": 55, "bos_token_id": 54}
    config = CLIPConfig(
        text_config=text, vision_config={**SIZES, "image_size": 32, "patch_size": 16}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIDE).save_pretrained(folder)
    tokenizer_in(folder).save_pretrained(folder)


def owlvit(folder):
    text = {
        **SIZES,
        "vocab_size": 64,
        "max_position_embeddings": 16,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    config = OwlViTConfig(
        text_config=text, vision_config={**SIZES, "image_size": 32, "patch_size": 16}, projection_dim=16
    )
    OwlViTForObjectDetection(config).save_pretrained(folder)
    OwlViTProcessor(OwlViTImageProcessorPil(size=SIDE), tokenizer_in(folder)).save_pretrained(folder)


def detr(folder):
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5}
    config = DetrConfig(use_timm_backbone=False, backbone_config=backbone, **sizes, **heads, id2label=NAMES)
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 32}).save_pretrained(folder)


def vit(folder):
    ViTForImageClassification(ViTConfig(**SIZES, image_size=32, patch_size=16, id2label=NAMES)).save_pretrained(folder)
    ViTImageProcessorPil(size=SIDE).save_pretrained(folder)


KINDS = {
    "clip": (clip, "zero-shot classifier"),
    "owlvit": (owlvit, "zero-shot detector"),
    "detr": (detr, "detector"),
    "vit": (vit, "image classifier"),
}


@pytest.fixture(scope="module")
def taggers(tmp_path_factory):
    made = {}
    for name, (build, _) in KINDS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        build(folder)
        made[name] = folder
    return made


@pytest.fixture
def records(tmp_path):
    scenes = Scenes("train", size=7, tasks=["vqa"])
    write_task_records(scenes.__getitems__(range(7)), tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tagger_through_the_command(taggers, records, tmp_path, name):
    output, words = tmp_path / "tagged.jsonl", tmp_path / "words.txt"
    words.write_text("red square\ndog\ntraffic light\n")
    given = ["--vocabulary", str(words)] if "zero-shot" in KINDS[name][1] else []
    command = ["tag", str(records), "--tagger", str(taggers[name]), "--output", str(output), "--threshold", "0",
               "--batch-size", "3", "--device", "cpu", *given]  # fmt: skip
    assert main(command) == 0
    before, after = load_task_records(records), load_task_records(output)
    assert [record["id"] for record in after] == [record["id"] for record in before]
    assert after.records[0]["image"] == before.records[0]["image"]  # the file itself, not a copy
    for record in after:
        names = [tag.name for tag in record["tags"]]
        assert names and len(set(names)) == len(names) and set(names) <= {"red square", "dog", "traffic light"}
        scores = [tag.score for tag in record["tags"]]
        assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
        boxes = record["metadata"].get("tag_boxes", [])
        assert len(boxes) == (len(names) if "detector" in KINDS[name][1] else 0)
    assert not (tmp_path / "tagged.jsonl.shares").exists()
    # In batches of another size the same tags are found.
    alone = ModelTagger.from_pretrained(taggers[name], words.read_text().split("\n")[:3] if given else None, 0.0)
    (found,) = alone.tag_records([before[4]])
    for tag, expected in zip(found, after[4]["tags"], strict=True):
        assert tag.name == expected.name and tag.score == pytest.approx(expected.score, abs=2e-3)


def test_the_kind_is_that_of_the_saved_class(taggers):
    from transformers import AutoConfig

    assert {name: kind_of(AutoConfig.from_pretrained(folder)) for name, folder in taggers.items()} == {
        name: kind for name, (_, kind) in KINDS.items()
    }


def test_a_recipe_names_a_folder_of_any_kind(taggers, records):
    """Where a tagger stands in a recipe or behind --tagger: CLIP scores its words, a detector its own."""
    record = load_task_records(records)[0]
    clip_tagger, detector = load_tagger(taggers["clip"]), load_tagger(taggers["detr"])
    assert len(clip_tagger.vocabulary) == 80 and {"person", "traffic light", "toothbrush"} <= set(
        clip_tagger.vocabulary
    )
    assert isinstance(clip_tagger, ZeroShotTagger)  # whose tags a run keeps in its feature cache
    assert load_tagger(taggers["clip"], ["dog", "cat"]).vocabulary == ["dog", "cat"]
    (tags,) = detector.tag_records([record])
    assert {tag.name for tag in tags} <= {"red square", "dog", "traffic light"}


def test_a_name_found_twice_keeps_its_best_score_and_box():
    def find(images):
        return [
            [Found("dog", 0.4, [0, 0, 1, 1]), Found("dog", 0.9, [2, 2, 3, 3]), Found("cat", 0.05), Found("ball", 0.5)]
        ]

    tagger = ModelTagger("detector", find, threshold=0.1)
    assert tagger.found([None]) == [[Found("dog", 0.9, [2, 2, 3, 3]), Found("ball", 0.5, None)]]
    assert ModelTagger("detector", find, threshold=0.1, max_tags=1).found([None]) == [[Found("dog", 0.9, [2, 2, 3, 3])]]
    assert tagger.tag_records([{"image": None}]) == [[]]


def test_a_part_of_a_name_means_the_name():
    vocabulary = ["red square", "square"]
    assert [_name_of(label, vocabulary) for label in ("square", "Red", "red square", "dog", "")] == [
        "square", "red square", "red square", None, None,
    ]  # fmt: skip


def test_the_words_of_the_data():
    records = [{"tags": [("red ball", 0.9)], "captions": ["A dog with a red ball on the grass"]},
               {"answers": ["dog"], "captions": ["the grass"]}, {"captions": ["once"]}]  # fmt: skip
    assert words_of(records) == ["red ball", "dog", "grass"]


def test_a_calibration_turns_scores_into_shares_of_true_tags():
    found = [["dog", 0.5, None], ["cat", 0.01, None]]
    kept = _rescaled(found, (0.5, -1.0), threshold=0.0, max_tags=5)
    assert [item[0] for item in kept] == ["dog", "cat"]
    assert kept[0][1] == pytest.approx(1 / (1 + 2.718281828), abs=1e-4)
    assert _rescaled(found, (0.5, -1.0), threshold=0.1, max_tags=5) == kept[:1]


class Stub:
    """Finds a dog in red images; a cat everywhere, with a score that says nothing."""

    def found(self, images):
        red = [image.getpixel((0, 0)) == (255, 0, 0) for image in images]
        return [[Found("dog", 0.7 if is_red else 0.6), Found("cat", 0.65)] for is_red in red]


def test_scores_are_calibrated_on_records_with_true_tags(tmp_path):
    rows = []
    for number in range(40):
        tags = [["dog" if number % 2 else "cat", 1.0], ["bird", 0.2]]
        image = Image.new("RGB", (4, 4), "red" if number % 2 else "blue")
        rows.append({"id": str(number), "image": image, "task": "caption", "captions": ["x"], "tags": tags})
    write_task_records(rows, tmp_path / "truth.jsonl")
    rescale = _calibration(Stub(), load_task_records(tmp_path / "truth.jsonl"), "truth.jsonl", 16)
    # Of all decisions at score .65, the cat's, half are true; dogs at .7 are always there, at .6 never.
    scores = {score: _rescaled([["x", score, None]], rescale, 0.0, 1)[0][1] for score in (0.6, 0.65, 0.7)}
    assert scores[0.65] == pytest.approx(0.5, abs=0.02) and scores[0.6] < 0.25 and scores[0.7] > 0.75
    write_task_records([{**row, "tags": []} for row in rows], tmp_path / "bare.jsonl")
    with pytest.raises(ValueError, match="--calibrate .*needs both.*true tags in the tagger's words"):
        _calibration(Stub(), load_task_records(tmp_path / "bare.jsonl"), "bare.jsonl", 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tagger", "clip"], "is a zero-shot classifier: give the vocabulary"),
        (["--tagger", "detr", "--vocabulary", "coco"], "with names of its own: leave the vocabulary out"),
        (["--tagger", "clip", "--vocabulary", "nowhere.txt"], "--vocabulary 'nowhere.txt' is no file"),
        (["--tagger", "vit", "--threshold", "2"], "threshold=2.0 must lie in [0, 1]"),
        (["--tagger", "vit", "--batch-size", "0"], "--batch-size is 0"),
        (["--tagger", "vit", "--output", "tagged.json"], "name a .jsonl file"),
        (["--tagger", "bert"], "BertModel is no tagger"),
        (["--tagger", "vit", "--max-tags", "0"], "max_tags=0"),
    ],
)
def test_bad_options_end_in_one_line(taggers, records, tmp_path, capsys, monkeypatch, words, message):
    from transformers import BertConfig

    monkeypatch.chdir(tmp_path)
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    words = [str(taggers.get(word, tmp_path / word if word == "bert" else word)) for word in words]
    output = [] if "--output" in words else ["--output", str(tmp_path / "tagged.jsonl")]
    assert main(["tag", str(records), *words, *output, "--device", "cpu"]) == 1
    printed = capsys.readouterr().err.strip()
    assert message in printed and "\n" not in printed
    assert not (tmp_path / "tagged.jsonl").exists()


def test_a_stopped_run_goes_on_and_another_setting_is_refused(taggers, records, tmp_path, capsys, monkeypatch):
    output = tmp_path / "tagged.jsonl"
    command = ["tag", str(records), "--tagger", str(taggers["vit"]), "--output", str(output), "--batch-size", "2",
               "--threshold", "0", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    whole = output.read_text()
    output.unlink()

    asked = []
    real = ModelTagger.found

    def counting(self, images):
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(ModelTagger, "found", counting)
    assert main(command) == 1 and not output.exists()
    share = tmp_path / "tagged.jsonl.shares" / "0.jsonl"
    assert len(share.read_text().splitlines()) == 4
    with open(share, "a") as file:
        file.write('[4, [["do')  # half a line, as a killed process leaves it
    assert main([*command[:-2], "--max-tags", "1", "--device", "cpu"]) == 1
    assert "another max_tags" in capsys.readouterr().err
    assert main(command) == 0
    assert asked == [2, 2, 2, 2, 1] and output.read_text() == whole


@pytest.mark.slow
def test_two_processes_give_the_tags_of_one_and_a_killed_run_is_taken_up(taggers, records, tmp_path):
    command = [
        "tag",
        str(records),
        "--tagger",
        str(taggers["vit"]),
        "--threshold",
        "0",
        "--batch-size",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*command, "--output", str(tmp_path / "one.jsonl")]) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "poise"]  # fmt: skip
    two = [*launch, *command, "--output", str(tmp_path / "two.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    shares = tmp_path / "two.jsonl.shares"
    started = subprocess.Popen(
        two, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and started.poll() is None and not (shares / "1.jsonl").exists():
        time.sleep(0.02)
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    done = subprocess.run(two, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one, both = load_task_records(tmp_path / "one.jsonl"), load_task_records(tmp_path / "two.jsonl")
    assert [record["id"] for record in both] == [record["id"] for record in one]
    for record, expected in zip(both, one, strict=True):
        assert [tag.name for tag in record["tags"]] == [tag.name for tag in expected["tags"]]
