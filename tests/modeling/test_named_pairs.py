"""The encoder pairs that alignment names, from their files to ranking, training and tags: the whole commands."""

import json

import pytest
import torch
from encoder_pairs import named_pairs

from poise.command_line import main as poise
from poise.processing.records.task_record_files import write_task_records
from poise.processing.scenes.scenes import Scenes
from poise.processing.taggers import DualEncoderTagger

PAIRS = ("dinov2+roberta", "clip", "siglip")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return named_pairs(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder with images of several shapes and captions: not what the towers want, as photos are not."""
    folder = tmp_path_factory.mktemp("records")
    for split, size in (("train", 24), ("validation", 16)):
        drawn = Scenes(split, size=size, tasks=["caption"]).__getitems__(range(size))
        for number, record in enumerate(drawn):
            record["image"] = record["image"].resize((40 + number % 3 * 20, 50))
        write_task_records(drawn, folder / f"{split}.jsonl")
    return str(folder)


def test_every_pair_is_ranked_layer_by_layer(pairs, records, tmp_path, capsys):
    vision, text = zip(*pairs.values(), strict=True)
    words = ["rank-encoders", "--vision", *vision, "--text", *text, "--data", records, "--samples", "16"]
    assert poise([*words, "--batch-size", "8", "--output", str(tmp_path)]) == 0
    ranked = json.loads((tmp_path / "ranking.json").read_text())["pairs"]
    assert {(pair["vision"], pair["text"]) for pair in ranked} == {(v, t) for v in vision for t in text}
    assert len(ranked) == 9 * 3 * 3  # two layers and the embeddings on either side
    assert all(-1.0 <= pair["cka"] <= 1.0 for pair in ranked)
    assert "best: poise align --vision " in capsys.readouterr().out


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_is_aligned_with_the_recipe_of_the_paper(pairs, records, tmp_path, name):
    vision, text = pairs[name]
    words = ["align", "--config", "align_dinov2_roberta", "--data", records, "--data.evaluation", records]
    settings = {
        "vision": vision, "text": text, "dtype": "float32", "vocabulary": "scenes", "max_steps": "2", "embed_dim": "16",
        "per_device_train_batch_size": "8", "per_device_eval_batch_size": "8", "feature_batch_size": "8",
        "feature_cache": tmp_path / "features", "output_dir": tmp_path / "run", "use_cpu": "true", "logging_steps": "1",
        "dataloader_num_workers": "0", "vision_paths": "tokens" if name == "siglip" else "tokens+cls",
    }  # fmt: skip
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert poise([*words, *options]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["retrieval"]["pictures"] == 8
    tagger = DualEncoderTagger.from_pretrained(tmp_path / "run" / "model")
    config = tagger.model.config
    assert {"dinov2+roberta": "dinov2", "clip": "clip_vision_model", "siglip": "siglip_vision_model"}[name] == (
        config.vision_config.model_type
    )
    assert config.vision_paths == ("tokens" if name == "siglip" else "tokens+cls")
    alone, beside = tagger.embed_texts(["a star"]), tagger.embed_texts(["a star", "a photo of a red square and a ring"])
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-4, atol=1e-5)  # padding is no word
    tagger.threshold = 0.0
    (tags,) = tagger([Scenes("test", size=1)[0]["image"]])
    assert tags and all(0.0 <= score <= 1.0 for _, score in tags)
