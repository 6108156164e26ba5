"""From images, tags and question to the tokens that the language model reads: the whole route.

Everything happens image by image, from inputs that the processor made of each image alone. That is why it survives
wherever images are read one by one or in other batches: in `generate`, in trainers, in engines that cache features.
"""

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .outputs_poise import PoiseImageFeatures
from .streams import Streams
from .vision_features import read_states, run_tower

STATES_ON_REQUEST = {"output_hidden_states": "hidden_states", "output_attentions": "attentions"}


class ImageStreams(nn.Module):
    """
    The part of `PoiseModel` that makes image tokens and soft-prompt tokens, and routes between them.

    Needs `config`, `vision_tower`, `projector`, `soft_prompt`, `router` and, for a dynamic soft prompt, `tag_encoder`
    of the class that it is mixed into.
    """

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | None = None,
        tag_input_ids: torch.LongTensor | None = None,
        tag_attention_mask: torch.LongTensor | None = None,
        tag_scores: torch.FloatTensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.LongTensor | None = None,
        vision_features: torch.FloatTensor | None = None,
        image_profile: torch.FloatTensor | None = None,
        tag_features: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoiseImageFeatures:
        """
        Image tokens and soft-prompt tokens of N images, routed: all that the language model gets to see of them.

        Args:
            pixel_values, vision_features, image_profile, tag_..., question_...: see [`ImageInputs`].
            output_hidden_states, output_attentions (`bool`, *optional*): also return the vision tower's; by default as
                `config` says. The tower's `last_hidden_state` comes with every image that it reads.

        Raises:
            ValueError: neither images nor features, or tags or questions for another number of images.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("pixel_values and vision_features: give exactly one of them.")
        seen = {}
        if vision_features is None:
            asked = states_asked_for(self.config, kwargs)
            outputs = run_tower(self.vision_tower, pixel_values, self.config, **asked)
            vision_features, image_profile = read_states(outputs, self.config)
            # States that only a router read are not kept alive.
            fields = ["last_hidden_state", *(STATES_ON_REQUEST[flag] for flag in asked)]
            seen = {field: outputs.get(field) for field in fields}
        if self.config.router_type == "reliability" and image_profile is None:
            raise ValueError(
                "image_profile=None, but router_type='reliability' judges images by it: pass what encode_image "
                "returned beside vision_features."
            )
        num_images = len(vision_features)
        tags = _rows_of_images(
            num_images, tag_input_ids=tag_input_ids, tag_attention_mask=tag_attention_mask, tag_scores=tag_scores
        )
        question = _rows_of_images(
            num_images, question_input_ids=question_input_ids, question_attention_mask=question_attention_mask
        )
        is_real = torch.ones(num_images, dtype=torch.bool, device=vision_features.device)  # (N,)
        streams, weights = self._routed_streams(vision_features, image_profile, tags, tag_features, question, is_real)
        return PoiseImageFeatures(
            pooler_output=list(torch.cat([streams.image, streams.text], dim=1)),  # N × (P + K, D)
            image_hidden_states=streams.image,
            soft_prompt_hidden_states=streams.text,
            router_weights=weights,
            **seen,
        )

    def _routed_streams(self, vision_features, image_profile, tags, tag_features, question, is_real):
        """
        Projector, soft prompt, router: `Streams` of N images, and weights (N, 2) or `None`.

        `vision_features` (N, S, P, Dv), `image_profile` (N, 6·L) or `None`, `tags` ids, mask and scores (N, L) or
        `None`, `tag_features` (N, L, Dt) or `None`, `question` ids and mask (N, Lq) or `None`, `is_real` (N,) bool.
        """
        image = self.projector(vision_features.to(self.projector_dtype))  # (N, P, D)
        weights, kept = self._verdict(vision_features, image_profile, tags, question, is_real)  # (N, 2), (N, L)
        if kept is not None and tags is not None:
            ids, mask, scores = tags  # (N, L) each
            tags = (ids, mask, scores * kept)
        prompt = self._prompt_tokens(image, tags, tag_features)  # (N, K, D)
        streams = Streams(image, prompt, weights)
        return (streams, None) if self.router is None else self.router(streams)

    def _verdict(self, vision_features, image_profile, tags, question, is_real):
        """Which streams and tags a reliability router trusts, see `ReliabilityRouter.judge`; of others (None, None)."""
        if self.router is None or self.config.router_type != "reliability":
            return None, None
        words = None
        if self.config.soft_prompt_type == "dynamic":
            # Without tags, too: statistics are gathered from all processes, of which others may have some.
            ids, mask, scores = tags or _no_tags(vision_features)  # (N, L) each
            embed = self.tag_encoder.get_input_embeddings()
            words = (embed(ids).detach().float(), ids, mask & is_real[:, None], scores)
            question = None if question is None else (embed(question[0]).detach().float(), question[1])
        patches = vision_features[:, -1].detach().float()  # (N, P, Dv)
        return self.router.judge(patches, image_profile, words, question, is_real)

    @property
    def projector_dtype(self):
        # A dynamically quantized projector has no parameters left.
        return next((parameter.dtype for parameter in self.projector.parameters()), self.dtype)

    def _prompt_tokens(self, image, tags, tag_features):
        if self.soft_prompt is None:
            return image[:, :0]  # (N, 0, D)
        tag_encoder = getattr(self, "tag_encoder", None)
        prompt = self.soft_prompt(len(image), tag_encoder, *(tags or (None, None, None)), tag_features)
        return prompt.to(image.device, image.dtype)  # (N, K, D)

    def _stand_in(self):
        """
        Zero, through a blank image and every trainable module: a text-only batch then still gives each of them a
        gradient, and processes that wait for one another do not hang.
        """
        new = [module for module in (self.projector, self.soft_prompt, self.router) if module is not None]
        if not any(parameter.requires_grad for module in new for parameter in module.parameters()):
            return 0.0
        size = self.config.vision_image_size or self.config.vision_config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        blank = torch.zeros(1, 3, height, width, device=self.device, dtype=self.vision_tower.dtype)
        vision_features, profile = read_states(run_tower(self.vision_tower, blank, self.config), self.config)
        tags = None
        if self.config.soft_prompt_type == "dynamic":
            ids, mask, scores = _no_tags(vision_features)  # (1, 1) each
            tags = (ids, ~mask, scores + 1)
        is_real = torch.zeros(1, dtype=torch.bool, device=self.device)
        streams, _ = self._routed_streams(vision_features, profile, tags, None, None, is_real)
        untouched = sum(parameter.sum() for module in new for parameter in module.parameters())
        return 0.0 * (streams.image.sum() + streams.text.sum() + untouched)


def states_asked_for(config, arguments):
    """Which of `STATES_ON_REQUEST` a call or, where it says nothing, the configuration wants."""
    wanted = {flag: arguments.get(flag) for flag in STATES_ON_REQUEST}
    wanted = {flag: getattr(config, flag, False) if value is None else value for flag, value in wanted.items()}
    return {flag: value for flag, value in wanted.items() if value}


def _rows_of_images(num_images, **inputs):
    """
    The tensors of a group of per-image inputs, (N, L) each and masks as bool, or `None` if none of them is given.

    Raises:
        ValueError: some are missing, or their rows are not those of the images.
    """
    missing = [name for name, rows in inputs.items() if rows is None]
    if len(missing) == len(inputs):
        return None
    if missing:
        raise ValueError(f"{', '.join(missing)} is None, but comes with {', '.join(inputs)}: pass all, or none.")
    for name, rows in inputs.items():
        if len(rows) != num_images:
            raise ValueError(
                f"{name} has {len(rows)} rows for {num_images} images: give one row per image, all-zero in the "
                "attention mask for an image without."
            )
    return tuple(rows.bool() if name.endswith("_mask") else rows for name, rows in inputs.items())


def _no_tags(vision_features):
    """Ids, mask and scores (N, 1) of images without tags."""
    ids = torch.zeros(len(vision_features), 1, dtype=torch.long, device=vision_features.device)  # (N, 1)
    return ids, ids.bool(), ids.float()
