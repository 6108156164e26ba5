"""What learns is kept in float32, whatever the frozen backbones are stored in.

An optimizer's step is thousands of times smaller than the weight it changes; bfloat16 has three digits, so most steps
would round to nothing.
"""

import torch


def keep_trained_in_float32(model: torch.nn.Module) -> None:
    """
    Widen every trainable parameter of half precision, in place, and the untrained originals that PEFT keeps of them.

    What is frozen stays as it is.
    """
    for name, parameter in model.named_parameters():
        learns = parameter.requires_grad or ".original_module." in name
        if learns and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
