"""What the trainers of all stages share: put `StageTraining` before a transformers Trainer.

    class PoiseTrainer(StageTraining, Trainer): ...
    class PreferenceTrainer(StageTraining, DPOTrainer): ...

Parameter groups by name, each with its rate, decay and schedule; scores in every evaluation; what lies beside weights.
And nothing is lost: a checkpoint is complete or invisible; a full disk leaves the former one and says how much is
missing; Ctrl-C (and SIGTERM, which clusters send before they take a machine away) saves after the current step and says
how to go on; rotation keeps the best and the newest; the first step checks that the processes run as launched.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from .atomic_folders import ASIDE, clear_aside, move_into_place, remove, room_for, seal, size_of
from .first_step_checks import check_launch
from .parameter_groups import optimizer_groups, own_schedules, scheduler_by_group
from .run_files import (
    RECIPE_FILE,
    SETTINGS_FILE,
    complete_checkpoints,
    run_settings,
    tell_of_other_settings,
    write_versions,
)

logger = logging.getLogger(__name__)

SHOWN = ("loss", "grad_norm", "learning_rate", "epoch", "train_loss", "train_runtime", "eval_loss", "padding",
         "rewards/accuracies", "rewards/margins")  # fmt: skip
NOT_SHOWN = ("_low", "_high", "_runtime", "_per_second", "_samples", "_count")
SCORES_SHOWN = 4
PATIENCE = 1.0  # seconds after Ctrl-C in which another one is ignored, as a repeat of the first


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside, and saved; the message says where and how to go on."""


class StageTraining:
    """
    Comes before a `Trainer` among the bases of a class; see the module's docstring.

    Attributes:
        learning_rates (`Mapping`, *optional*): by group of parameters a rate or [`GroupSettings`]; without them the
            Trainer's groups learn at `args.learning_rate`.
        score (`Callable`, *optional*): `(model) -> dict[str, float]`, called in every evaluation.
        evaluates_loss (`bool`): whether an evaluation computes a loss over `eval_dataset` before it scores.
        recipe ([`StageRecipe`], *optional*): written beside every checkpoint.
    """

    learning_rates: Mapping[str, Any] | None = None
    score: Callable[[Any], Mapping[str, float]] | None = None
    evaluates_loss = True
    recipe: Any = None

    state: Any
    args: Any
    control: Any
    model: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any
    callback_handler: Any
    is_deepspeed_enabled: bool
    train_dataset: Any
    _tr_loss: torch.Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int

    _settings: Mapping[str, Any] = MappingProxyType({})
    _aside: Path | None = None
    _launch_checked = False
    _written: str | None = None
    _rates: Mapping[str, float] = MappingProxyType({})

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for plain, short in ((ProgressCallback, ShortProgress), (PrinterCallback, ShortPrinter)):
            if self.pop_callback(plain) is not None:
                self.add_callback(short())

    def train(self, resume_from_checkpoint=None, **kwargs):
        self._settings = run_settings(self)
        if resume_from_checkpoint is not None and self.args.process_index == 0:
            tell_of_other_settings(Path(resume_from_checkpoint), self._settings)
        callbacks = [stop := StopOnSignal(), LossBefore(self, resume_from_checkpoint)]
        for callback in callbacks:
            self.add_callback(callback)
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            stop.forget()
            for callback in callbacks:
                self.remove_callback(callback)
        if stop.wanted:
            raise Interrupted(self._how_to_go_on())
        loss = self._mean_loss()
        return result._replace(training_loss=loss, metrics={**result.metrics, "train_loss": loss})

    def _mean_loss(self) -> float:
        """Over all steps since the first, those before a resumption included; the Trainer divides the rest's sum."""
        return self._total_loss_scalar / max(1, self.state.global_step)

    def log(self, logs, *args, **kwargs):
        if "train_loss" in logs:
            logs = {**logs, "train_loss": self._mean_loss()}
        if "learning_rate" in logs:
            logs = {**logs, **{f"learning_rate/{name}": float(rate) for name, rate in self._rates.items()}}
        super().log(logs, *args, **kwargs)

    def _get_learning_rate(self):
        # Called before the scheduler moves on: these are the rates of the step that is going to be logged.
        self._rates = {group["group"]: group["lr"] for group in self.optimizer.param_groups if "group" in group}
        return super()._get_learning_rate()

    def parameter_groups(self, model):
        """Groups for the optimizer, each with its rate."""
        return optimizer_groups(model, self.learning_rates or {}, self.args.weight_decay)

    def create_optimizer(self, model=None):
        if self.learning_rates is None:
            return super().create_optimizer(model)
        if self.optimizer is None:
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            settings.pop("lr", None)
            self.optimizer = optimizer_class(self.parameter_groups(model or self.model), **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None and own_schedules(self.learning_rates or {}):
            self.lr_scheduler = scheduler_by_group(
                optimizer or self.optimizer, self.learning_rates, self.args, num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def scored_model(self):
        """What `score` is called with."""
        return self.accelerator.unwrap_model(self.model)

    def _scores(self, prefix):
        """What `score` says, by names with the prefix; every process computes all of it."""
        scored = {} if self.score is None else self.score(self.scored_model())
        return {f"{prefix}_{name}": value for name, value in scored.items()}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        if self.evaluates_loss:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics = self._scores(metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        # Inside the loop, not after `evaluate`: so early stopping and trackers see one set of metrics.
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(self._scores(metric_key_prefix))
        return output

    def write_beside(self, folder: Path) -> None:
        """Writes what a checkpoint holds beside the weights."""
        write_versions(folder)
        if self.recipe is not None:
            self.recipe.save(folder / RECIPE_FILE)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.write_beside(Path(output_dir if output_dir is not None else self.args.output_dir))

    def _init_training_state(self, max_steps, *args, **kwargs):
        place = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # a resumed state brings the intervals of the former command
        return place

    def _load_optimizer_and_scheduler(self, checkpoint):
        """A checkpoint brings its own learning rates and decays; those asked for now replace them."""
        wanted = [(group.get("initial_lr"), group.get("weight_decay")) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        for group, (rate, decay) in zip(self.optimizer.param_groups, wanted, strict=True):
            if rate and group.get("initial_lr") and group["initial_lr"] != rate:
                group["lr"] *= rate / group["initial_lr"]
                group["initial_lr"] = rate
            if decay is not None:
                group["weight_decay"] = decay
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
            self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what is logged

    def _how_to_go_on(self) -> str:
        saved = complete_checkpoints(self.args.output_dir)
        if not saved:
            return "interrupted before the first step; nothing to save"
        return f"interrupted; saved {saved[-1]}. Go on with the same command and --resume"

    def training_step(self, model, *args, **kwargs):
        if not self._launch_checked:
            self._launch_checked = True
            check_launch(model, self.args)
        return super().training_step(model, *args, **kwargs)

    def _run_epoch(self, *args, **kwargs):
        # Resumed from its last step, a run that counts steps would make one more before it looks.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial):
        run = super()._get_output_dir(trial)
        return run if self._aside is None else os.fspath(self._aside)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._aside is not None:
            self._written = checkpoint_folder  # an upload in the background must not see the folder move
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial):
        run = Path(self._get_output_dir(trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        written = run / ASIDE / folder.name
        if self.args.should_save:
            clear_aside(run)
        self.accelerator.wait_for_everyone()
        with room_for(written, self._bytes_needed(run), self._what_is_left(run)):
            self._aside = run / ASIDE
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = os.fspath(folder)
            loss = self.accelerator.gather(self._tr_loss.detach()).mean().item()  # of the steps since the last log
            if self.args.should_save:
                self.state.save_to_json(os.fspath(written / TRAINER_STATE_NAME))
                write_versions(written)
                # A pickle of the arguments, names of this machine and all, which nothing reads: there is the recipe.
                (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)
                LossBefore.write(written, self._total_loss_scalar, loss, self._globalstep_last_logged)
                (written / SETTINGS_FILE).write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")
            self.accelerator.wait_for_everyone()
            self._publish(written, folder)
        if self.args.should_save:
            rotate(run, self.args.save_total_limit, self.state.best_global_step)
            clear_aside(run)
        self.accelerator.wait_for_everyone()
        if self._written is not None:
            self._written = None
            self._push_from_checkpoint(os.fspath(folder))

    def _publish(self, written: Path, folder: Path) -> None:
        """Seal and rename: by the first process, and by the first of each machine that does not see its disk."""
        if self.args.process_index == 0:
            seal(written)
            move_into_place(written, folder)
        self.accelerator.wait_for_everyone()
        if self.args.process_index != 0 and self.args.local_process_index == 0 and written.is_dir():
            seal(written)
            move_into_place(written, folder)

    def _bytes_needed(self, run: Path) -> int:
        """Size of the checkpoint to come: that of the last one, or what parameters and optimizer hold."""
        saved = complete_checkpoints(run)
        if saved:
            return size_of(saved[-1])
        tensors = [p for p in self.model.parameters() if p.requires_grad or not isinstance(self.model, PeftModel)]
        optimizer = self.optimizer
        for state in getattr(getattr(optimizer, "optimizer", optimizer), "state", {}).values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _what_is_left(self, run: Path) -> str:
        saved = complete_checkpoints(run)
        kept = f"{saved[-1].name} is untouched: make" if saved else "make"
        again = "go on with the same command and --resume" if saved else "start again"
        return f"{kept} room and {again}"


def shown(args: Any, logs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Of what is logged, what a terminal shows: losses, learning rates, and the metric that chooses the best checkpoint or
    else the first few scores. Trackers and `trainer_state.json` get all of it.
    """
    kept = [name for name in logs if name in SHOWN or name.startswith("learning_rate/")]
    if any("/" in name for name in kept if name.startswith("learning_rate")):
        kept = [name for name in kept if name != "learning_rate"]
    scores = [name for name in logs if name.startswith("eval_") and name not in kept and not name.endswith(NOT_SHOWN)]
    asked = "eval_" + str(args.metric_for_best_model or "loss").removeprefix("eval_")
    scores = [asked] if asked in scores else scores[:SCORES_SHOWN]
    return {name: value for name, value in logs.items() if name in kept or name in scores}


class ShortProgress(ProgressCallback):
    """The progress bar, with short logs."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=shown(args, logs or {}), **kwargs)


class ShortPrinter(PrinterCallback):
    """Printed logs, short ones."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=shown(args, logs or {}), **kwargs)


class LossBefore(TrainerCallback):
    """
    Gives a resumed trainer the losses of the steps before: their sum, of which `train_loss` is made, and what has not
    been logged yet.
    """

    FILE = "training_loss.json"

    def __init__(self, trainer: StageTraining, checkpoint: str | os.PathLike | None):
        self.trainer, self.path = trainer, None if checkpoint is None else Path(checkpoint) / self.FILE

    @classmethod
    def write(cls, folder: Path, total: float, unlogged: float, last_logged: int) -> None:
        content = {"logged": total, "since": unlogged, "last_logged_step": last_logged}
        (folder / cls.FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def on_train_begin(self, args, state, control, **kwargs):
        if self.path is not None and self.path.is_file():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            self.trainer._total_loss_scalar = before["logged"]
            self.trainer._tr_loss += before["since"]
            self.trainer._globalstep_last_logged = before["last_logged_step"]


def rotate(run: Path, limit: int | None, best_step: int | None) -> None:
    """Keep the newest checkpoint, the best one, and of the others the newest up to `limit` in all."""
    if not limit or limit < 0:
        return
    saved = complete_checkpoints(run)
    protected = {saved[-1].name, f"checkpoint-{best_step}"} if saved else set()
    others = [path for path in saved if path.name not in protected]
    room = max(0, limit - sum(path.name in protected for path in saved))
    for path in others[: len(others) - room]:
        remove(path)


class StopOnSignal(TrainerCallback):
    """After Ctrl-C or SIGTERM the current step is finished, a checkpoint saved and training stopped, everywhere."""

    def __init__(self):
        self.wanted = False
        self.process = os.getpid()
        self.former: dict[int, Callable | int | None] = {}
        self.asked_at = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.former[number] = signal.signal(number, self.ask)

    def ask(self, number, frame):
        # Workers that load data inherit this; they go on until the process that feeds on them is done.
        if os.getpid() != self.process:
            return
        echo = time.monotonic() - self.asked_at < PATIENCE
        if self.wanted and number == signal.SIGINT and not echo and not torch.distributed.is_initialized():
            self.forget()
            raise KeyboardInterrupt
        if not self.wanted:
            logger.warning("stopping after this step, with a checkpoint (Ctrl-C again: at once, without)")
        self.wanted, self.asked_at = True, time.monotonic()

    def forget(self):
        """Give the signals back."""
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former = {}

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            # One process that stops alone leaves the others waiting for it forever.
            wanted = torch.tensor(float(self.wanted), device=args.device)
            torch.distributed.all_reduce(wanted, op=torch.distributed.ReduceOp.MAX)
            self.wanted = bool(wanted)
        if self.wanted:
            control.should_save = control.should_training_stop = True
        return control
