"""Run by path in a process of its own: what somebody sees who has transformers and not Poise.

The first argument names a JSON file with `repository` (Hub id or folder), a `sample`, and optionally `snippet` (code of
a card). The second receives the logits as a safetensors file, the third what the snippet printed.
"""

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

CLEAN_PROCESS = Path(__file__).resolve().parent.parent.parent / "hub_cards" / "clean_process.py"


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


if __name__ == "__main__":
    main(*sys.argv[1:])
