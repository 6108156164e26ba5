"""The model: configuration, vision towers, projectors, soft prompts, information routers.

Names resolve on first use, so that importing the package stays light.
"""

from importlib import import_module

_HOME = {
    "PoiseConfig": "configuration_poise",
    "PoiseDualEncoder": "modeling_dual_encoder",
    "PoiseDualEncoderConfig": "configuration_dual_encoder",
    "PoiseForConditionalGeneration": "modeling_poise",
    "PoiseModel": "modeling_poise",
    "PoisePreTrainedModel": "modeling_poise",
    "ContrastiveDecoding": "contrastive_decoding",
    "ImageReliability": "image_reliability",
    "RoutedVlm": "modeling_vlm_router",
    "VlmRouterConfig": "configuration_vlm_router",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
