"""No token reaches a published file: what is about to be uploaded is searched for them."""

import os
import re
from pathlib import Path

from huggingface_hub import get_token

# Hub tokens, and the beginnings of other well-known kinds.
PATTERNS = (rb"hf_[A-Za-z0-9]{30,}", rb"sk-[A-Za-z0-9_-]{20,}", rb"ghp_[A-Za-z0-9]{36}", rb"AKIA[0-9A-Z]{16}")
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
BLOCK = 1 << 24
OVERLAP = 512  # longer than any token: one that lies across two blocks is seen in the second


def refuse_secrets(folder: Path, *tokens: str | None) -> None:
    """
    Search every file for the given tokens, the Hub token in use, those in the environment, and what looks like one.

    Raises:
        ValueError: a file holds one; the message names the file, never the token.
    """
    known = {get_token(), *tokens, *(os.environ.get(name) for name in VARIABLES)}
    exact = [re.escape(token.encode()) for token in known if token and len(token) >= 8]
    pattern = re.compile(b"|".join([*exact, *PATTERNS]))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _holds(path, pattern):
            raise ValueError(
                f"{path.relative_to(folder)} holds an access token: nothing was uploaded; remove it from what the file "
                "was made of, and revoke the token"
            )


def _holds(path: Path, pattern: re.Pattern[bytes]) -> bool:
    # Random weights hold something that looks like a token about never; a real one stands in text.
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return pattern.search(file.read(8 + int.from_bytes(file.read(8), "little"))) is not None
    tail = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            if pattern.search(tail + block):
                return True
            tail = block[-OVERLAP:]
    return False
