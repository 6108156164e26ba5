"""What the study compares: a grid of routers, prompts, language models and trainings, over seeds, read from YAML.

The paper's claims and our own are about differences between cells, so everything else is the same in all of them: the
same images, the same questions, the same number of steps, the same rates.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...evaluation.robustness.conditions import Condition
from ..recipe_loading import check_kind, check_scenes, read_recipe_file, recipe_path
from ..sft.recipe import Recipe, load_recipe

AXES = {
    "router": ("none", "gate", "channel", "reliability"),
    "prompt": ("none", "static", "dynamic", "dynamic+words"),
    "language_model": ("frozen", "lora"),
    "training": ("clean", "degraded", "unaligned"),
}
# How a prompt of the grid is spelled in a recipe. "static" is LION: one learned vector, and the tags as words of the
# text; "dynamic" is Dynamic LION, which took the words away; "dynamic+words" is the arm that it did not try.
PROMPTS: dict[str, dict[str, Any]] = {
    "none": {"soft_prompt_type": "none", "model.tag_encoder": None, "align_words": False, "processor.tag_words": False},
    "static": {
        "soft_prompt_type": "static",
        "soft_prompt_length": 1,
        "model.tag_encoder": None,
        "align_words": False,
        "processor.tag_words": True,
    },
    "dynamic": {"soft_prompt_type": "dynamic", "processor.tag_words": False},
    "dynamic+words": {"soft_prompt_type": "dynamic", "processor.tag_words": True},
}


@dataclass(frozen=True)
class Cell:
    """One model of the grid; with a seed, one run."""

    router: str
    prompt: str
    language_model: str
    training: str

    def run_name(self, seed: int) -> str:
        return "_".join([*asdict(self).values(), f"seed{seed}"])


@dataclass(frozen=True)
class StudyPlan:
    """
    Args:
        recipe (`str`): the recipe that all cells share, a file or a shipped name.
        steps, batch_size (`int`): of every run.
        samples (`int`): questions per condition.
        train_scenes (`int`): scenes that all runs draw their batches from, each in its own order.
        scenes (`Mapping`): arguments of [`Scenes`] for training; test conditions share `question_types`.
        seeds (`Sequence[int]`): of initialization, order and dropped streams.
        grids (`Sequence[Sequence[Cell]]`): the cells, in the order in which they run; none stands in two of them.
        conditions (`Sequence[Condition]`): what every model is asked.
        degraded_with (`Mapping`): names under `image` and `tags`, and the `share` of each stream that is degraded,
            where training is "degraded". "unaligned" trains on clean streams, too, but from a random projector.
        overrides (`Mapping`): further fields of the recipe, the same for all cells.
        held_out (`Sequence[str]`): degradations that nothing was tuned on, a group of their own in the report.
    """

    recipe: str
    steps: int
    batch_size: int
    samples: int
    train_scenes: int
    scenes: Mapping[str, Any]
    seeds: Sequence[int]
    grids: Sequence[Sequence[Cell]]
    conditions: Sequence[Condition]
    degraded_with: Mapping[str, Any]
    overrides: Mapping[str, Any]
    held_out: Sequence[str]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for cells in self.grids for cell in cells)

    @property
    def scene_seed(self) -> int:
        """Scenes are drawn from the first seed: fresh seeds bring fresh scenes."""
        return self.seeds[0]

    def recipe_of(self, cell: Cell, seed: int) -> Recipe:
        """The shared recipe with what the cell changes."""
        changes: dict[str, Any] = {"router_type": cell.router, "training.seed": seed, **PROMPTS[cell.prompt]}
        if cell.training == "unaligned":
            changes["align_pictures"] = 0
        if cell.prompt == "none":
            changes["learning_rates.soft_prompt"] = None  # a rate for what is not there is a mistake in a recipe
        recipe = load_recipe(self.recipe, {**self.overrides, **changes})
        if cell.language_model == "frozen":
            recipe.lora = None
            recipe.learning_rates = {k: v for k, v in recipe.learning_rates.items() if k != "adapters"}
        return recipe


def load_plan(name: str, overrides: Mapping[str, Any] | None = None) -> StudyPlan:
    """
    A plan from a YAML file (or the name of a shipped one).

    Args:
        name (`str`): file or shipped name.
        overrides (`Mapping[str, Any]`, *optional*): fields of the plan given elsewhere, such as `{"seeds": [0]}`.

    Raises:
        ValueError: a field is missing or unknown, a grid names what there is not; the message says what there is.
    """
    path = recipe_path(name)
    known = {field.name for field in fields(StudyPlan)} - {"grids"} | {"grid", "also"}
    written = {**read_recipe_file(path, sorted(known)), **(overrides or {})}
    for key in written:
        if key not in known:
            raise ValueError(f"{path}: {key!r} is no field of a study: known are {', '.join(sorted(known))}")
    for key in sorted(known - {"also", "overrides", "degraded_with", "held_out"} - set(written)):
        raise ValueError(f"{path}: the field {key!r} is missing; see training/recipes/study.yaml")
    _check_kinds(written, path)
    grids = [written.pop("grid"), *(written.pop("also", None) or [])]
    seen: set[Cell] = set()
    cells = []
    for grid in grids:
        cells.append(tuple(cell for cell in cells_of(grid, path) if cell not in seen))
        seen.update(cells[-1])
    conditions = [condition for content in written.pop("conditions") for condition in _conditions(content, path)]
    plan = StudyPlan(
        grids=tuple(cells),
        conditions=tuple(conditions),
        degraded_with=written.pop("degraded_with", None) or {},
        overrides=written.pop("overrides", None) or {},
        held_out=written.pop("held_out", None) or (),
        **written,
    )
    _check_numbers(plan, path)
    for cell in plan.cells:
        plan.recipe_of(cell, plan.scene_seed)
    return plan


def _check_kinds(written: Mapping[str, Any], path: Path) -> None:
    """That lists are lists, and mappings mappings, before anything is read in them."""
    mappings = {"grid": written["grid"]} | {f"also[{n}]": grid for n, grid in enumerate(written.get("also") or [])}
    mappings |= {f"conditions[{n}]": content for n, content in enumerate(_list(written, "conditions", path))}
    mappings |= {name: written.get(name) or {} for name in ("degraded_with", "overrides")}
    for name, value in mappings.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}: {name}={value!r} must be a mapping; see training/recipes/study.yaml")
    for seed in _list(written, "seeds", path):
        check_kind(f"{path}: seeds", seed, int)
    _list(written, "held_out", path)
    check_scenes(written["scenes"], f"{path}: scenes")


def _list(written: Mapping[str, Any], name: str, path: Path) -> Sequence[Any]:
    value = written.get(name) or []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{path}: {name}={value!r} must be a list; see training/recipes/study.yaml")
    return value


def cells_of(grid: Mapping[str, Sequence[str]], path: Path) -> list[Cell]:
    """All combinations of a grid's axes; an axis that is left out has its first value alone."""
    for axis, values in grid.items():
        if axis not in AXES:
            raise ValueError(f"{path}: {axis!r} is no axis of the grid: known are {', '.join(AXES)}")
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"{path}: {axis}={values!r} must be a list, such as [{AXES[axis][0]}]")
        for value in values:
            if value not in AXES[axis]:
                raise ValueError(f"{path}: {axis}={value!r} is not known: choose among {', '.join(AXES[axis])}")
    columns = [grid.get(axis, values[:1]) for axis, values in AXES.items()]
    return [Cell(*values) for values in itertools.product(*columns)]


def _conditions(content: Mapping[str, Any], path: Path) -> list[Condition]:
    """The conditions of an entry, all of which can be drawn."""
    try:
        conditions = _conditions_of(content)
        for condition in conditions:
            condition.scenes(1)
    except KeyError as error:
        raise ValueError(
            f"{path}: the condition {dict(content)} lacks {error}; see training/recipes/study.yaml"
        ) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the condition {dict(content)}: {error}") from None
    return conditions


def _conditions_of(content: Mapping[str, Any]) -> list[Condition]:
    """`{name, split, image or tags, severity}` is one; `{image: [names], severities: [2, 4]}` all of these."""
    kinds = {"image": "image_degradation", "tags": "tag_corruption"}
    kind = next((kind for kind in kinds if kind in content), None)
    split = content.get("split", "prior_broken")
    if kind is None:
        return [Condition(content["name"], split)]
    if isinstance(content[kind], str):
        settings = {kinds[kind]: content[kind], "severity": content["severity"]}
        return [Condition(content["name"], split, settings, kind)]
    return [
        Condition(f"{name} {severity}", split, {kinds[kind]: name, "severity": severity}, kind)
        for name in content[kind]
        for severity in content["severities"]
    ]


def _check_numbers(plan: StudyPlan, path: Path) -> None:
    for name in ("steps", "batch_size", "samples", "train_scenes"):
        if not isinstance(getattr(plan, name), int) or getattr(plan, name) < 1:
            raise ValueError(f"{path}: {name}={getattr(plan, name)!r} must be a whole number of at least 1")
    if plan.train_scenes < plan.batch_size:
        raise ValueError(f"{path}: train_scenes={plan.train_scenes} are fewer than one batch of {plan.batch_size}")
    asked = {value for condition in plan.conditions for value in condition.settings.values()}
    for name in plan.held_out:
        if name not in asked:
            raise ValueError(f"{path}: held_out names {name!r}, which is no degradation among the plan's conditions")
    if not plan.seeds or not plan.conditions:
        raise ValueError(f"{path}: seeds and conditions need at least one entry each")
    if any(cell.training == "degraded" for cell in plan.cells):
        for name in ("image", "tags", "share"):
            if name not in plan.degraded_with:
                raise ValueError(f"{path}: degraded_with.{name} is missing, but the grid trains on degraded streams")
