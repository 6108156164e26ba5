"""Several runs at the same time, one process each, one progress bar each.

Models this small gain nothing from a second thread, so two runs on two cores take the time of one.
"""

import logging
import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from tqdm.auto import tqdm


def _child(name: str, work: Callable[..., Any], arguments: tuple, messages: Any) -> None:
    # The parent's bars own the terminal.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        result = work(*arguments, lambda stage, done, total: messages.put((name, "progress", (stage, done, total))))
        messages.put((name, "result", result))
    except Exception as error:  # whatever it is, the parent must hear of it, or it would wait for ever
        messages.put((name, "error", (f"{type(error).__name__}: {error}", traceback.format_exc())))


def run_side_by_side(
    jobs: Mapping[str, tuple[Callable[..., Any], tuple]], at_once: int | None = None
) -> dict[str, Any]:
    """
    Run `work(*arguments, report)` of every job in a process of its own and return the results by name.

    Args:
        jobs: `{name: (work, arguments)}`; both must pickle; `work` calls `report(stage, done, total)` now and then.
        at_once (`int`, *optional*): how many run at the same time; by default one for each core.

    Raises:
        RuntimeError: a job failed; the others are ended. The message is the job's own, its traceback is logged.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    processes = {
        name: context.Process(target=_child, args=(name, work, arguments, messages), daemon=False)
        for name, (work, arguments) in jobs.items()
    }
    width = max(map(len, jobs))
    bars = {name: tqdm(total=1, desc=name.ljust(width), position=place) for place, name in enumerate(jobs)}
    results: dict[str, Any] = {}
    try:
        waiting = list(processes.values())
        while len(results) < len(jobs):
            while waiting and len(jobs) - len(waiting) - len(results) < (at_once or os.cpu_count() or 1):
                waiting.pop(0).start()
            name, kind, content = _next_message(messages, processes, results)
            if kind == "progress":
                _show(bars[name], name.ljust(width), *content)
            elif kind == "result":
                results[name] = content
            else:
                logging.getLogger(__name__).debug(content[1])
                raise RuntimeError(f"{name}: {content[0]}")
    finally:
        for bar in bars.values():
            bar.close()
        for process in processes.values():
            if process.pid is not None:
                process.terminate() if process.is_alive() and len(results) < len(jobs) else None
                process.join()
    return {name: results[name] for name in jobs}


def _next_message(messages: Any, processes: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[str, str, Any]:
    """The next message; a process that died without one (killed, out of memory) is an error, not an endless wait."""
    while True:
        try:
            return messages.get(timeout=1.0)
        except queue.Empty:
            for name, process in processes.items():
                if name not in results and process.exitcode is not None and messages.empty():
                    return name, "error", (f"the process ended with exit code {process.exitcode}", "")


def _show(bar: tqdm, name: str, stage: str, done: int, total: int) -> None:
    description = f"{name} {stage}"
    if bar.desc != f"{description}: " or bar.total != total:
        bar.reset(total=total)
        bar.set_description(description)
    bar.n = done
    bar.refresh()
