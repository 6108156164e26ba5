"""The configuration of a named checkpoint, or one line that says which key named it in vain."""

import re
from typing import Any

from transformers import AutoConfig

SUGGESTED = {
    "vision": "a vision tower such as google/siglip2-base-patch16-224",
    "text": "a language model such as HuggingFaceTB/SmolLM2-135M-Instruct",
    "tag_encoder": "a BERT-like encoder such as sentence-transformers/all-MiniLM-L6-v2",
}


def read_config(key: str, source: str) -> Any:
    """
    The configuration of a checkpoint.

    Raises:
        ValueError: it cannot be read; in one line, with the key that named it.
    """
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        part = key.rsplit(".", 1)[-1]
        reason = re.split(r"(?<=[.!?])\s", " ".join(str(error).split()))[0]
        raise ValueError(
            f"{key}={source!r} cannot be read ({reason}): give a folder with a config.json, or the Hub's name of "
            f"{SUGGESTED.get(part, 'a model')}, and check the connection"
        ) from error
