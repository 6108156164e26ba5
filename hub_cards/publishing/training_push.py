"""Pushes while training: each checkpoint as a repository that loads, from a snapshot that training cannot change.

The Trainer's own push uploads the run's folder in the background while the next save overwrites it, with whatever lies
in it, and leaves out a save that comes while an upload is under way, the last one too. Here every upload has files of
its own (hard links), goes through the same search for secrets and the same comparison as `poise publish`, and the last
save is always pushed.
"""

import logging
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy

from ...training.atomic_folders import seal
from ...training.run_files import PREFERENCE_RECIPE_FILE, RECIPE_FILE, base_of
from ..card.data import CardData
from ..card.model_card import build_card
from ..card.public_recipe import public_recipe
from .adapter_folder import name_base_model, write_code_and_configuration
from .upload import upload

LINKED = (".safetensors", ".bin", ".pt", ".pth", ".distcp")
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
RECIPE_FILES = (RECIPE_FILE, PREFERENCE_RECIPE_FILE)
NOT_PUSHED = (TRAINING_ARGS_NAME, RECIPE_FILE)
CHECKPOINT_CARD = """---
{{ card_data }}
---
# {{ name }}

A checkpoint that a run of Poise wrote while training, {{ step }}, with optimizer and state: download it into a folder
named {{ step }} and go on with `--resume`.
"""
RESUMABLE = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: None}

logger = logging.getLogger(__name__)


class PushCallback(TrainerCallback):
    """
    Pushes every save of a stage of training, if its arguments have `push_to_hub` ([`TrainingPush`]).

    Without card data, as here, what is pushed is the checkpoint; [`CardCollector`] makes it a repository that loads.
    """

    card_data: CardData | None = None
    push: "TrainingPush | None" = None

    def on_init_end(self, args, state, control, **kwargs):
        if args.push_to_hub and args.process_index == 0:
            self.push = TrainingPush(args)
        args.push_to_hub, args.hub_token = False, None  # see `TrainingPush`

    def on_save(self, args, state, control, model=None, processing_class=None, **kwargs):
        if self.push is not None:
            self.push.save(state.global_step, model, processing_class, self.card_data)

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if self.push is not None:
            best = state.best_model_checkpoint
            self.push.finish(best, state.global_step, model, processing_class, self.card_data)


class TrainingPush:
    """
    Takes over from the Trainer what `push_to_hub`, `hub_strategy`, `hub_always_push`, `hub_revision` and `hub_token`
    say; the arguments lose `push_to_hub` and the token, so that neither is acted on twice nor written anywhere.

    Args:
        args (`TrainingArguments`): with `push_to_hub`.
    """

    def __init__(self, args: TrainingArguments):
        self.token, args.hub_token = args.hub_token, None
        args.push_to_hub = False
        self.args = args
        self.worker = ThreadPoolExecutor(1)
        self.waiting: tuple[Future, tempfile.TemporaryDirectory] | None = None
        self.pushes: list[Future] = []
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        created = HfApi().create_repo(name, token=self.token, private=args.hub_private_repo, exist_ok=True)
        self.repository = created.repo_id

    def save(self, step: int, model: torch.nn.Module, processor: Any, card_data: CardData | None) -> None:
        """Queue a checkpoint; one that waits and has not begun gives way, unless `hub_always_push`."""
        if self.args.hub_strategy != HubStrategy.END:
            self._queue(Path(self.args.output_dir) / f"checkpoint-{step}", step, model, processor, card_data)

    def finish(
        self, best: str | None, step: int, model: torch.nn.Module, processor: Any, card_data: CardData | None
    ) -> None:
        """At the end of training: with `hub_strategy: end` push what it ended with; wait for what is under way."""
        if self.args.hub_strategy == HubStrategy.END:
            ended = best if best and self.args.load_best_model_at_end else f"checkpoint-{step}"
            self._queue(Path(self.args.output_dir) / Path(ended).name, step, model, processor, card_data)
        if any(not push.done() for push in self.pushes):
            logger.info("waiting for the push to %s", self.repository)
        self.worker.shutdown(wait=True)
        if self.pushes and not self.pushes[-1].cancelled() and not self.pushes[-1].result():
            logger.warning("%s lacks the last save: poise publish %s", self.repository, self.args.output_dir)

    def _queue(self, checkpoint: Path, step: int, *content: Any) -> None:
        if content[-1] is None and not checkpoint.is_dir():  # saving was off
            logger.warning("%s was not written, so nothing is pushed to %s", checkpoint.name, self.repository)
            return
        if self.waiting is not None and not self.args.hub_always_push and self.waiting[0].cancel():
            self.waiting[1].cleanup()
        scratch = tempfile.TemporaryDirectory(dir=self.args.output_dir, prefix="_push-")
        self._snapshot(checkpoint, Path(scratch.name), *content)
        push = self.worker.submit(self._upload, scratch, f"Training in progress, step {step}")
        self.waiting = (push, scratch)
        self.pushes.append(push)

    def _snapshot(
        self, checkpoint: Path, folder: Path, model: torch.nn.Module, processor: Any, card_data: CardData | None
    ) -> None:
        if card_data is None:
            _link_checkpoint(checkpoint, folder, self.repository)
            return
        base = base_of(model)
        if not checkpoint.is_dir():  # saving was off
            model.save_pretrained(checkpoint := folder)
        for pattern in MODEL_FILES:
            for path in checkpoint.glob(pattern):
                if checkpoint != folder:
                    _link(path, folder / path.name)
        write_code_and_configuration(base, folder)
        if processor is not None:
            processor.save_pretrained(folder)
        if isinstance(model, PeftModel):
            name_base_model(folder, self.repository)
        variant = "adapter" if isinstance(model, PeftModel) else "finetune"
        card = build_card(base.config, card_data, self.repository, variant)
        (folder / "README.md").write_text(str(card), encoding="utf-8")
        _write_recipe(folder, card_data)
        if self.args.hub_strategy in RESUMABLE and checkpoint != folder:
            resumable = folder / (RESUMABLE[self.args.hub_strategy] or checkpoint.name)
            shutil.copytree(checkpoint, resumable, copy_function=_link, ignore=shutil.ignore_patterns(*NOT_PUSHED))
            _write_recipe(resumable, card_data)
            seal(resumable)

    def _upload(self, scratch: tempfile.TemporaryDirectory, title: str) -> bool:
        try:
            upload(
                Path(scratch.name), self.repository, message=title, token=self.token, revision=self.args.hub_revision
            )
            return True
        except (OSError, ValueError) as error:  # training goes on, and so does the next push
            logger.warning("not pushed: %s", error)
            return False
        finally:
            scratch.cleanup()


def _link_checkpoint(checkpoint: Path, folder: Path, repository: str) -> None:
    """A checkpoint from which its stage can go on, without what is of this machine, and three lines on it."""
    shutil.copytree(checkpoint, folder, copy_function=_link, dirs_exist_ok=True)
    for path in [path for name in RECIPE_FILES if (path := folder / name).is_file()]:
        recipe = public_recipe(yaml.safe_load(path.read_text(encoding="utf-8")))
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    card = ModelCard.from_template(ModelCardData(tags=["poise", "checkpoint"]), template_str=CHECKPOINT_CARD,
                                   name=repository.split("/")[-1], step=checkpoint.name)  # fmt: skip
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    seal(folder)


def _write_recipe(folder: Path, card_data: CardData) -> None:
    if card_data.recipe is not None:
        (folder / RECIPE_FILE).write_text(yaml.safe_dump(card_data.recipe, sort_keys=False), encoding="utf-8")


def _link(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """A hard link of weights, so that rotation may delete the checkpoint meanwhile; a copy of what is changed here."""
    if Path(source).suffix in LINKED:
        try:
            os.link(source, target)
            return
        except OSError:  # a file system without hard links
            pass
    shutil.copyfile(source, target)
