"""Writes the completion scripts that `poise completion` prints: `python -m poise.commands.completion_builder`.

They are made here, once, and not when a shell asks: most parsers come with torch, and nobody waits five seconds for a
TAB. A test compares what is shipped with what the parsers say. shtab turns a parser into a script.
"""

import argparse
import importlib
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import shtab
import yaml
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType

from poise.command_line import COMMANDS, global_options
from poise.commands.completion import FOLDER, SHELLS
from poise.modeling.configuration_dual_encoder import TEXT_PATHS, VISION_PATHS
from poise.modeling.configuration_poise import FEATURE_SELECTIONS
from poise.modeling.contrastive_losses import CONTRASTIVE_LOSSES
from poise.modeling.information_router import ROUTERS
from poise.modeling.projectors import PROJECTORS
from poise.modeling.soft_prompt import PROMPT_POOLINGS, SCORE_ENCODINGS, SOFT_PROMPTS
from poise.processing.degradations.degradations import DEGRADATION_STREAMS
from poise.training.align.recipe import FIELDS as ALIGN_FIELDS
from poise.training.preference.pairs import KINDS
from poise.training.preference.recipe import FIELDS as PREFERENCE_FIELDS
from poise.training.sft.recipe import QUANTIZATIONS, TRACKERS
from poise.training.sft.recipe import SECTIONS as SFT_FIELDS
from poise.training.tag_encoder.data import POSITIVES
from poise.training.tag_encoder.model import NEGATIVES
from poise.training.tag_encoder.recipe import FIELDS as TAG_ENCODER_FIELDS

# Commands whose options are also the fields of a recipe.
RECIPE_FIELDS: dict[str, Mapping[str, Sequence[str]]] = {
    "sft": SFT_FIELDS,
    "align": ALIGN_FIELDS,
    "tag-encoder": TAG_ENCODER_FIELDS,
    "preference": PREFERENCE_FIELDS,
}
BOOLEANS = ("true", "false")
# What may stand behind a field of a recipe, or behind an option whose parser leaves that to the program.
VALUES: dict[str, Iterable[str]] = {
    "router_type": ROUTERS,
    "projector_type": PROJECTORS,
    "soft_prompt_type": SOFT_PROMPTS,
    "soft_prompt_pooling": PROMPT_POOLINGS,
    "tag_score_encoding": SCORE_ENCODINGS,
    "score_encoding": SCORE_ENCODINGS,
    "vision_feature_select": FEATURE_SELECTIONS,
    "vision_paths": VISION_PATHS,
    "text_paths": TEXT_PATHS,
    "quantization": QUANTIZATIONS,
    "negatives": NEGATIVES,
    "positive": POSITIVES,
    "kinds": KINDS,
    "report_to": ("none", *TRACKERS),
    "align_words": BOOLEANS,
    "use_dora": BOOLEANS,
    "use_rslora": BOOLEANS,
    "task_routed": BOOLEANS,
    "streaming": BOOLEANS,
    "feature_cache": BOOLEANS,
    "gradient_checkpointing": BOOLEANS,
    "bf16": BOOLEANS,
    "fp16": BOOLEANS,
    "load_best_model_at_end": BOOLEANS,
    "push_to_hub": BOOLEANS,
    "hub_strategy": [strategy.value for strategy in HubStrategy],
    "eval_strategy": [strategy.value for strategy in IntervalStrategy],
    "save_strategy": [strategy.value for strategy in SaveStrategy],
    "lr_scheduler_type": [scheduler.value for scheduler in SchedulerType],
    "routers": ROUTERS,
    "degradations": DEGRADATION_STREAMS,
    "device": ("cpu", "cuda"),
    "dtype": ("float32", "bfloat16", "float16"),
}
ALIGN_LOSSES = CONTRASTIVE_LOSSES  # the preference stage has a field of the same name with other values
# `TrainingArguments` has 120 fields, all of which may be written. These are the ones that a list should hold.
USUAL_TRAINING = (
    "output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "weight_decay", "max_grad_norm", "optim", "bf16", "fp16", "torch_compile", "seed", "eval_strategy", "eval_steps",
    "eval_on_start", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end",
    "metric_for_best_model", "logging_steps", "report_to", "run_name", "disable_tqdm", "dataloader_num_workers",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",
)  # fmt: skip
# Options and arguments that name a file or a folder, by what the help calls them or by their name.
PATHS = {"FOLDER", "FILE", "PNG", "DIR", "SOURCE", "RECIPE", "PLAN", "CHECKPOINT", "MODEL", "RUN", "OUT", "IMAGE",
         "out", "output", "source", "tagger", "image_folder", "output_dir", "train", "evaluation"}  # fmt: skip


def whole_parser() -> argparse.ArgumentParser:
    """`poise` with every command as a sub-parser: what the command line does in two steps, for shtab in one."""
    parser = argparse.ArgumentParser(prog="poise", parents=[global_options()])
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS.values():
        own = importlib.import_module(command.module).build_parser()
        added = commands.add_parser(command.name, parents=[own], add_help=False, help=command.summary)
        if command.name in RECIPE_FIELDS:
            _add_recipe_fields(added, command.name)
        for one in _with_inner(added):
            for action in one._actions:
                _say_what_fits(action, command.name)
    return parser


def _with_inner(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A command's parser and those of its own sub-commands."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(one for action in inner for one in action.choices.values())]


def _add_recipe_fields(parser: argparse.ArgumentParser, command: str) -> None:
    """Every field as an option, with its section only where the name alone is not enough."""
    sections = RECIPE_FIELDS[command]
    names = [name for fields in sections.values() for name in fields]
    group = parser.add_argument_group("fields of the recipe")
    for section, fields in sections.items():
        for name in fields:
            option = f"--{name}" if names.count(name) == 1 else f"--{section}.{name}"
            unusual = section == "training" and name not in USUAL_TRAINING
            if option not in parser._option_string_actions and not unusual:
                group.add_argument(option, dest=name, help=f"recipe: {section}")


def _say_what_fits(action: argparse.Action, command: str) -> None:
    """Choices and file names for an option that does not say itself what it takes."""
    if action.nargs == 0 or isinstance(action, argparse._SubParsersAction):
        return
    if action.choices is None:
        values = ALIGN_LOSSES if (command, action.dest) == ("align", "loss_type") else VALUES.get(action.dest)
        if action.dest == "config" and command in ("demo", *RECIPE_FIELDS):
            values = recipes_of("sft" if command == "demo" else command)
        action.choices = None if values is None else list(values)
    if action.choices is None and (action.metavar in PATHS or action.dest in PATHS):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def recipes_of(command: str) -> list[str]:
    """Names of the shipped recipes that a command can read: all their sections and fields are known to it."""
    known = RECIPE_FIELDS[command]
    found = []
    for path in sorted(Path(str(importlib.resources.files("poise.training"))).glob("recipes/*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if all(name in known and set(fields or ()) <= set(known[name]) for name, fields in content.items()):
            found.append(path.stem)
    return found


def build_scripts() -> dict[str, str]:
    """The script of every shell."""
    parser = whole_parser()
    scripts = {shell: shtab.complete(parser, shell).rstrip() + "\n" for shell in SHELLS}
    # A recipe or a data source may be a name or a file: where no word fits, bash goes on with files.
    scripts["bash"] = scripts["bash"].replace("complete -o bashdefault -F", "complete -o bashdefault -o default -F")
    return scripts


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for shell, script in build_scripts().items():
        path = FOLDER / f"poise.{shell}"
        path.write_text(script, encoding="utf-8")
        print(f"{path}: {len(script.splitlines())} lines")


if __name__ == "__main__":
    main()
