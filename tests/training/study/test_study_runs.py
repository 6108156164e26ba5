"""Runs of the study: cached measuring equals generating, finished runs are kept, seeds decide everything."""

import json

import pytest
import torch
import yaml

from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.modeling.reliability_router import ReliabilityRouter
from poise.processing.scenes.scenes import Scenes
from poise.training.study import grid
from poise.training.study.grid import finished_runs, run_file, run_grid, run_key, runs_of, write_run
from poise.training.study.inputs import DegradedScenes, batch_of
from poise.training.study.plan import Cell, load_plan
from poise.training.study.run import (
    ENTROPY_GATE,
    PARTS,
    VIEWS,
    StudyInputs,
    answers_of_the_surer_stream,
    measure,
    router_fixed,
    router_without,
    run_cell,
)

from .test_study_plan import PLAN

pytestmark = pytest.mark.numerics

CONDITIONS = [
    {"name": "clean", "split": "test"},
    {"name": "noise", "image": "noise", "severity": 4},
    {"name": "removed", "tags": "tags_removed", "severity": 5},
]


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    overrides = {"align_pictures": 128, "stream_dropout": 0.5}
    content = {**PLAN, "train_scenes": 160, "samples": 12, "conditions": CONDITIONS, "overrides": overrides}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_plan(str(path))


@pytest.mark.parametrize("prompt", ["none", "static", "dynamic", "dynamic+words"])
def test_what_is_measured_is_what_generation_answers(plan, tmp_path, prompt):
    inputs = StudyInputs(plan, prompt, tmp_path / "features")
    model, processor = inputs.model.eval(), inputs.processor
    for condition in plan.conditions:
        measured = measure(model, inputs.testing(condition))
        scenes = condition.scenes(plan.samples, plan.scene_seed, tasks=["vqa"], question_types=["color"])
        records = scenes.__getitems__(range(plan.samples))
        generated = GenerationEvaluator(max_new_tokens=1, progress=False)(model, processor, records)
        assert measured["accuracy"] == pytest.approx(generated["vqa_accuracy"])


def test_a_run_is_decided_by_its_seed_and_says_what_it_found(plan, tmp_path):
    inputs = StudyInputs(plan, "dynamic", tmp_path / "features")
    cell = Cell("reliability", "dynamic", "frozen", "clean")
    first, again, other = (run_cell(plan, cell, seed, inputs) for seed in (3, 3, 4))
    for run in (first, again, other):
        run.pop("seconds")
    assert first == again and first != other
    assert set(first["conditions"]) == {"clean", "noise", "removed"}
    assert set(first["views"]) == {*VIEWS, *(f"without {part}" for part in PARTS), ENTROPY_GATE}
    assert (
        first["views"]["tags"]["noise"]["weights"] == [0.0, 1.0] and first["views"]["image"] != first["views"]["open"]
    )
    assert first["conditions"]["removed"]["weights"][1] == 0.0
    assert 1000 < first["parameters"] < 300_000, "the frozen million is not trained"
    json.dumps(first)


def test_a_fixed_router_trusts_what_it_is_told_and_recovers(plan, tmp_path):
    inputs = StudyInputs(plan, "dynamic", tmp_path / "features")
    removed, clean = inputs.testing(plan.conditions[2]), inputs.testing(plan.conditions[0])
    tagged = clean[1].batch(range(plan.samples))["tag_attention_mask"].any(-1).float().mean().item()
    expected = {(True, True): [1, tagged], (True, False): [1, 0], (False, True): [1 - tagged, tagged]}
    for (image, tags), weights in expected.items():
        with router_fixed(inputs.model.eval(), image, tags):
            found = measure(inputs.model, clean)["weights"]
            # What is not there cannot be trusted: without tags the image stays.
            assert measure(inputs.model, removed)["weights"] == [1.0, 0.0]
        assert found == pytest.approx(weights)
    assert all("judge" not in vars(module) for module in inputs.model.modules())


def test_a_part_that_is_removed_says_nothing_and_comes_back(plan, tmp_path):
    model = StudyInputs(plan, "dynamic", tmp_path / "features").model.eval()
    router = next(module for module in model.modules() if isinstance(module, ReliabilityRouter))
    num, length = 3, 4
    is_real, ids = torch.ones(num, dtype=torch.bool), torch.zeros(num, length, dtype=torch.long)
    tags = (None, ids, torch.ones_like(ids).bool(), torch.ones(num, length))
    found = {}

    def beyond(profiles):
        return torch.ones(num)

    def evidence(patches, tags, question):
        asked = torch.zeros(num) if question is None else torch.ones(num)
        return torch.ones(num, length), tags[2], ids, asked, asked

    def weigh(image_sound, tags_shown, shown, named, has_tags, thresholds):
        found.update(typicality=3.0 - image_sound, tags=tags_shown, question=shown + named)
        return torch.ones(num, 2), is_real

    router.image_typicality.beyond, router.word_evidence.forward, router.weigh = beyond, evidence, weigh
    silent = dict(zip(PARTS, ("typicality", "question", "tags", None), strict=True))
    for part, name in silent.items():
        with router_without(model, part):
            _, kept = router.judge(torch.zeros(num, 2, 8), torch.zeros(num, 6), tags, ids, is_real)
        assert {key for key, value in found.items() if not value.any()} == {name} - {None}, part
        assert (kept is None) == (part == "denial of single tags")
    assert router.image_typicality.beyond is beyond and router.word_evidence.forward is evidence
    assert "judge" not in vars(router)


def test_the_entropy_gate_answers_from_the_surer_stream(plan, tmp_path):
    inputs = StudyInputs(plan, "dynamic", tmp_path / "features")
    model = inputs.model.eval()
    batch = batch_of(*inputs.testing(plan.conditions[0]), range(plan.samples))
    del batch["prior_answer"]
    places = (batch.pop("labels") != -100).int().argmax(-1) - 1
    logs, weights = answers_of_the_surer_stream(model, batch, places)
    entropy = []
    for trusted in (VIEWS["image"], VIEWS["tags"]):
        with router_fixed(model, *trusted), torch.no_grad():
            logits = model(**batch).logits[torch.arange(plan.samples), places]
        entropy.append(torch.distributions.Categorical(logits=logits).entropy())
    surer = torch.distributions.Categorical(logits=logs).entropy()
    # The two ways to compute an entropy differ by rounding.
    torch.testing.assert_close(surer, torch.minimum(*entropy), rtol=1e-4, atol=1e-5)
    clear = (entropy[0] - entropy[1]).abs() > 1e-3
    assert clear.any() and weights[clear, 0].equal((entropy[0] < entropy[1])[clear])
    assert weights.sum(-1).eq(1).all()


def test_degraded_training_is_a_pure_function_of_the_scene():
    scenes = Scenes("train", size=64, tasks=["vqa"])
    degraded = DegradedScenes(scenes, ["noise", "blank"], ["tags_removed"], share=0.5)
    whole = degraded.__getitems__(range(64))
    part = degraded.__getitems__([40, 7])
    assert part[0]["image"].tobytes() == whole[40]["image"].tobytes() and part[1]["tags"] == whole[7]["tags"]
    clean = scenes.__getitems__(range(64))
    changed = sum(a["image"].tobytes() != b["image"].tobytes() for a, b in zip(whole, clean, strict=True))
    untagged = sum(not record["tags"] for record in whole)
    # Half of the images; of the tags half, of which the two severities remove all in 40 and in 80 % of the cases.
    assert 20 <= changed <= 44 and 10 <= untagged <= 30


def test_clean_training_comes_first_and_seed_by_seed(tmp_path):
    path = tmp_path / "plan.yaml"
    content = {**PLAN, "seeds": [1, 2], "also": [{"router": ["none"], "training": ["unaligned"]}]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    order = [(cell.training, seed) for cell, seed in runs_of(load_plan(str(path)))]
    assert order == [("clean", 1)] * 2 + [("clean", 2)] * 2 + [("unaligned", 1), ("unaligned", 2)]


@pytest.mark.slow
def test_finished_runs_are_not_repeated(plan, tmp_path):
    folder = tmp_path / "study"
    first = run_grid(plan, folder, jobs=1)
    paths = [run_file(folder, cell, seed) for cell, seed in runs_of(plan)]
    paths[0].unlink()
    kept = paths[1].stat().st_mtime_ns
    again = run_grid(plan, folder, jobs=1)
    assert paths[0].is_file() and paths[1].stat().st_mtime_ns == kept
    assert [run["conditions"] for run in first] == [run["conditions"] for run in again]
    (tmp_path / "other.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load((tmp_path / "plan.yaml").read_text()), "steps": 3}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="was made with other settings than the plan's: choose another --output"):
        finished_runs(load_plan(str(tmp_path / "other.yaml")), folder)


def test_a_run_is_known_by_its_settings_and_by_the_code_that_made_it(plan, tmp_path, monkeypatch):
    content = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    cell, seed = next(runs_of(plan))
    write_run(tmp_path, cell, seed, {"key": run_key(plan)})
    assert list(finished_runs(plan, tmp_path)) == [(cell, seed)]

    def changed(**fields):
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({**content, **fields}), encoding="utf-8")
        return run_key(load_plan(str(tmp_path / "other.yaml")))

    key = run_key(plan)
    assert changed() == key  # nothing of where the plan lies
    for fields in ({"steps": 3}, {"batch_size": 2}, {"samples": 5}, {"overrides": {"lora.r": 4}}, {"seeds": [9]}):
        assert changed(**fields)["settings"] != key["settings"], fields
    assert changed(seeds=[*content["seeds"], 77]) == key  # more seeds of the same study
    monkeypatch.setattr(grid, "CODE", ("modeling",))
    with pytest.raises(ValueError, match="was made with other code than the plan's"):
        finished_runs(plan, tmp_path)
