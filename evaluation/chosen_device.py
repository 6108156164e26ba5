"""The device and the number format that a command line names, or one line on why there is none."""

import torch


def chosen_device(name: str | None = None) -> torch.device:
    """
    Args:
        name (`str`, *optional*, defaults to `"cuda"` where there is one, else `"cpu"`).

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r} is no device of torch: write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r}: torch sees {torch.cuda.device_count()} such devices here; write cpu")
    return device


def chosen_dtype(name: str) -> torch.dtype | str:
    """
    Args:
        name (`str`): such as `"bfloat16"`; `"auto"` stays what it is.

    Raises:
        ValueError: it names no floating-point format of torch.
    """
    found = "auto" if name == "auto" else getattr(torch, name, None)
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype={name!r} is no floating-point format of torch: write auto, float32 or bfloat16")
    return found
