"""The start of a run: its arguments are checked, for transformers takes a word for a number without a look; its folder
is locked, by a file that names its owner; a former run there is not lost by mistake; a sound checkpoint is chosen.

    with opened_run(args, lambda path: check_resumable(path, recipe), resume, overwrite) as run:
        ...
        result = run.train(trainer)

What a former run left goes when training starts, not before: bad data or a bad recipe must not cost it.
"""

import contextlib
import dataclasses
import datetime
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from filelock import SoftFileLock, Timeout
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from .atomic_folders import clear_aside, damage_of, remove
from .recipe_loading import check_kind, unknown_name
from .redaction import take_hub_token
from .run_files import FINISHED, checkpoints

logger = logging.getLogger(__name__)

DAMAGED = "damaged-"
LOCK_FILE = "run.lock"
TRACKERS = ("trackio", "tensorboard")  # with an extra of their own
WAIT_SECONDS = 1.0  # time enough to take a dead owner's lock over
_LEAST = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
          "dataloader_num_workers": 0, "save_total_limit": 1, "seed": 0, "data_seed": 0}  # fmt: skip
_MOST = {"seed": 2**32 - 1, "data_seed": 2**32 - 1}


@dataclasses.dataclass
class Run:
    """
    A run whose folder is locked.

    Attributes:
        checkpoint (`Path`, *optional*): where it goes on from.
        given_up (`list[Path]`): checkpoints and models of a former run, to be deleted.
        damaged (`list[Path]`): checkpoints that are passed over; they get another name, so that nobody takes them.
    """

    checkpoint: Path | None = None
    given_up: list[Path] = dataclasses.field(default_factory=list)
    damaged: list[Path] = dataclasses.field(default_factory=list)

    def train(self, trainer: Any) -> Any:
        """`trainer.train`, from the checkpoint if there is one; returns what it returns."""
        if trainer.args.process_index == 0:
            for folder in self.given_up:
                remove(folder)
            for folder in self.damaged:
                folder.rename(_free_name(folder.with_name(DAMAGED + folder.name)))
            if self.given_up:
                clear_aside(Path(trainer.args.output_dir))
        trainer.accelerator.wait_for_everyone()
        return trainer.train(resume_from_checkpoint=None if self.checkpoint is None else os.fspath(self.checkpoint))

    def train_and_score(
        self, trainer: Any, untrained: contextlib.AbstractContextManager | None = None
    ) -> dict[str, Any]:
        """
        Trains, and asks the trainer's `score` before (unless the run goes on, and within `untrained`) and after.

        Returns:
            `steps`, `train_loss`, and the scores `before` and `after`.
        """
        metrics: dict[str, Any] = {}
        if trainer.score is not None and self.checkpoint is None:
            with untrained or contextlib.nullcontext():
                metrics["before"] = trainer.evaluate()
        result = self.train(trainer)
        metrics.update(steps=result.global_step, train_loss=result.training_loss)
        if trainer.score is not None:
            metrics["after"] = trainer.evaluate()
        trainer.accelerator.wait_for_everyone()
        return metrics


def _free_name(path: Path) -> Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.partition('.')[0]}.{number}")
    return path


@contextlib.contextmanager
def opened_run(
    args: Any, check: Callable[[str], Path], resume: str | None = None, overwrite: bool = False
) -> Iterator[Run]:
    """
    Around a whole run, from before its data are read until its model is written.

    Args:
        args (`TrainingArguments`): its `output_dir` and its processes; the first one holds the lock for all.
        check (`Callable`): the checkpoint to go on from, given a folder by name; raises if it does not fit.
        resume (`str`, *optional*): a checkpoint or a run's folder; `""` is the run's own.
        overwrite (`bool`, *optional*, defaults to `False`): give up what a former run left in the folder.

    Raises:
        ValueError: another process is at work in the folder; it holds a run that would be lost; no sound checkpoint.
    """
    with contextlib.ExitStack() as held:

        def start() -> Run:
            folder = Path(args.output_dir)
            held.enter_context(output_lock(folder))
            clear_aside(folder)
            return _new(folder, overwrite) if resume is None else _continued(folder, check, resume, overwrite)

        yield from_first_process(args, start)


def _new(folder: Path, overwrite: bool) -> Run:
    finished, saved = _left(folder)
    if not (finished or saved) or overwrite:
        return Run(given_up=[*finished, *saved])
    if finished:
        raise ValueError(
            f"training.output_dir={str(folder)!r} holds a finished run ({finished[0].name}): name another folder with "
            "--output_dir, or give it up with --overwrite"
        )
    raise ValueError(
        f"training.output_dir={str(folder)!r} holds a run that was not finished ({saved[-1].name}): go on with "
        "--resume, name another folder with --output_dir, or give it up with --overwrite"
    )


def _continued(folder: Path, check: Callable[[str], Path], resume: str, overwrite: bool) -> Run:
    chosen = check(resume or os.fspath(folder))
    finished, saved = _left(folder)
    own = chosen.resolve().parent == folder.resolve()
    if own:
        step = _step(chosen)
        later = [path for path in saved if _step(path) > step]
        damaged = [path for path in later if damage_of(path) is not None]
        lost = [*finished, *(path for path in later if path not in damaged)]
    else:
        damaged, lost = [], [*finished, *saved]
    if lost and not overwrite:
        what = ", ".join(path.name for path in lost[:3])
        state = "holds another run" if not own else "is a finished run" if finished else "has newer checkpoints"
        raise ValueError(
            f"training.output_dir={str(folder)!r} {state} ({what}): name another folder with --output_dir to go on "
            f"from {chosen.name} there, or give that up with --overwrite"
        )
    return Run(chosen, lost, damaged)


def _left(folder: Path) -> tuple[list[Path], list[Path]]:
    return [folder / name for name in FINISHED if (folder / name).is_dir()], checkpoints(folder)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.resolve().name.rpartition("-")[2])


def check_output_named(resume: str | None, output_dir: Any, overrides: Mapping[str, Any]) -> None:
    """
    Going on from a folder elsewhere, into which the run is to be written must have been said on the command line.

    Raises:
        ValueError: it was not.
    """
    if not resume or {"output_dir", "training.output_dir"} & {*overrides}:
        return
    folder, output = Path(resume).resolve(), Path(output_dir).resolve()
    if folder.is_dir() and output not in (folder, folder.parent):
        theirs = Path(resume).parent if (folder / "trainer_state.json").is_file() else Path(resume)
        raise ValueError(
            f"resume={resume!r} is not of the run in training.output_dir={str(output_dir)!r}: add --output_dir "
            f"{theirs} to go on there, or --output_dir with a new folder to leave it as it is"
        )


def from_first_process(args: Any, work: Callable[[], Any]) -> Any:
    """What `work()` returns on the first process, on all of them; if it fails there, the others end without a word."""
    if args.world_size == 1:
        return work()
    outcome: list[Any] = [None]
    error: Exception | None = None
    if args.process_index == 0:
        try:
            outcome = [(work(),)]
        except Exception as raised:  # whatever it is, the others must hear of it, or they would wait for ever
            error = raised
    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[0] is None:
        raise SystemExit(1)
    return outcome[0][0]


@contextlib.contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """
    Around everything that a run does with its folder, which is made where there is none.

    The lock file appears by an exclusive creation, which also network disks know. One whose process is gone, on the
    same host, is taken over; of another host nobody can tell, so the message says which file to delete.

    Raises:
        ValueError: another process works in the folder; process, host and start of its run are named.
        OSError: the folder cannot be written.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    lock, left = SoftFileLock(path), _owner(path)
    try:
        lock.acquire(timeout=WAIT_SECONDS, poll_interval=0.1)
    except Timeout:
        owner = _owner(path) or "another process"
        raise ValueError(
            f"training.output_dir={str(folder)!r} is in use by {owner}: wait for it or name another folder; if that "
            f"run is over, delete {path}"
        ) from None
    if left is not None:
        logger.info("%s was left by %s, which is gone: taken over", path, left)
    try:
        yield
    finally:
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # a run that never began leaves no empty folder
                folder.rmdir()


def _owner(path: Path) -> str | None:
    """The owner as words: what the lock file holds is one line each of process and host."""
    try:
        process, host = path.read_text(encoding="utf-8").split("\n")[:2]
        since = datetime.datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    except (OSError, ValueError):
        return None
    return f"process {process} on {host} since {since}"


def made_arguments(arguments_class: type, settings: Mapping[str, Any], **more: Any) -> Any:
    """
    `TrainingArguments` (or a class made of them) of a recipe's section `training`; `more` are fields of that class.

    Raises:
        ValueError: a value of the wrong kind, an unknown choice, a folder that cannot be written, or half precision
            where the machine has none.
    """
    settings = take_hub_token(settings)
    _check_training(settings)
    if settings.get("bf16") and not settings.get("use_cpu") and not torch.accelerator.is_available():
        raise ValueError(
            "training.bf16=true, and there is no GPU here: add --training.use_cpu true to train on the CPU all the "
            "same, or --training.bf16 false for float32"
        )
    try:
        args = arguments_class(**settings, **more)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {' '.join(str(error).split())}") from error
    except ImportError as error:  # of deepspeed and the like, whose absence is told in words of several lines
        missing = re.search(r"'?([\w-]+)[^\s']*'? distribution", str(error))
        needed = f"the package {missing[1]}: pip install {missing[1]}" if missing else " ".join(str(error).split())
        raise ValueError(f"training: these settings need {needed}") from error
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("training.fp16=true needs a GPU: on a CPU add --training.fp16 false")
    return args


def _check_training(settings: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for the first value that no run could use; what is left out is fine."""
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for name, value in settings.items():
        if name not in fields:
            continue
        check_kind(f"training.{name}", value, fields[name].type)
        choices = fields[name].metadata.get("choices")
        if choices and value not in choices:
            raise unknown_name(f"training.{name}: ", value, choices)
        if name in _LEAST and value is not None and value < _LEAST[name]:
            raise ValueError(f"training.{name}={value!r} must be at least {_LEAST[name]}")
        if name in _MOST and value is not None and value > _MOST[name]:
            raise ValueError(f"training.{name}={value!r} must be at most {_MOST[name]}")
    _check_trackers(settings.get("report_to"))
    if settings.get("output_dir") is not None:
        _check_folder(str(settings["output_dir"]))


def _check_trackers(wanted: Any) -> None:
    names = [wanted] if isinstance(wanted, str) else list(wanted or [])
    known = [*INTEGRATION_TO_CALLBACK, "none", "all"]
    for name in names:
        if name not in known:
            raise unknown_name("training.report_to: ", name, known)
        if name not in ("none", "all") and name not in get_available_reporting_integrations():
            package = f"'poise[{name}]'" if name in TRACKERS else name
            raise ImportError(f"training.report_to={name!r} needs {name}: pip install {package}, or set report_to=none")


def _check_folder(folder: str) -> None:
    path = Path(folder).absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"training.output_dir={folder!r} is a file: name a folder")
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "may not be written" if nearest.is_dir() else "is a file"
        raise ValueError(f"training.output_dir={folder!r} cannot be made, {nearest} {what}: name another folder")
