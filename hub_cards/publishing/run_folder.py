"""What a run's folder offers for publishing: the finished model, a checkpoint with adapters, the card's data."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel

from ...processing import PoiseProcessor
from ...training.run_files import RECIPE_FILE, VERSIONS_FILE, check_sound, last_checkpoint
from ...training.sft.assembly import assemble
from ...training.sft.checkpoints import load_trained, trained_folder
from ...training.sft.recipe import load_recipe
from ..card.data import CARD_DATA_FILE, CardData, add_evaluation_file
from ..card.public_recipe import public_recipe
from ..card.training_data import datasets_of
from .card_collector import losses_of

STATE_FILE = "trainer_state.json"
CONDITIONS_FILE = "evaluation/conditions.json"
# What the commands that measure leave in the folder of a run, by the card's section: `poise evaluate` one folder for
# each data set, `poise demo` its conditions, `poise robustness` and `poise diagnose` numbers with an image of them.
MEASUREMENTS = {
    "evaluation": ("evaluation/*/metrics.json", CONDITIONS_FILE),
    "robustness": ("robustness/robustness.json",),
    "dominance": ("diagnosis/diagnosis.json",),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """
    Args:
        root: the run's folder. finished: its finished model, or `None`. checkpoint: the one to publish from, or `None`.
    """

    root: Path
    finished: Path | None
    checkpoint: Path | None

    @classmethod
    def find(cls, run: str | os.PathLike) -> "RunFolder":
        """
        A run's folder, its `model` folder, or one of its checkpoints.

        Raises:
            ValueError: it is none of these.
        """
        folder = Path(run)
        if not folder.is_dir():
            raise ValueError(f"RUN {str(run)!r} is no folder: name a run's folder, its model folder or a checkpoint")
        if is_adapter(folder):
            root = folder.parent if folder.name.startswith("checkpoint-") or folder.name == "model" else folder
            return cls(root, None, folder)
        if (folder / "config.json").is_file():
            root = folder.parent if folder.name == "model" else folder
            return cls(root, folder, best_checkpoint(root))
        finished = folder / "model"
        checkpoint = best_checkpoint(folder)
        if is_adapter(finished):
            return cls(folder, None, finished)
        if (finished / "config.json").is_file():
            return cls(folder, finished, checkpoint)
        if checkpoint is None:
            raise ValueError(
                f"RUN {str(run)!r} holds neither a finished model nor a checkpoint: name a folder that poise sft wrote"
            )
        return cls(folder, None, checkpoint)

    def load(self, adapter_only: bool = False, merge: bool = False) -> tuple[torch.nn.Module, PoiseProcessor]:
        """
        The model as it is going to be published: with its adapters (`adapter_only`), or whole.

        Args:
            merge: adapters that were trained on a quantized language model are merged into the one of full precision.

        Raises:
            ValueError: what is asked for cannot be made from this run; the message says what can.
        """
        if adapter_only:
            if self.checkpoint is None or not is_adapter(self.checkpoint):
                raise ValueError(
                    f"--adapter-only: {self.root} has no checkpoint with adapters: train with "
                    "training.save_strategy=steps and a lora section, or publish the full model"
                )
            return load_trained(self.checkpoint)
        if self.finished is not None:
            return load_trained(self.finished)
        assert self.checkpoint is not None
        if is_adapter(self.checkpoint) and self.quantization() != "none":
            if not merge:
                raise ValueError(
                    f"{self.checkpoint} holds adapters over a language model in {self.quantization()}: publish them "
                    "with --adapter-only, or use --merge to merge them into the language model of full precision"
                )
            return self._merged()
        return load_trained(self.checkpoint)

    def quantization(self) -> str:
        """How the language model was quantized in training."""
        return (self.recipe() or {}).get("model", {}).get("quantization", "none")

    def recipe(self) -> dict[str, Any] | None:
        """The resolved recipe, from the first place that has it."""
        for folder in (self.finished, self.checkpoint, self.root):
            if folder is not None and (folder / RECIPE_FILE).is_file():
                return yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        return None

    def card_data(self) -> CardData:
        """What was collected while training, or what can still be read from the run."""
        if (self.root / CARD_DATA_FILE).is_file():
            return CardData.load(self.root / CARD_DATA_FILE)
        recipe = self.recipe()
        card_data = CardData(
            recipe=public_recipe(recipe), datasets=datasets_of(recipe, present=False) if recipe else []
        )
        for folder in (self.finished, self.checkpoint):
            if folder is not None and (folder / VERSIONS_FILE).is_file():
                card_data.versions = json.loads((folder / VERSIONS_FILE).read_text(encoding="utf-8"))
                break
        if self.checkpoint is not None and (self.checkpoint / STATE_FILE).is_file():
            state = json.loads((self.checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            card_data.steps, card_data.epochs = state["global_step"], state["epoch"]
            card_data.losses = losses_of(state["log_history"], "loss")
            card_data.eval_losses = losses_of(state["log_history"], "eval_loss")
        return card_data

    def measurements(self) -> list[tuple[str, Path]]:
        """
        Files of what was measured on this model, each with the card's section that it belongs to.

        Left out is what was measured on another model: what is older than the weights, and everything where an earlier
        checkpoint is asked for, since the run's measurements are those of what it ended with.
        """
        found = [
            (section, path)
            for section, patterns in MEASUREMENTS.items()
            for pattern in patterns
            for path in sorted(self.root.glob(pattern))
        ]
        source = self.finished or self.checkpoint
        assert source is not None  # `find` sees to it
        if found and source != trained_folder(self.root):
            logger.warning("what was measured on %s is left out: this is %s", self.root, source)
            return []
        written = max((path.stat().st_mtime for path in source.glob("*.safetensors")), default=0.0)
        for _, path in found:
            if path.stat().st_mtime < written:
                logger.warning("%s is older than the weights: it is left out; measure again", path)
        return [(section, path) for section, path in found if path.stat().st_mtime >= written]

    def everything_for_the_card(
        self, evaluation: Sequence[str | os.PathLike] = ()
    ) -> tuple[CardData, dict[str, Any] | None, dict[str, Path]]:
        """
        Card data with the tables of `evaluation` files and of `measurements`; the recipe; images by section.

        Raises:
            OSError, ValueError: a file cannot be read, see [`add_evaluation_file`].
        """
        recipe, card_data, measured = self.recipe(), self.card_data(), self.measurements()
        router_type = ((recipe or {}).get("model") or {}).get("router_type")
        chosen = [Path(path) for path in evaluation]
        known = {path.resolve() for path in chosen}
        for path in [*chosen, *(path for _, path in measured if path.resolve() not in known)]:
            add_evaluation_file(card_data, path, router_type)
        card_data.drop_repetitions()
        images = {section: path.with_suffix(".png") for section, path in measured}
        return card_data, recipe, {section: path for section, path in images.items() if path.is_file()}

    def _merged(self) -> tuple[torch.nn.Module, PoiseProcessor]:
        assert self.checkpoint is not None
        check_sound(self.checkpoint)
        recipe = load_recipe(os.fspath(self.checkpoint / RECIPE_FILE), {"model.quantization": "none"})
        base, _ = assemble(recipe)
        model = PeftModel.from_pretrained(base, os.fspath(self.checkpoint))
        return model.eval(), PoiseProcessor.from_pretrained(self.checkpoint)


def is_adapter(folder: Path) -> bool:
    """Whether PEFT wrote this folder."""
    return (folder / "adapter_config.json").is_file()


def best_checkpoint(root: Path) -> Path | None:
    """The checkpoint that the run ended with: the best one if the recipe says so, else the newest."""
    newest = last_checkpoint(root)
    if newest is None:
        return None
    path = newest / RECIPE_FILE
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (recipe.get("training") or {}).get("load_best_model_at_end"):
        state = json.loads((newest / STATE_FILE).read_text(encoding="utf-8"))
        best = root / Path(state.get("best_model_checkpoint") or newest).name
        return best if best.is_dir() else newest
    return newest
