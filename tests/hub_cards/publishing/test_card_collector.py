"""The callback that collects while training."""

import json
import platform

import pytest
import torch
from transformers import Trainer, TrainingArguments

from poise.hub_cards.card.data import CARD_DATA_FILE, CardData
from poise.hub_cards.card.training_data import datasets_of
from poise.hub_cards.publishing.card_collector import CardCollector, hardware

RECIPE = {
    "model": {"vision": "tiny:vision", "text": "/home/somebody/model"},
    "data": {"train": "scenes", "scenes": {"size": 16, "prior_strength": 0.9}},
    "learning_rates": {"new_modules": 1e-3},
    "training": {"output_dir": "/home/somebody/run", "hub_token": "hf_secret"},
}


class Line(torch.nn.Module):
    """A projector of one number, and a language model of three that learns nothing."""

    def __init__(self):
        super().__init__()
        self.projector = torch.nn.Linear(1, 1, bias=False)
        self.language_model = torch.nn.Linear(3, 1, bias=False).requires_grad_(False)

    def forward(self, x, labels):
        return {"loss": (self.projector(x) - labels).square().mean()}


def train(folder, steps, resume=None, **options):
    collector = CardCollector(RECIPE)
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        save_steps=4,
        logging_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 16
    Trainer(Line(), arguments, train_dataset=data, callbacks=[collector]).train(resume_from_checkpoint=resume)
    return CardData.load(folder / CARD_DATA_FILE)


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_hardware_is_told_without_the_machines_name(threads, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert hardware() == f"CPU ({platform.machine()}, {words})"


def test_collects_what_the_card_says_about_training(tmp_path):
    data = train(tmp_path, steps=6)
    assert data.parameters == {"new_modules": 1, "total": 4}
    assert data.steps == 6 and data.seconds is not None and data.processes == 1
    assert [step for step, _ in data.losses] == [2, 4, 6]
    assert data.versions["torch"] == torch.__version__.split("+")[0] or data.versions["torch"] == torch.__version__
    assert "CPU" in data.hardware or "×" in data.hardware
    (source,) = data.datasets
    assert (source["name"], source["records"]) == ("scenes", 16) and "prior_strength: 0.9" in source["description"]
    text = (tmp_path / CARD_DATA_FILE).read_text()
    assert "hf_secret" not in text and "/home/somebody" not in text


def test_a_resumed_run_goes_on_counting(tmp_path):
    before = train(tmp_path, steps=4)
    data = CardData.load(tmp_path / CARD_DATA_FILE)
    data.seconds = 1000.0
    data.save(tmp_path / CARD_DATA_FILE)
    after = train(tmp_path, steps=8, resume=str(tmp_path / "checkpoint-4"))
    assert before.steps == 4 and after.steps == 8
    assert after.seconds >= 1000 and [step for step, _ in after.losses] == [2, 4, 6, 8]


@pytest.mark.parametrize("source", ["/home/somebody/records/train.jsonl", "records/train.jsonl"])
def test_a_data_file_goes_by_its_name_alone(source):
    (data,) = datasets_of({"data": {"train": source}}, 7)
    expected = {"name": "train.jsonl", "hub_id": None, "split": None, "records": 7, "description": None}
    assert data == {**expected, "tag_scores": None}


def test_simulated_scores_of_tags_are_noted_wherever_they_stand(tmp_path):
    rows = [{"image": None, "task": "vqa"}, {"image": None, "metadata": {"tag_scores": "simulated"}}]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "photos" / "images").mkdir(parents=True)
    for name in ("captions", "tags"):
        (tmp_path / "photos" / f"{name}.jsonl").touch()

    def noted(source, **others):
        return [one["tag_scores"] for one in datasets_of({"data": {"train": source, **others}})]

    assert noted([str(file), str(tmp_path), str(tmp_path / "photos"), "scenes"]) == ["simulated"] * 4
    assert noted([str(file), "scenes"], tagger="user/tagger") == [None, None]
    (tmp_path / "photos" / "tags.jsonl").unlink()
    file.write_text(json.dumps({"metadata": None}))
    assert noted([str(file), str(tmp_path / "photos")]) == [None, None]


def test_a_mixture_names_its_sources_and_those_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    sources = [{"name": "acme/vqa", "split": "validation", "weight": 3}, "mine/photos", {"name": "scenes"}]
    recipe = {"data": {"train": sources, "scenes": {"size": 5, "tasks": ["vqa", "caption"]}}}
    hub, photos, scenes = datasets_of(recipe, 100)
    assert (hub["name"], hub["hub_id"], hub["split"]) == ("vqa", "acme/vqa", "validation")
    assert hub["description"] == "(60% of what is drawn)" and hub["records"] is None
    assert (photos["name"], photos["hub_id"]) == ("photos", None)
    assert (
        "no photo" in scenes["description"] and "20% of what is drawn, tasks: vqa and caption" in scenes["description"]
    )
    # Read later and elsewhere, nobody knows whether a name was a folder or the Hub's.
    assert [data["hub_id"] for data in datasets_of(recipe, present=False)] == [None] * 3
