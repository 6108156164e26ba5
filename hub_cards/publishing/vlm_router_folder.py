"""The repository of a router on a pretrained VLM: what is new, its code and a card; the VLM stays where its id says."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...evaluation.saved_models import saved_config
from ..card.data import CardData
from ..card.tables import condition_table, markdown, score_table
from .run_folder import RunFolder

_NOT_PUBLIC = ("recipe.yaml", "versions.json", "checkpoint_files.json", "README.md")
_TEXT = """
# A router and a soft prompt on {vlm}

[{vlm}](https://huggingface.co/{vlm}) as it is, with {parts} of {size:.1f} MB in what its image encoder hands to its
language model. Tags of an image with their confidence scores are read by [{encoder}](https://huggingface.co/{encoder});
{router}.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{repository}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{vlm}")
```

Inputs are those of {vlm}, and per image `tag_input_ids`, `tag_attention_mask` and `tag_scores`, all or none, and
`question_input_ids` and `question_attention_mask`, what is asked in the words of the tag encoder, by which a
reliability router tells whether the image still shows it. After a call `model.router_weights` holds what each image and
its tags were weighed with. With
[Poise](https://pypi.org/project/poise/) installed, `poise ask`, `look`, `evaluate`, `robustness` and `diagnose` take
`{repository}` like any model.
"""
_ROUTERS = {
    "reliability": "a reliability router judges how far image and tags can be trusted",
    "gate": "a gate weighs the two streams",
    "channel": "a channel router exchanges channels between the two streams",
    "none": "no router weighs the two",
}


def vlm_router_of(name: str) -> Path | None:
    """The folder of a [`RoutedVlm`] that `name` means, a run of it or itself; `None` for anything else."""
    for folder in (Path(name) / "model", Path(name)):
        if (folder / "config.json").is_file() and saved_config(folder).get("model_type") == "poise_vlm_router":
            return folder
    return None


def write_vlm_router_folder(
    model: Path, output: Path, repository: str, license: str | None = None, evaluation: Sequence[str] = ()
) -> Path:
    """
    Copies a saved [`RoutedVlm`] and writes its card, with what was measured on its run.

    Args:
        repository (`str`): `user/name`, for the card. license (*optional*): of what is new.
        evaluation (*optional*): further files of scores.

    Raises:
        ValueError: it stands on a VLM or tag encoder that has no id of the Hub, so nobody else could load it.
    """
    config = saved_config(model)
    for key in ("vlm", "tag_encoder"):
        _check_id(key, config[key])
    measured, _, _ = RunFolder.find(model).everything_for_the_card(evaluation)
    if output.resolve() != model.resolve():
        shutil.copytree(model, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_PUBLIC))
    router, lora = config.get("router_type", "reliability"), config.get("lora")
    text = _TEXT.format(
        vlm=config["vlm"],
        encoder=config["tag_encoder"],
        parts="router, soft prompt and LoRA adapters" if lora else "router and soft prompt",
        size=(model / "model.safetensors").stat().st_size / 1e6,
        router=_ROUTERS[router],
        repository=repository,
    )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=config["vlm"],
        base_model_relation="adapter",
        license=license,
        tags=["poise", "custom_code"],
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}{_sections(measured)}").save(output / "README.md")
    return output


def _sections(measured: CardData) -> str:
    tables = {
        "Evaluation": score_table(measured.evaluation) if measured.evaluation else None,
        "How it holds up": condition_table(measured.robustness),
        "Dominance": score_table(measured.dominance) if measured.dominance else None,
    }
    return "".join(f"\n## {title}\n\n{markdown(table)}\n" for title, table in tables.items() if table)


def _check_id(key: str, name: Any) -> None:
    try:
        validate_repo_id(name)
        known = not Path(name).exists()
    except HFValidationError:
        known = False
    if not known:
        raise ValueError(
            f"config.{key}={name!r} is no repository of the Hub, so nobody else could load this: publish it first, and "
            f"name its id (model.{key} of the recipe, or in config.json)."
        )
