"""The other half of the self-check: loads a published folder where Poise cannot be imported, and answers samples.

It is run by its path in a process of its own and imports nothing of Poise; `self_check` starts it. The first argument
names a JSON file with `folder`, `samples` and `max_new_tokens`, the second one receives the answers as a JSON list.
"""

import json
import sys


class PoiseIsNotInstalled:
    """An import finder that knows only one thing: there is no package `poise`, whatever is installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "poise":
            raise ModuleNotFoundError(
                f"No module named {name!r} (published code must not import the package it came from)", name=name
            )


def load(folder):
    """Model and processor of a folder, as somebody who has only transformers loads them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    return model.eval(), processor


def answer(model, processor, sample, max_new_tokens):
    """The greedy answer to one sample `{"image": path, "question": str, "tags": [[name, score]]}`."""
    content = [
        {"type": "image", "image": sample["image"], "tags": sample.get("tags") or []},
        {"type": "text", "text": sample["question"]},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # (1, T)
    if not model.config.is_encoder_decoder:  # a decoder-only model repeats the prompt in front of its answer
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens[0], skip_special_tokens=True).strip()


def main(task_file, answers_file):
    sys.meta_path.insert(0, PoiseIsNotInstalled)
    with open(task_file, encoding="utf-8") as file:
        task = json.load(file)
    model, processor = load(task["folder"])
    answers = [answer(model, processor, sample, task["max_new_tokens"]) for sample in task["samples"]]
    with open(answers_file, "w", encoding="utf-8") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
