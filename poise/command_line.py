"""The `poise` command: one table of commands, each in a module that is imported only when the command runs.

Exit codes: 0 done; 1 it failed (bad input, a file that is not there, an interrupted run); 2 the command line itself is
wrong (no such command, option or argument).

Bad input is reported by Poise as `ValueError` and by the system as `OSError`; a missing optional package is an
`ImportError`. These three, and want of memory, end in one line on stderr. Every other exception is a mistake in the
program (as is a module of Poise itself that cannot be imported), so its traceback is shown. `--debug` shows the
traceback of all.
"""

import argparse
import contextlib
import difflib
import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from poise import __version__
from poise.training.redaction import redact, redact_logs, take_token_of_words

USER_ERRORS = (ValueError, OSError, ImportError)
_ROOM, _ELSEWHERE = "; make room and start again", "; name a place that can be written to, or change its permissions"
REMEDIES = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: "; raise the limit on file sizes (ulimit -f)",
            errno.EROFS: _ELSEWHERE, errno.EACCES: _ELSEWHERE, errno.EPERM: _ELSEWHERE,
            errno.ENOENT: "; check the path", errno.EISDIR: "; name a file", errno.ENOTDIR: "; name a folder",
            errno.EEXIST: "; name a folder"}  # fmt: skip
SMALLER = "take smaller batches (--batch-size, in training --per_device_train_batch_size), or a smaller model"
# logger -> beginnings (after an optional name in backquotes) that are dropped. Each was looked into: the first two say
# that an optional faster kernel is not installed, the next is said by the run itself, in one line, with what it means;
# the last that a cast which we rely on takes place.
HARMLESS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back to",
    "transformers.trainer_utils": "The following arguments do not match the ones in the `trainer_state.json`",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


@dataclass(frozen=True)
class Command:
    """One command. What `load()` gives has `main(argv: list[str]) -> int`, which parses its own options and answers
    `--help`, and `build_parser()`.

    name (`str`): what is typed after `poise`.
    summary (`str`): one line for `poise --help`.
    example (`str`): a command line that works.
    where (`str`, *optional*): `main` is there: a module, or `module:name` of something in it; by default the file of
        the command's name in `poise/commands/`.
    one_thread (`bool`, *optional*, defaults to `False`): its models are so small that a second thread of torch costs
        more than it brings; unless OMP_NUM_THREADS says something else, it runs on one.
    """

    name: str
    summary: str
    example: str
    where: str = ""
    one_thread: bool = False

    @property
    def module(self) -> str:
        return self.where or f"poise.commands.{self.name.replace('-', '_')}"

    def load(self) -> Any:
        """Imports the command."""
        module, _, name = self.module.partition(":")
        found = importlib.import_module(module)
        return getattr(found, name) if name else found


COMMANDS = {
    command.name: command
    for command in (
        Command("demo", "train two tiny models on drawn scenes, compare them, publish one (about 7 minutes)",
            "poise demo", one_thread=True),
        Command("sft", "fine-tune a model on task records",
            "poise sft --config demo --router_type reliability", where="poise.commands.train:SFT"),
        Command("rank-encoders", "compare frozen vision and text encoders layer by layer: which pair is worth aligning",
            "poise rank-encoders --text tiny:tag_encoder tiny:causal_lm --output outputs/rank-encoders",
            one_thread=True),
        Command("curate", "keep, of a pool of captioned images, the same number of records for every concept",
            "poise curate --data scenes:train --concepts scenes --text tiny:tag_encoder --keep 20", one_thread=True),
        Command("align", "align frozen vision and text encoders by small projectors; the result is a tagger",
            "poise align --config align", where="poise.commands.train:ALIGN"),
        Command("tag-encoder", "teach a sentence encoder what tags with scores mean, by triplets with captions",
            "poise tag-encoder --config tag_encoder_scenes --score_encoding attention_bias",
            where="poise.commands.train:TAG_ENCODER"),
        Command("preference", "prefer what the image shows to what the prior or an invented tag says (DPO)",
            "poise preference --config preference_scenes --model outputs/demo/reliability/model",
            where="poise.commands.train:PREFERENCE"),
        Command("merge", "merge a run's adapters into its language model",
            "poise merge outputs/sft outputs/merged"),
        Command("data", "convert published data sets into task records, and show records as a model sees them",
            "poise data show scenes:train --config demo --output data.png"),
        Command("tag", "tag images with CLIP, SigLIP, a detector, Florence-2 or your own tagger",
            "poise tag train.jsonl --tagger openai/clip-vit-base-patch32 --vocabulary coco --output tagged.jsonl"),
        Command("evaluate", "let a model answer a data set and score the answers",
            "poise evaluate outputs/demo/reliability/model --data scenes:prior_broken --task vqa"),
        Command("interpret", "where a model keeps what it sees: logit lens, token ablation, attention knockout",
            "poise interpret outputs/demo/reliability/model --samples 200 --tags drop"),
        Command("robustness", "how the answers hold up when image, tags or question are damaged",
            "poise robustness outputs/demo/reliability/model --samples 300"),
        Command("diagnose", "which modality the answers follow: attention, Shapley shares, conflicts, router weights",
            "poise diagnose outputs/demo/reliability/model --samples 300"),
        Command("fit-router", "how far an image can be trusted, for any vision-language model, without training it",
            "poise fit-router outputs/demo/published --data scenes:train,size=500 --output outputs/trust"),
        Command("study", "train and measure every router, prompt and language model over seeds (hours on two cores)",
            "poise study --output outputs/study", one_thread=True),
        Command("ask", "answer a question about an image",
            'poise ask outputs/demo/reliability/model photo.jpg "what color is the star ?" --tags "yellow star:0.9"'),
        Command("look", "answer a question about an image, with a page on what the answer rests on; for any VLM",
            'poise look outputs/demo/published photo.jpg "what color is the star ?"'),
        Command("publish", "publish a run on the Hub, with its model card, after a check that it loads without Poise",
            "poise publish outputs/demo/reliability --repo user/name --dry-run"),
        Command("card", "write a model's card anew, with what has been measured since",
            "poise card outputs/demo/reliability --evaluation scores.json"),
        Command("serve", "serve a model over HTTP, for OpenAI-style clients",
            "poise serve outputs/demo/reliability/model --port 8000"),
        Command("space", "write a web page on which anybody can ask a published model (a Gradio Space)",
            "poise space outputs/space --model user/name"),
        Command("backbones", "rebuild or check the tiny backbones of the demo",
            "poise backbones --check", where="poise.training.tiny_backbones.build", one_thread=True),
        Command("completion", "print a script that completes commands, options and choices in a shell",
            "source <(poise completion bash)"),
    )
}  # fmt: skip


def global_options() -> argparse.ArgumentParser:
    """The options that stand before the command."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--version", action="version", version=f"poise {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def build_parser() -> argparse.ArgumentParser:
    """Parser of what stands before the command; everything after it goes to the command's own parser."""
    width = max(map(len, COMMANDS))
    lines = [
        "commands:",
        *(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values()),
        "",
        "examples:",
        *(f"  {command.example}" for command in COMMANDS.values()),
        "",
        "`poise COMMAND --help` tells the options of a command.",
    ]
    parser = argparse.ArgumentParser(
        prog="poise",
        parents=[global_options()],
        usage="poise [--version] [--debug] COMMAND ...",
        description="Vision-language models out of frozen unimodal backbones, with the two modalities kept in balance.",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", type=_known, metavar="COMMAND", help="what to do, see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _known(name: str) -> str:
    if name in COMMANDS:
        return name
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`poise --help` lists them"
    raise argparse.ArgumentTypeError(f"{name!r} is not known: {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; argparse leaves by `SystemExit` after `--help` or a wrong option.

    argv (`Sequence[str]`, *optional*, defaults to `sys.argv[1:]`): the words after `poise`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not words:
        parser.print_help()
        return 2
    parsed = parser.parse_args(words)
    # --debug is also understood behind the command, where one adds it to the line that has just failed.
    arguments = [word for word in parsed.arguments if word != "--debug"]
    return run(COMMANDS[parsed.command], arguments, debug=parsed.debug or "--debug" in parsed.arguments)


def run(command: Command, arguments: list[str], debug: bool) -> int:
    """Imports the command's module, runs it, and turns bad input into one line on stderr."""
    quiet_libraries()
    redact_logs()
    arguments = take_token_of_words(arguments)
    if command.one_thread:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported, which is below
    try:
        with sigterm_interrupts():
            return command.load().main(arguments)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stopped:
        if debug:
            raise
        print(f"poise {command.name}: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return 1
    except USER_ERRORS as error:
        ours = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "poise"
        if debug or ours:
            raise
        print(f"poise {command.name}: {one_line(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if debug or not is_out_of_memory(error):
            raise
        print(f"poise {command.name}: out of memory ({one_line(error)[:200]}); {SMALLER}", file=sys.stderr)
        return 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy, or torch on a CPU or a GPU found no room in memory."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch is not imported here
    return named or "can't allocate memory" in str(error)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within this context SIGTERM is a Ctrl-C that cannot be echoed: what is half written is cleaned up, and said."""

    process = os.getpid()

    def stop(number, frame):
        if os.getpid() == process:
            raise KeyboardInterrupt("stopped by SIGTERM")
        signal.signal(number, signal.SIG_DFL)  # a worker that was forked from this process ends as it would have
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def one_line(error: BaseException) -> str:
    """What an exception says, in one line without secrets; of a file error `name: reason`, not `[Errno 2] ...`."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return redact(f"{error.filename}: {error.strerror}{REMEDIES.get(error.errno or 0, '')}")
    if str(error).startswith("Caught ") and "Original Traceback" in str(error):  # as torch's data loader passes it on
        return redact(str(error).splitlines()[-1].partition(": ")[2])
    return redact(" ".join(str(error).split())) or type(error).__name__


class HarmlessMessage(logging.Filter):
    """Drops the records whose message holds `text`, lets every other record of the same logger through."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()


def quiet_libraries() -> None:
    """Filters the known harmless messages, by logger name: no library is imported for it. Calling twice is fine."""
    for name, text in HARMLESS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, HarmlessMessage) for known in logger.filters):
            logger.addFilter(HarmlessMessage(text))
