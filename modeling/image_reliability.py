"""How far an image can be trusted, for any VLM: the reliability router's detector, fitted without training.

The vision tower of a VLM spreads the tokens of a sound image in a characteristic way through its layers
(`activation_profile.py`). A running Gaussian over sound images (`typicality.py`) tells whether a new one is like them.
No damaged image, no label and no gradient is needed, and the model is not changed.

    reliability = ImageReliability.fitted(model, processor, images)
    reliability.trust(model, processor, image)  # near 1 for an image like those, below 0.5 for one that is not
"""

import inspect
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from .activation_profile import activation_profile
from .typicality import MIN_CALIBRATION, Typicality

DISTRUSTED = 0.5  # the weight at the threshold, beyond which a share of 1 − quantile of sound images lies
MAX_PREFIX_TOKENS = 8  # class token and registers; more than that are no prefix
_CARD = """---
{{ card_data }}
---

# How far an image can be trusted

Statistics of the vision tower of {{ model or "a model" }} (`{{ model_type }}`){% if images %} over {{ images }} sound
images of {{ data }}{% endif %}. They tell whether a new image is like those; the model itself is not in here, and is
not changed. With Poise:

```bash
poise fit-router {{ model or "MODEL" }} --output {{ folder or "FOLDER" }} --image photo.jpg
```

Near 1 the image is like the sound ones; below 0.5 it is not, and an answer about it should not be relied on.
{% if flagged %}

| held-out images | called unlike the sound ones |
|---|---|
{%- for name, share in flagged.items() %}
| {{ name }} | {{ "%.2f" | format(share) }} |
{%- endfor %}
{% endif %}
"""


@torch.no_grad()
def tower_states(model, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """
    Hidden states of the vision tower for **one** image, [1, P, Dv] for the embeddings and every layer.

    Tiles of an image stand behind one another; class tokens and registers are left out.

    Args:
        model: an image-text-to-text model of transformers.
        inputs: what its image processor returned for one image.

    Raises:
        ValueError: the family shows no hidden states of a vision tower.
    """
    inputs = on_model(model, inputs)
    states = None
    for read in _readers(model):
        given = image_arguments(read, inputs)
        if given is not None:
            with layer_outputs(model.get_encoder("image")) as outputs:
                try:
                    found = read(**given, output_hidden_states=True, return_dict=True)
                except TypeError:  # where patches are embedded and no tower follows, there is nothing to ask for
                    continue
            # Not every tower lists its states; the outputs of its layers are the same but for the embeddings.
            states = getattr(found, "hidden_states", None) or outputs
            break
    if not states:
        raise ValueError(
            f"model={type(model).__name__} ({model.config.model_type}) shows no hidden states of a vision tower: "
            "how far an image can be trusted cannot be told, nor can router_type='reliability' stand there."
        )
    return [_tokens(layer, _num_patches(model, inputs)) for layer in states]


def on_model(model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the model's device, floats in its precision."""
    inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    return {k: v.to(model.dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}


def image_arguments(read, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those of `inputs` that a method which reads images takes, or `None` where it needs more than they hold."""
    parameters = inspect.signature(read).parameters
    named = {"hidden_states": "pixel_values", "grid_thw": "image_grid_thw"}
    given = {name: inputs[source] for name in parameters if (source := named.get(name, name)) in inputs}
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return given if set(needed) <= set(given) else None


@contextmanager
def layer_outputs(tower):
    """Collects what the layers of a tower return meanwhile, [N, P, Dv] each, in their order."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    outputs, hooks = [], []
    for layer in lists[0] if lists else ():
        hooks.append(
            layer.register_forward_hook(lambda _, __, out: outputs.append(out if torch.is_tensor(out) else out[0]))
        )
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _readers(model):
    """What can be asked for the states of the tower, the family's own way of feeding it first."""
    for owner in (model.base_model, model):
        if hasattr(owner, "get_image_features"):
            yield owner.get_image_features
    tower = model.get_encoder("image")
    if tower is not None and tower is not model:
        yield tower.forward


def _num_patches(model, inputs):
    """Patches of one tile, where pixels and patch size tell, else `None`."""
    tower = model.get_encoder("image")
    size = getattr(getattr(tower, "config", None), "patch_size", None)
    pixels = inputs.get("pixel_values")
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if pixels is None or pixels.ndim < 4 or not isinstance(size, int):
        return None
    return (pixels.shape[-2] // size) * (pixels.shape[-1] // size)


def _tokens(states, num_patches):
    """[N, P, Dv], [N, Dv, H, W] or [P, Dv] → [1, N · P, Dv], patches only."""
    if states.ndim == 4:
        states = states.flatten(2).mT
    if states.ndim == 2:
        states = states[None]
    prefix = 0 if num_patches is None else states.shape[1] - num_patches
    if 0 < prefix <= MAX_PREFIX_TOKENS:
        states = states[:, prefix:]
    return states.reshape(1, -1, states.shape[-1])


def image_inputs(processor, image) -> dict[str, Any]:
    """What a model's processor makes of one image, without any text."""
    return dict(getattr(processor, "image_processor", processor)(images=[image], return_tensors="pt"))


class ImageReliability(nn.Module, PyTorchModelHubMixin, model_card_template=_CARD, tags=["poise"]):  # type: ignore[call-arg]
    """
    Statistics of one model's vision tower over sound images, and the verdict on a new one.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of `huggingface_hub`; the folder is a few hundred
    kilobytes beside the model.

    Args:
        profile_size (`int`): numbers in the activation profile of one image.
        model_type (`str`): of the model that it was fitted to.
        slope, quantile (`float`): see [`Typicality`]; by default those of the reliability router.
        origin (`dict`, *optional*): what it was fitted to, for those who read it.

    Examples:
        >>> model = AutoModelForImageTextToText.from_pretrained("outputs/demo/published")
        >>> processor = AutoProcessor.from_pretrained("outputs/demo/published")
        >>> sound = [record["image"] for record in Scenes("train", size=400)]
        >>> reliability = ImageReliability.fitted(model, processor, sound)  # doctest: +SKIP
        >>> reliability.trust(model, processor, image)  # doctest: +SKIP
        1.0
    """

    def __init__(
        self,
        profile_size: int,
        model_type: str,
        slope: float = 6.0,
        quantile: float = 0.999,
        origin: dict | None = None,
    ):
        super().__init__()
        self.model_type, self.origin = model_type, dict(origin or {})
        self.typicality = Typicality(profile_size, slope=slope, quantile=quantile)

    @classmethod
    def fitted(cls, model, processor, images: Iterable[Any], **options: Any) -> "ImageReliability":
        """
        One pass over sound images, one at a time; a tenth of them calibrates.

        Args:
            model, processor: of the VLM; only the vision tower runs.
            images (`Iterable[PIL.Image.Image]`): a few hundred at least.
            **options: `slope`, `quantile`, `origin`.

        Raises:
            ValueError: too few images for a verdict, or the family shows no tower.
        """
        reliability = None
        count = 0
        for image in images:
            profile = activation_profile(tower_states(model, image_inputs(processor, image))).cpu()  # (1, E)
            if reliability is None:
                reliability = cls(profile.shape[1], model.config.model_type, **options)
            reliability.typicality.observe(profile)
            count += 1
        if reliability is None or not bool(reliability.typicality.ready):
            raise ValueError(
                f"{count} images are too few: a tenth calibrates, which must be {MIN_CALIBRATION} for a verdict; "
                f"give about {12 * MIN_CALIBRATION} or more."
            )
        return reliability.eval()

    def generate_model_card(self, *args, **facts):
        """With `model`, `folder` and `flagged`, where they are given as `model_card_kwargs`."""
        return super().generate_model_card(*args, **{**self.origin, "model_type": self.model_type, **facts})

    @torch.no_grad()
    def forward(self, profiles: torch.Tensor) -> torch.Tensor:
        """Trust of each image, activation profiles [N, E] → [N] in 0 … 1."""
        return self.typicality(profiles.to(self.typicality.mean.device))

    def check(self, model) -> None:
        """
        Raises:
            ValueError: it was fitted to another family.
        """
        if model.config.model_type != self.model_type:
            raise ValueError(
                f"reliability was fitted to a {self.model_type!r} model, not {model.config.model_type!r}: fit it again "
                "with `poise fit-router`."
            )

    def trust(self, model, processor, image) -> float:
        """How far one image can be trusted, 0 … 1; below `DISTRUSTED` it is unlike what was seen."""
        self.check(model)
        profile = activation_profile(tower_states(model, image_inputs(processor, image)))  # (1, E)
        expected = self.typicality.mean.shape[0]
        if profile.shape[1] != expected:
            raise ValueError(
                f"model has {profile.shape[1]} statistics an image, reliability was fitted to {expected}; "
                "fit it again with `poise fit-router`."
            )
        return float(self(profile)[0])
