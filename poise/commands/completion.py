"""`poise completion bash`: a script for the shell that completes commands, their options, choices and files.

shtab makes the script from the parsers of all commands. Most of these come with torch, and nobody waits ten seconds for
a shell to start: the script is kept in the cache folder of the user until Poise changes.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import poise
from poise.command_line import COMMANDS, global_options

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """put one of these into the shell's start-up file:
  bash   source <(poise completion bash)                    ~/.bashrc
  zsh    source <(poise completion zsh)                     ~/.zshrc, below compinit
  fish   poise completion fish | source                     ~/.config/fish/config.fish"""

BOOLEANS = ("true", "false")
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise completion",
        description="Print a script that completes commands, options, choices and file names at the press of TAB.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read the script")
    return parser


def main(argv: list[str]) -> int:
    """Prints the script, the kept one where there is one. Returns 0."""
    shell = build_parser().parse_args(argv).shell
    path = cached_script(shell)
    if path.is_file():
        script = path.read_text(encoding="utf-8")
    else:
        script = build_script(shell)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in path.parent.glob(f"completion-*.{shell}"):
                old.unlink(missing_ok=True)
            aside = path.with_name(f"{path.name}.{os.getpid()}")  # two shells may start at the same time
            aside.write_text(script, encoding="utf-8")
            aside.replace(path)
        except OSError:
            pass  # a home folder that cannot be written: the script is made every time
    sys.stdout.write(script)
    return 0


def cached_script(shell: str) -> Path:
    """Where the script is kept: another file for every version, and for every edit of a source file."""
    sources = [path for folder in poise_folders() for path in folder.rglob("*.py")]
    newest = max(path.stat().st_mtime_ns for path in sources)
    key = hashlib.sha256(f"{poise.__version__} {len(sources)} {newest} {sys.version}".encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "poise" / f"completion-{key}.{shell}"


def poise_folders() -> list[Path]:
    """The folders that hold Poise's source: one, or six in a checkout."""
    names = ("modeling", "processing", "training", "evaluation", "hub_cards")
    found = [Path(poise.__file__).parent, *(Path(str(files(f"poise.{name}"))) for name in names)]
    return [folder for folder in found if found[0] not in folder.parents]


def build_script(shell: str) -> str:
    """
    The script of a shell.

    Raises:
        ImportError: shtab is not installed.
    """
    import shtab

    script = shtab.complete(whole_parser(), shell).rstrip() + "\n"
    # A recipe or a data source may be a name or a file: where no word fits, bash goes on with files.
    return script.replace("complete -o bashdefault -F", "complete -o bashdefault -o default -F")


def recipes() -> dict[str, Any]:
    """Commands whose options are also the fields of a recipe, with its class."""
    from poise.training.align.recipe import AlignRecipe
    from poise.training.preference.recipe import PreferenceRecipe
    from poise.training.sft.recipe import Recipe
    from poise.training.tag_encoder.recipe import TagEncoderRecipe

    return {"sft": Recipe, "align": AlignRecipe, "tag-encoder": TagEncoderRecipe, "preference": PreferenceRecipe}


def values_of_fields() -> dict[str, Iterable[str]]:
    """What may stand behind a field that is passed on, or behind an option whose parser leaves that to the program."""
    from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType

    from poise.modeling.configuration_poise import FEATURE_SELECTIONS
    from poise.modeling.information_router import ROUTERS
    from poise.modeling.projectors import PROJECTORS
    from poise.modeling.soft_prompt import PROMPT_POOLINGS, SCORE_ENCODINGS, SOFT_PROMPTS
    from poise.processing.degradations.degradations import DEGRADATION_STREAMS
    from poise.training.align.recipe import HEAD_CHOICES
    from poise.training.preference.pairs import KINDS
    from poise.training.run_start import TRACKERS

    return {
        "router_type": ROUTERS,
        "projector_type": PROJECTORS,
        "soft_prompt_type": SOFT_PROMPTS,
        "soft_prompt_pooling": PROMPT_POOLINGS,
        "tag_score_encoding": SCORE_ENCODINGS,
        "vision_feature_select": FEATURE_SELECTIONS,
        **{f"align {name}": choices for name, choices in HEAD_CHOICES.items()},
        "kinds": KINDS,
        "report_to": ("none", *TRACKERS),
        "feature_cache": BOOLEANS,
        "hub_strategy": [strategy.value for strategy in HubStrategy],
        "eval_strategy": [strategy.value for strategy in IntervalStrategy],
        "save_strategy": [strategy.value for strategy in SaveStrategy],
        "lr_scheduler_type": [scheduler.value for scheduler in SchedulerType],
        "routers": ROUTERS,
        "degradations": DEGRADATION_STREAMS,
        "device": ("cpu", "cuda"),
        "dtype": ("float32", "bfloat16", "float16"),
        **dict.fromkeys(
            ("gradient_checkpointing", "bf16", "fp16", "load_best_model_at_end", "push_to_hub"), BOOLEANS
        ),
        **{f"{command} {name}": choices for command, recipe in recipes().items()
           for name, choices in recipe.choices().items()},
    }  # fmt: skip


def whole_parser() -> argparse.ArgumentParser:
    """`poise` with every command as a sub-parser: what the command line does in two steps, for shtab in one."""
    fields, values = {command: recipe.known() for command, recipe in recipes().items()}, values_of_fields()
    parser = argparse.ArgumentParser(prog="poise", parents=[global_options()])
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS.values():
        own = command.load().build_parser()
        added = commands.add_parser(command.name, parents=[own], add_help=False, help=command.summary)
        if command.name in fields:
            _add_recipe_fields(added, fields[command.name])
        for one in _with_inner(added):
            for action in one._actions:
                _say_what_fits(action, command.name, fields, values)
    return parser


def _with_inner(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A command's parser and those of its own sub-commands."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(one for action in inner for one in action.choices.values())]


def _add_recipe_fields(parser: argparse.ArgumentParser, sections: Mapping[str, Sequence[str]]) -> None:
    """Every field as an option, with its section only where the name alone is not enough."""
    names = [name for fields in sections.values() for name in fields]
    group = parser.add_argument_group("fields of the recipe")
    for section, fields in sections.items():
        for name in fields:
            option = f"--{name}" if names.count(name) == 1 else f"--{section}.{name}"
            unusual = section == "training" and name not in USUAL_TRAINING
            if option not in parser._option_string_actions and not unusual:
                group.add_argument(option, dest=name, help=f"recipe: {section}")


def _say_what_fits(
    action: argparse.Action, command: str, recipes: Mapping[str, Mapping], values: Mapping[str, Iterable[str]]
) -> None:
    """Choices and file names for an option that does not say itself what it takes."""
    import shtab

    if action.nargs == 0 or isinstance(action, argparse._SubParsersAction):
        return
    if action.choices is None:
        # The preference stage has a field of this name with other values.
        own = f"{command} {action.dest}"
        fitting = values.get(own, values.get(action.dest))
        if action.dest == "config" and command in ("demo", *recipes):
            fitting = recipes_of(recipes["sft" if command == "demo" else command])
        action.choices = None if fitting is None else list(fitting)
    if action.choices is None and (action.metavar in PATHS or action.dest in PATHS):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def recipes_of(known: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the shipped recipes that a command can read: all their sections and fields are known to it."""
    import yaml

    found = []
    for path in sorted(Path(str(files("poise.training"))).glob("recipes/*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if all(name in known and set(fields or ()) <= set(known[name]) for name, fields in content.items()):
            found.append(path.stem)
    return found
