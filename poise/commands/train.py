"""The stages of training as commands: `poise sft` (a Poise model, or a router on a pretrained VLM), `poise align`,
`poise tag-encoder` and `poise preference`.

They share one command line. What differs stands in the table at the end; the training itself is the `stage` module of
the stage's package in `training/`.
"""

import argparse
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(frozen=True)
class Stage:
    """
    One stage of training as a command.

    name (`str`): of the command.
    description (`str`): what it does, for `--help`.
    examples (`str`): fields of its recipe, as they are overridden.
    package (`str`): where the training is; its `stage` has `summary(metrics)`, lines that tell how a run ended.
    load (`str`): in its module `recipe`, `(config, overrides) -> recipe`.
    run (`str`): in its module `stage`, `(recipe, resume, callbacks, overwrite) -> folder, metrics`.
    shipped (`str`): what `--config` takes.
    result (`str`): what the folder holds.
    data (`str`): what `--data` takes.
    options (`dict`): further options, and the field of the recipe that each stands for.
    collects_card (`bool`): whether `card_data.json` is written beside the run, for `poise publish`.
    then (`Sequence[str]`): commands that go on with `{run}`, printed at its end.
    """

    name: str
    description: str
    examples: str
    package: str
    load: str
    run: str
    shipped: str
    result: str = "model"
    data: str = "'scenes', a JSON-lines file or a folder (data.train)"
    options: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    collects_card: bool = False
    then: Sequence[str] = ()

    def build_parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"poise {self.name}",
            description=self.description,
            epilog=f"Every field of the recipe can be overridden: {self.examples}",
        )
        parser.add_argument("--config", metavar="RECIPE", help=self.shipped)
        for option, (_, metavar, help_text) in self.options.items():
            parser.add_argument(f"--{option}", metavar=metavar, help=help_text)
        parser.add_argument("--data", metavar="SOURCE", help=self.data)
        parser.add_argument(
            "--resume", nargs="?", const="", metavar="CHECKPOINT", help="go on from the newest, or this one"
        )
        parser.add_argument("--overwrite", action="store_true", help="give up a former run in the same folder")
        return parser

    def read_recipe(self, known: argparse.Namespace, rest: Sequence[str]) -> Any:
        """
        The recipe of a parsed command line, checked.

        Raises:
            ValueError: it knows no such field, or a value that cannot be.
        """
        from poise.training.run_start import check_output_named

        overrides = parse_overrides(rest)
        if known.data is not None:
            overrides["data.train"] = source_override(known.data)
        for option, (key, _, _) in self.options.items():
            if getattr(known, option) is not None:
                overrides[key] = getattr(known, option)
        recipes = importlib.import_module(f"{self.package}.recipe")
        try:
            recipe = getattr(recipes, self.load)(known.config, overrides)
        except ValueError as error:
            if known.config is None and "missing" in str(error):
                raise ValueError(f"{error}; or give --config {self.shipped}") from error
            raise
        check_output_named(known.resume, recipe.training["output_dir"], overrides)
        return recipe

    def main(self, argv: Sequence[str]) -> int:
        """`poise STAGE --config RECIPE [--data SOURCE] [--resume [CHECKPOINT]] [--key value …]`. Returns 0."""
        known, rest = self.build_parser().parse_known_args(list(argv))
        recipe = self.read_recipe(known, rest)
        from transformers import logging as transformers_logging

        from poise.hub_cards.publishing.card_collector import CardCollector
        from poise.hub_cards.publishing.training_push import PushCallback

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        transformers_logging.set_verbosity_warning()
        stage = importlib.import_module(f"{self.package}.stage")
        callbacks = [CardCollector(recipe) if self.collects_card else PushCallback()]
        folder, metrics = getattr(stage, self.run)(recipe, known.resume, callbacks, overwrite=known.overwrite)
        then = [line.format(run=recipe.training["output_dir"]) for line in self.then]
        for line in [*stage.summary(metrics), f"{self.result}: {folder}", *then]:
            logging.getLogger(stage.__name__).info("%s", line)
        return 0


@dataclass(frozen=True)
class Sft(Stage):
    """Fine-tuning; of a router on a pretrained VLM where `--vlm` or the recipe names one."""

    def main(self, argv: Sequence[str]) -> int:
        known, _ = self.build_parser().parse_known_args(list(argv))
        if known.vlm is not None or (known.config is not None and self._names_vlm(known.config)):
            return VLM_ROUTER.main(argv)
        return super().main(argv)

    @staticmethod
    def _names_vlm(config: str) -> bool:
        from poise.training.recipe_loading import recipe_path

        try:
            model = yaml.safe_load(recipe_path(config).read_text(encoding="utf-8"))["model"]
        except (ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError):
            return False  # whatever is wrong with it, the stage itself says so
        return isinstance(model, dict) and "vlm" in model


_THEN = (
    "score it: poise evaluate {run} --data RECORDS",
    "share it: poise publish {run} --repo user/name --dry-run",
)
_VLM = {"vlm": ("model.vlm", "ID", "a pretrained VLM to put a router, a soft prompt and LoRA on (recipe vlm_router)")}
VLM_ROUTER = Stage(
    name="sft",
    description="Train a router, a soft prompt and LoRA on a pretrained vision-language model, which stays frozen.",
    examples="--router_type gate --training.max_steps 200 --lora.r 4",
    package="poise.training.vlm_router",
    load="load_vlm_router_recipe",
    run="run_vlm_router",
    shipped="a recipe file, or the name of a shipped one: vlm_router",
    data="task records with tags (data.train)",
    options=_VLM,
    then=_THEN,
)
SFT = Sft(
    name="sft",
    description="Fine-tune projector, soft prompt, router and LoRA adapters on task records.",
    examples="--router_type gate --training.max_steps 200 --lora.r 4",
    package="poise.training.sft",
    load="load_recipe",
    run="run_sft",
    shipped="a recipe file, or the name of a shipped one: demo, photos, interpret (tiny backbones, on a CPU, offline), "
    "siglip2_smollm2_minilm, clip_flan_t5_bert, vlm_router",
    options=_VLM,
    collects_card=True,
    then=_THEN,
)
ALIGN = Stage(
    name="align",
    description="Align frozen encoders: train a dual encoder's projectors on cached features, and calibrate it.",
    examples="--loss_type sigmoid --fusemix_alpha 1 --max_steps 200",
    package="poise.training.align",
    load="load_align_recipe",
    run="run_align",
    shipped="a recipe file, or the name of a shipped one: align, align_dinov2_roberta",
)
TAG_ENCODER = Stage(
    name="tag-encoder",
    description="Teach a sentence encoder what tags with scores mean: triplet margin loss of tags and captions.",
    examples="--margin 0.5 --negatives semi_hard --training.seed 3",
    package="poise.training.tag_encoder",
    load="load_tag_encoder_recipe",
    run="run_tag_encoder",
    result="tag encoder",
    shipped="a recipe file, or the name of a shipped one: tag_encoder, tag_encoder_scenes",
)
PREFERENCE = Stage(
    name="preference",
    description="Prefer what the image shows to what the prior or an invented tag says (DPO, through TRL).",
    examples="--beta 0.2 --training.max_steps 100 --lora.r 4",
    package="poise.training.preference",
    load="load_preference_recipe",
    run="run_preference",
    shipped="a recipe file, or the name of a shipped one: preference_scenes",
    data="'scenes' or a JSON-lines file of pairs (data.train)",
    options={"model": ("model.folder", "FOLDER", "the finished model to start from (model.folder)")},
)


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """
    `["--router_type", "gate", "--max_steps=10", "seed=1"]` → `{"router_type": "gate", "max_steps": 10, "seed": 1}`;
    values are YAML.

    Raises:
        ValueError: a word that is no option, or an option without a value.
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, separator, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") and not (separator and key.replace(".", "_").isidentifier()):
            raise ValueError(f"argument {word!r} was not expected: options are written --key value")
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"option --{key} needs a value: write --{key} VALUE")
            value = rest.pop(0)
        try:
            overrides[key.replace("-", "_")] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ValueError(f"option --{key} {value!r} is no YAML: put quotes around it") from error
    return overrides


def source_override(word: str) -> Any:
    """What `--data` says, as `data.train`: a name as it stands, a mapping `{name: …}` or a list `[…]` read as YAML.

    Raises:
        ValueError: braces or brackets around what is no YAML.
    """
    if not word.startswith(("{", "[")):
        return word
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise ValueError(
            f"--data {word!r} is no YAML: write {{name: user/photos, split: train}}, with a space behind each colon"
        ) from error


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as a string; on a command line everybody means the number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
