"""The reliability router: a stream that has failed is left out, and a tag that the image denies is not read.

Gates and channel routers are learned, so they can only react to failures that training showed them. This one needs no
failures. It collects evidence from frozen parts, calibrated on the sound training stream:

* does the image show what each tag names, does it show what is asked, do the tags name what is asked
  (`word_evidence.py`: log odds of own against mismatched pairs);
* does its activation profile look like that of any image in training (`typicality.py`).

Bayes' rule weighs four explanations of what was found: both streams are sound, the image has failed, the list of tags
has failed, both have. In the first and the third the image shows what is asked, in the first and the second the tags
name it, and only in the first the image shows the tags, up to the tagger's inventions. A stream is left out where its
failure alone is likelier than everything else together; otherwise both stay, however strange they look, because a
language model makes more of a hurt image than of none. There is no fading in between: a half-faded stream is an input
that no language model was trained on.

A sound image also speaks against single tags. It may do so where it shows what is asked, and against one tag of a list,
not against most of them: an image that shows none of several tags may itself be what has changed (its hues, say), and
then the tags are all that there is to go by.

A stream that is left out becomes its null token: a learned vector plus what that vector finds by attending to the other
stream. Whole streams are dropped to their null tokens at random in training: that is how the language model learns to
live without either of them.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .activation_profile import profile_size
from .linear_product import Linear
from .streams import Streams
from .typicality import Typicality
from .word_evidence import WordEvidence
from .zero_linear import ZeroLinear

SOUND = 3.0  # prior log odds that a stream has not failed: 1 in 20 fails
LEAST_SOUND = -2.0  # of an image, however strange its profile: what it shows may still speak for it
INVENTED = 0.2  # share of tags that a tagger invents


class Complement(nn.Module):
    """A learned null token of one stream attends to the other stream: [N, T, D] → [N, 1, D]."""

    def __init__(self, dim):
        super().__init__()
        self.null = nn.Parameter(torch.empty(dim))
        self.query = Linear(dim, dim, bias=False)
        self.key = Linear(dim, dim, bias=False)
        # The complement starts at zero: a faded stream is at first nothing but its null token.
        self.out = ZeroLinear(dim, dim, bias=False)

    def forward(self, other):
        # One query: (other · Kᵀ) · q is other · (Kᵀ · q), which needs D products a token in place of D². Sums and no
        # matrix product: see `linear_product.py`.
        query = (self.query.weight * self.null).sum(-1)  # (D,)
        direction = (self.key.weight * query[:, None]).sum(0)  # (D,)
        logits = other @ direction / math.sqrt(query.shape[0])  # (N, T)
        found = self.out(logits.softmax(-1)[:, None] @ other)  # (N, 1, D)
        return self.null + found  # (N, 1, D)

    def init_own_weights(self, std):
        init.zeros_(self.null)


class ReliabilityRouter(nn.Module):
    """
    `judge` says which streams and tags to trust, before the soft prompt reads the tags; `forward` leaves out the rest:
    `streams.image` [N, P, D], `streams.text` [N, K, D] → the same, by `streams.weights` [N, 2].

    In training the statistics are updated and streams are dropped. Before enough was observed the router is the
    identity. An image without tags has no tag stream: its weight is 0 always, so that it meets the null token that
    training knows. A stream that nothing can stand in for stays: an image without tags, and every image of a model
    without a soft prompt.
    """

    def __init__(self, config):
        super().__init__()
        dim = config.text_config.hidden_size
        self.image_typicality = Typicality(profile_size(config.vision_config), config.reliability_quantile)
        self.has_prompt = config.soft_prompt_type != "none"
        self.uses_tags = config.soft_prompt_type == "dynamic"
        if self.uses_tags:
            vision_dim, word_dim = config.vision_config.hidden_size, word_embedding_size(config.tag_encoder_config)
            self.word_evidence = WordEvidence(vision_dim, word_dim, config.tag_separator_ids)
        # Only where scores weigh tags can a lower score silence one.
        self.denies_tags = self.uses_tags and config.tag_score_encoding == "attention_bias"
        self.image_complement = Complement(dim)
        self.text_complement = Complement(dim)
        # `nn.Dropout` draws the whole-stream drops, so that whoever switches dropout off switches these off too.
        self.stream_dropout = nn.Dropout(config.stream_dropout)

    def judge(self, patches, image_profile, tags, question, is_real, thresholds=(0.5, 0.5)):
        """
        Weights of the streams, [N, 2] of 0 and 1, and the share of its score that each tag token keeps, [N, L] or
        `None`.

        Args:
            patches [N, P, Dv], image_profile [N, 6·L]: what the frozen tower saw.
            tags: word embeddings [N, L, R], ids, mask, scores [N, L] of the tags; `None` without a dynamic soft prompt.
            question: word embeddings [N, Q, R] and mask [N, Q], or `None`.
            is_real [N] bool: false for the stand-in image of a batch that has none.
            thresholds: how probable it must be that the image, and that the list of tags, has failed to be left out.
        """
        has_tags = tags[2].any(-1) if self.uses_tags else torch.ones_like(is_real)  # (N,)
        if not self.has_prompt:
            return torch.ones(len(patches), 2, device=patches.device), None
        if self.training:
            if torch.is_grad_enabled():
                self.observe(patches, image_profile, tags, question, is_real)
            return self.draw_drops(has_tags), None
        beyond = self.image_typicality.beyond(image_profile.float())  # (N,)
        image_sound = (SOUND - beyond).clamp_min(LEAST_SOUND)  # (N,)
        if not self.uses_tags:
            nothing = torch.zeros_like(image_sound)  # (N,)
            return self.weigh(image_sound, nothing, nothing, nothing, has_tags, thresholds)[0], None
        odds, is_tag, tag_of_token, shown, named = self.word_evidence(patches, tags, question)
        mixed = torch.log(INVENTED + (1 - INVENTED) * odds.exp())  # (N, L)
        tags_shown = torch.where(is_tag, mixed, 0.0).sum(-1)  # (N,)
        weights, both_sound = self.weigh(image_sound, tags_shown, shown, named, has_tags, thresholds)
        if not self.denies_tags:
            return weights, None
        # An image may deny a tag where it shows what is asked (if anything is) and no more is missing of the list than
        # one invention explains. If it shows next to nothing of several tags, the image may as well be what is wrong.
        may_deny = both_sound & (shown >= 0) & (tags_shown >= math.log(INVENTED))  # (N,)
        true = (1 - INVENTED) * (odds - mixed).exp()  # (N, L) probability that a tag is no invention
        judged = is_tag & may_deny[:, None] & self.word_evidence.tags_shown.ready  # (N, L)
        kept = torch.where(judged, true, 1.0)  # (N, L)
        return weights, nn.functional.pad(kept, (0, 1), value=1.0).gather(1, tag_of_token)

    def weigh(self, image_sound, tags_shown, shown, named, has_tags, thresholds=(0.5, 0.5)):
        """
        Weights [N, 2], and whether most likely both streams are sound, [N] bool, from log odds [N] each: `image_sound`
        a priori, `tags_shown` that the image shows these tags rather than any others, `shown` that it shows what is
        asked, `named` that the tags name it.
        """
        explanations = torch.stack(
            [
                tags_shown + shown + named,  # both sound
                named - image_sound,  # the image failed
                shown - SOUND,  # the list failed
                -SOUND - image_sound,  # both failed
            ],
            dim=-1,
        )  # (N, 4)
        probability = explanations.softmax(-1)  # (N, 4)
        image_failed, tags_failed = probability[:, 1] > thresholds[0], probability[:, 2] > thresholds[1]  # (N,), (N,)
        weights = torch.stack([~(image_failed & has_tags), ~tags_failed & has_tags], dim=-1).float()  # (N, 2)
        return weights, probability[:, 0] > 0.5

    def draw_drops(self, has_tags):
        """Training weights, [N, 2] of 0 and 1: each stream is dropped at random, never all that there are."""
        present = torch.stack([torch.ones_like(has_tags), has_tags], dim=-1)  # (N, 2)
        kept = (self.stream_dropout(torch.ones(present.shape, device=present.device)) > 0) & present  # (N, 2)
        return torch.where(kept.any(-1, keepdim=True), kept, present).float()

    @torch.no_grad()
    def observe(self, patches, image_profile, tags, question, is_real):
        """Add a training batch to the statistics."""
        self.image_typicality.observe(image_profile[is_real])
        if self.uses_tags:
            question = None if question is None else tuple(part[is_real] for part in question)
            self.word_evidence.observe(patches[is_real], tuple(part[is_real] for part in tags), question)

    def forward(self, streams: Streams):
        weights = streams.weights  # (N, 2)
        assert weights is not None  # `judge` comes first
        image_weight, text_weight = weights.to(streams.image.dtype)[..., None, None].unbind(1)  # (N, 1, 1) each
        image_null = self.image_complement(streams.text)  # (N, 1, D)
        text_null = self.text_complement(streams.image)  # (N, 1, D)
        image = image_weight * streams.image + (1 - image_weight) * image_null  # (N, P, D)
        text = text_weight * streams.text + (1 - text_weight) * text_null  # (N, K, D)
        return streams.routed(image, text), weights


def word_embedding_size(tag_encoder_config):
    """Channels of the tag encoder's word embeddings; some encoders (ELECTRA, ALBERT) widen them afterwards."""
    return getattr(tag_encoder_config, "embedding_size", None) or tag_encoder_config.hidden_size
