"""What a study compares is read from YAML, checked before anything is trained."""

import pytest
import yaml

from poise.training.study.plan import AXES, Cell, cells_of, load_plan

PLAN = {
    "recipe": "demo",
    "steps": 2,
    "batch_size": 4,
    "samples": 6,
    "train_scenes": 16,
    "scenes": {"tasks": ["vqa"], "question_types": ["color"]},
    "seeds": [3],
    "grid": {"router": ["none", "reliability"], "prompt": ["dynamic"]},
    "conditions": [{"name": "clean", "split": "test"}, {"name": "blank", "image": "blank", "severity": 5}],
}


def written(tmp_path, **changes):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}), encoding="utf-8")
    return str(path)


def test_the_shipped_study_has_the_promised_grid():
    plan = load_plan("study")
    assert len(plan.seeds) >= 5
    for axis in ("router", "prompt", "language_model"):
        assert {getattr(cell, axis) for cell in plan.cells} == set(AXES[axis])
    pairs = {(cell.router, cell.prompt, cell.language_model) for cell in plan.cells if cell.training == "clean"}
    for prompt in ("static", "dynamic", "dynamic+words"):
        assert all((router, prompt, lm) in pairs for router in AXES["router"][:4] for lm in AXES["language_model"])
    streams = [condition.stream for condition in plan.conditions]
    assert streams.count("image") >= 4 and streams.count("tags") >= 3
    for cell in plan.cells:
        plan.recipe_of(cell, plan.seeds[0])  # every cell is a recipe that loads


def test_cells_are_recipes():
    plan = load_plan("study")
    frozen = plan.recipe_of(Cell("gate", "static", "frozen", "clean"), 5)
    assert frozen.lora is None and "adapters" not in frozen.learning_rates
    assert frozen.model["router_type"] == "gate" and frozen.model["soft_prompt_type"] == "static"
    assert frozen.processor["tag_words"] is True and frozen.training["seed"] == 5
    words = plan.recipe_of(Cell("none", "dynamic+words", "lora", "unaligned"), 5)
    asking = plan.recipe_of(Cell("reliability+question", "dynamic", "lora", "clean"), 5)
    assert asking.model["router_type"] == "reliability" and asking.model["question_agreement"] is True
    assert words.processor["tag_words"] is True and words.model["align_pictures"] == 0 and words.lora is not None


def test_an_axis_that_is_left_out_has_its_first_value(tmp_path):
    assert cells_of({"router": ["gate"]}, tmp_path) == [Cell("gate", "none", "frozen", "clean")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "'seed' is no field"),
        ({"grid": {"routers": ["none"]}}, "'routers' is no axis.*router"),
        ({"grid": {"router": ["gates"]}}, "router='gates'.*gate"),
        ({"steps": 0}, "steps=0"),
        ({"train_scenes": 2}, "fewer than one batch"),
        ({"seeds": []}, "at least one entry"),
        ({"grid": {"training": ["degraded"]}}, "degraded_with.image is missing"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_plan(written(tmp_path, **changes))


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in PLAN.items() if k != "steps"}), encoding="utf-8")
    with pytest.raises(ValueError, match="the field 'steps' is missing"):
        load_plan(str(path))
