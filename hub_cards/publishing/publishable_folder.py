"""A folder that can be published: everything that somebody needs who has only transformers.

It is written beside its final place, checked there, and moved when it is sound: a folder that is already published from
is never seen half-written, and is still there if the new one fails.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from peft import PeftModel
from PIL import Image

from ...evaluation.saved_models import loading_errors
from ...modeling import PoiseConfig
from ...processing import PoiseProcessor, Scenes
from ...training.atomic_folders import note_written
from ...training.run_files import RECIPE_FILE, VERSIONS_FILE, base_of, versions
from ...training.sft.recipe import Recipe
from ..card.backbone_names import hub_id, public_name
from ..card.data import CARD_DATA_FILE, SCHEMA, CardData, EvaluationRow
from ..card.model_card import build_card
from ..card.plots import draw_plots
from ..card.public_recipe import public_recipe
from .adapter_folder import save_adapter
from .self_check import check_loads_without_poise

RESULTS_FILE = "evaluation_results.json"
SAMPLE_FILE = "sample.png"
SAMPLE_ANSWER_FILE = "sample.json"
BENCHMARK_FOLDER = ".eval_results"


def write_publishable_folder(
    model: torch.nn.Module,
    processor: PoiseProcessor,
    folder: str | os.PathLike,
    card_data: CardData | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    sample: Mapping[str, Any] | None = None,
    repository: str | None = None,
    adapter_only: bool = False,
    max_shard_size: str = "5GB",
    check: bool = True,
    figures: Mapping[str, Path] | None = None,
) -> Path:
    """
    Write model, processor, remote code, card, results, recipe, plots and an answered sample image.

    Args:
        model: a Poise model; around it may be PEFT, whose adapters are merged (in place) unless `adapter_only`.
        processor ([`PoiseProcessor`]): made for the model.
        folder: where to; an earlier publishable folder there is replaced when the new one is sound.
        card_data ([`CardData`], *optional*): what the card says beyond the configuration.
        recipe ([`Recipe`] or `dict`, *optional*, defaults to `card_data.recipe`): secrets and local paths are left out.
        sample (*optional*): `{"image": PIL image or path, "question": str, "tags": [[name, score]]}`; a drawn scene by
            default. Never a photo that is not yours.
        repository (`str`, *optional*): `user/name` that it is going to have; the folder's name by default.
        adapter_only (`bool`, *optional*, defaults to `False`): only what was trained, see [`save_adapter`].
        max_shard_size (`str`, *optional*, defaults to `"5GB"`): of a weight file.
        check (`bool`, *optional*, defaults to `True`): load it in a process without Poise and let it answer the sample.
        figures (*optional*): PNG files by section, "robustness" or "dominance", in place of those drawn of the tables.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: the folder holds something else; adapters over a quantized model are to be merged; `adapter_only`
            without adapters, or with backbones that are not on the Hub.
        SelfCheckError: it does not load, or does not answer, without Poise; nothing is left behind.

    Examples:
        >>> folder = write_publishable_folder(model, processor, "published", repository="user/name", check=False)
        >>> (folder / "README.md").is_file()
        True
    """
    folder = Path(folder)
    check_replaceable(folder)
    base = base_of(model)
    card_data = CardData() if card_data is None else card_data
    recipe = recipe.to_dict() if isinstance(recipe, Recipe) else recipe
    shown_recipe = public_recipe(recipe if recipe is not None else card_data.recipe)
    card_data.recipe = shown_recipe
    repository = card_data.repository = repository or folder.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        own_names = base.config.backbones
        base.config.backbones = {role: public_name(name) for role, name in (own_names or {}).items()}
        try:
            _save_model(model, new, repository, adapter_only, max_shard_size)
            processor.save_pretrained(new)
            forget_local_names(new)
            _write_json(new / VERSIONS_FILE, versions())
            shown_sample = _write_sample(new, sample)
            if check:
                shown_sample["answer"] = _answer(new, shown_sample, with_cache=adapter_only)
                _write_json(new / SAMPLE_ANSWER_FILE, shown_sample)
            write_card(new, card_data, figures)
        except KeyboardInterrupt as stopped:
            said = str(stopped) or "interrupted"
            raise KeyboardInterrupt(f"{said} while {folder} was written: nothing of it is left") from None
        finally:
            base.config.backbones = own_names
        _move_into_place(new, folder, Path(scratch) / "replaced")
    return folder


def check_replaceable(folder: Path) -> None:
    """
    Raises:
        ValueError: a file, or a folder that holds what was not written for publishing.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SAMPLE_FILE).is_file():
        raise ValueError(
            f"folder={str(folder)!r} holds something that was not written for publishing: name a new or empty folder"
        )


def _save_model(model: torch.nn.Module, folder: Path, repository: str, adapter_only: bool, max_shard_size: str) -> None:
    """Weights, configurations, code."""
    base = base_of(model)
    if adapter_only:
        save_adapter(model, folder, repository)
        return
    quantized = bool(getattr(base, "is_quantized", False))
    if isinstance(model, PeftModel):
        if quantized:
            raise ValueError(
                "the language model is quantized, and merging adapters into it loses accuracy: publish with "
                "adapter_only=True, or load it in full precision and merge there (poise publish --merge)"
            )
        base = model.merge_and_unload()
    base.eval().save_pretrained(folder, max_shard_size=max_shard_size)


def forget_local_names(folder: Path) -> None:
    """transformers notes in configurations and tokenizers from where they were loaded: folders of this machine too."""
    for path in [*folder.glob("*.json"), *folder.glob("*/*.json")]:
        content = json.loads(path.read_text(encoding="utf-8"))
        if _without_local_names(content):
            _write_json(path, content)


def _without_local_names(content: Any) -> bool:
    """Remove such notes in place; whether there were any."""
    changed = False
    if isinstance(content, dict):
        for key in ("_name_or_path", "name_or_path"):
            if content.get(key) and hub_id(content[key]) is None:
                del content[key]
                changed = True
        content = list(content.values())
    if isinstance(content, list):
        for inner in content:
            changed = _without_local_names(inner) or changed
    return changed


def write_card(folder: Path, card_data: CardData, figures: Mapping[str, Path] | None = None) -> None:
    """
    The card of a saved model and what it refers to: plots, results, recipe, and the data that it can be made of again.

    Args:
        folder: with `config.json`; `sample.json`, where it lies there, is shown.
        card_data ([`CardData`]): `recipe` is one for everybody, see `public_recipe`.
        figures (*optional*): see [`write_publishable_folder`].

    Raises:
        ValueError: there is no configuration of a Poise model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"MODEL {str(folder)!r} holds no config.json: name the folder of a saved model")
    with loading_errors(folder):
        config = PoiseConfig.from_pretrained(folder)
    variant = "adapter" if (folder / "adapter_config.json").is_file() else "finetune"
    if variant == "finetune" and getattr(config, "quantization_config", None):
        variant = "quantized"
    sample = None
    if (folder / SAMPLE_ANSWER_FILE).is_file():
        sample = json.loads((folder / SAMPLE_ANSWER_FILE).read_text(encoding="utf-8"))
    card_data.save(folder / CARD_DATA_FILE)
    _write_json(folder / RESULTS_FILE, {"schema": SCHEMA, **card_data.tables()})
    write_benchmark_results(folder, card_data.evaluation)
    if card_data.recipe is not None and not (folder / RECIPE_FILE).is_file():  # a run is resumed and loaded by its own
        (folder / RECIPE_FILE).write_text(yaml.safe_dump(card_data.recipe, sort_keys=False), encoding="utf-8")
    plots = draw_plots(folder, card_data, figures)
    card = build_card(config, card_data, card_data.repository or folder.name, variant, plots, sample)
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    benchmarks = (path.relative_to(folder).as_posix() for path in folder.glob(f"{BENCHMARK_FOLDER}/*.yaml"))
    note_written(folder, [CARD_DATA_FILE, RESULTS_FILE, "README.md", *plots.values(), *benchmarks])


def write_benchmark_results(folder: Path, rows: Sequence[EvaluationRow]) -> None:
    """`.eval_results/NAME.yaml` for each benchmark that is registered on the Hub; the others are on the card alone."""
    entries: dict[str, list[EvalResultEntry]] = {}
    for row in rows:
        if row.benchmark is not None:
            dataset, _, task = row.benchmark.partition("#")
            notes = f"{row.metric}, {row.condition}"
            entries.setdefault(dataset, []).append(EvalResultEntry(dataset, task, round(row.value, 6), notes=notes))
    for dataset, found in entries.items():
        path = folder / BENCHMARK_FOLDER / f"{dataset.replace('/', '-')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False), encoding="utf-8")


def _write_sample(folder: Path, sample: Mapping[str, Any] | None) -> dict[str, Any]:
    """The sample's image; returns the sample with the image's path in the repository, yet without an answer."""
    drawn = sample is None
    if sample is None:
        sample = Scenes("test", size=1, tasks=("vqa",), question_types=("color",))[0]
    image = sample["image"]
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            image = opened.convert("RGB")
    image.save(folder / SAMPLE_FILE)
    tags = [[str(name), round(float(score), 4)] for name, score in sample.get("tags") or []]
    shown = {"image": SAMPLE_FILE, "question": sample["question"], "tags": tags}
    return {**shown, "drawn": True} if drawn else shown


def _answer(folder: Path, sample: Mapping[str, Any], with_cache: bool) -> str:
    question = {**sample, "image": folder / sample["image"]}
    return check_loads_without_poise(folder, [question], with_cache=with_cache)[0]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move_into_place(new: Path, folder: Path, replaced: Path) -> None:
    if folder.exists():
        folder.rename(replaced)
    try:
        new.rename(folder)
    except OSError:
        if replaced.exists():
            shutil.move(replaced, folder)
        raise
