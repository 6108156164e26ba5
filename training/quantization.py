"""How the frozen language model is stored: full precision, int8, or NF4 with double quantization (QLoRA)."""

from typing import Any

import torch


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """The bitsandbytes configuration of `model.quantization`, or `None`.

    Args:
        quantization (`str`): `"none"`, `"nf4"` (arXiv 2305.14314: 4-bit normal floats, their scales quantized again)
            or `"int8"`.
        dtype (`torch.dtype`): in which 4-bit weights are computed with, and stored as: equal to the model's, so that
            FSDP can shard both alike.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    if quantization == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"model.quantization={quantization!r} needs bitsandbytes: pip install 'poise[quantization]', or "
            "set model.quantization=none"
        ) from error
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )
