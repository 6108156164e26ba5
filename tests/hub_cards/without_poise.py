"""What somebody sees who has transformers and not Poise: `without_poise` runs this file in a process of its own.

There the first argument names a JSON file with `repository` (Hub id or folder), a `sample`, and optionally `snippet`
(code of a card). The second receives the logits as a safetensors file, the third what the snippet printed.
"""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

CLEAN_PROCESS = Path(__file__).resolve().parent.parent.parent / "hub_cards" / "publishing" / "clean_process.py"


def main(task_file, logits_file, printed_file):
    spec = importlib.util.spec_from_file_location("clean_process", CLEAN_PROCESS)
    clean_process = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clean_process)
    sys.meta_path.insert(0, clean_process.PoiseIsNotInstalled)
    task = json.loads(Path(task_file).read_text(encoding="utf-8"))

    import torch
    from safetensors.torch import save_file

    model, processor = clean_process.load(task["repository"])
    sample = task["sample"]
    content = [
        {"type": "image", "image": sample["image"], "tags": sample["tags"]},
        {"type": "text", "text": sample["question"]},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    save_file({"logits": logits.contiguous()}, logits_file)
    printed = io.StringIO()
    if task.get("snippet"):
        with contextlib.redirect_stdout(printed):
            exec(compile(task["snippet"], "README.md", "exec"), {})
    Path(printed_file).write_text(printed.getvalue(), encoding="utf-8")


def without_poise(hub, tmp_path, repository, sample, token=None, snippet=None):
    """A process without Poise loads from the Hub: (logits, printed) or its stderr if it fails."""
    from safetensors.torch import load_file

    task, logits, printed = (tmp_path / name for name in ("task.json", "logits.safetensors", "printed.txt"))
    task.write_text(json.dumps({"repository": repository, "sample": sample, "snippet": snippet}))
    environment = {**hub.environment(tmp_path / "cache", token), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-P", __file__, task, logits, printed],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode != 0:
        return done.stderr
    return load_file(logits)["logits"], printed.read_text().strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
