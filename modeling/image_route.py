"""What is new on a pretrained vision-language model: a soft prompt, a router, and image tokens that read the prompt."""

from contextlib import contextmanager

import torch
from torch import nn

from .activation_profile import activation_profile
from .information_router import build_router
from .linear_product import Linear
from .soft_prompt import DynamicSoftPrompt
from .streams import Streams
from .zero_linear import ZeroLinear


class PromptReader(nn.Module):
    """Image tokens [N, P, D] attend to soft-prompt tokens [N, K, D]; what they find is added and starts at zero."""

    def __init__(self, dim, width):
        super().__init__()
        self.query, self.key, self.value = Linear(dim, width), Linear(dim, width), Linear(dim, width)
        self.out = ZeroLinear(width, dim)

    def forward(self, image, prompt):
        found = nn.functional.scaled_dot_product_attention(
            self.query(image)[:, None], self.key(prompt)[:, None], self.value(prompt)[:, None]
        )[:, 0]  # (N, P, W)
        return image + self.out(found)  # (N, P, D)


class ImageRoute(nn.Module):
    """
    All that is new: soft prompt, router, and how the image tokens read the prompt.

    `image` [N, P, D], tags ids, mask and scores [N, L], `states` of the tower, L' × [N, P', Dv] or `None`, question ids
    and mask [N, Q] or `None` → image tokens [N, P, D], weights [N, 2] or `None`, and of the weights what is applied to
    the image, [N] or `None`.

    Until it is trained, a reliability router that was fitted says how far an image can be trusted and leaves it as it
    is: no null token could stand in for it. Once it is, `thresholds` say how probable it must be that the image, and
    that the list of tags, has failed to be left out: what is left may be worth less than a hurt stream, see
    `set_thresholds`. The weights that are returned are the verdict all the same.
    """

    def __init__(self, config, tag_encoder_config):
        super().__init__()
        parts = config.of_parts(tag_encoder_config)
        self.router_type = config.router_type
        self.soft_prompt = DynamicSoftPrompt(parts)
        self.router = build_router(parts)
        self.reader = PromptReader(config.width, config.reader_width)
        self.register_buffer("trained", torch.tensor(False))
        self.register_buffer("thresholds", torch.tensor([0.5, 0.5]))
        self.fixed = None  # weights of image and tags in place of the router's
        # A channel router refills channels from the start; it is let in as training wants it.
        self.opening = nn.Parameter(torch.zeros(())) if config.router_type == "channel" else None

    def forward(self, image, tags, tag_encoder, states=None, question=None):
        ids, mask, scores = tags
        weights = applied = None
        if states is not None:
            evidence = self._evidence(states, tags, question, tag_encoder)
            weights, kept = self.router.judge(*evidence)  # (N, 2), (N, L) or None
            scores = scores if kept is None else scores * kept
            if self.training:
                self.trained.fill_(True)
            if self.router.training:  # what is dropped at random, or only observed
                applied = weights  # (N, 2)
            elif self.fixed is not None:
                applied = torch.tensor(self.fixed).to(weights).expand_as(weights)  # (N, 2)
            else:
                applied = torch.where(self.trained, self.router.judge(*evidence, self.thresholds)[0], 1.0)  # (N, 2)
        prompt = self.soft_prompt(len(image), tag_encoder, ids, mask, scores).to(image.dtype)  # (N, K, D)
        if self.router is not None:
            streams, routed_by = self.router(Streams(image, prompt, applied))
            weights = routed_by if weights is None else weights
            routed, prompt = streams.image.to(image.dtype), streams.text.to(image.dtype)
            image = routed if self.opening is None else image + self.opening.tanh() * (routed - image)  # (N, P, D)
        return self.reader(image, prompt), weights, None if applied is None else applied[:, 0]

    def _evidence(self, states, tags, question, tag_encoder):
        """What a reliability router judges by, see `ReliabilityRouter.judge`."""
        ids, mask, scores = tags
        embed = tag_encoder.get_input_embeddings()
        words = (embed(ids).detach().float(), ids, mask, scores)
        asked = None if question is None else (embed(question[0]).detach().float(), question[1])
        profile = activation_profile(states).to(ids.device)  # (N, 6·L')
        patches = states[-1].detach().float().to(ids.device)  # (N, P', Dv)
        return patches, profile, words, asked, torch.ones_like(mask[:, 0])

    @contextmanager
    def fixed_weights(self, image, tags):
        """Within it every image and its tags have these weights, whatever a reliability router finds."""
        self.fixed = (float(image), float(tags))
        try:
            yield
        finally:
            self.fixed = None

    def set_thresholds(self, losses, gains):
        """
        Leave a stream out where its failure is probable enough for the expected gain to exceed the expected loss.

        Args:
            losses, gains (pair of `float`): for the image and for the tags, what answers lose without a stream that has
                not failed, and what they gain without one that has.
        """
        for stream, (loss, gain) in enumerate(zip(losses, gains, strict=True)):
            loss = max(loss, 0.0)
            self.thresholds[stream] = max(0.5, loss / (loss + gain)) if gain > 0 else 1.0
