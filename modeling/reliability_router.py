"""The reliability router: a stream that is unlike anything seen in training fades, and the other one stands in for it.

Gates and channel routers are learned, so they can only react to failures that training showed them. This one asks what
needs no failures: is the stream *typical* (`typicality.py`)? Gaussians over frozen statistics answer it: one over the
picture's activation profile (`activation_profile.py`), one over the tags' scores, and one over what picture and tags
say, which tells whether two sound streams speak of the same thing. Where they do not, one of them is wrong and nothing
in either tells which; a fourth Gaussian then lets the question decide (`question_agreement`): tags that lie about the
picture leave it a picture that such a question is asked about, and a picture of something else is none.

A stream with weight w becomes w·x + (1 − w)·(null + complement), where `null` is a learned token and the complement is
what the null token finds by attending to the other stream.

A stream fades only as far as the other one can stand in for it. A bad picture is better than none: where there are no
tags, or the tags are as strange as the picture, it stays; and without a soft prompt this router is the identity.

Whole streams are dropped to their null tokens at random in training: that, not the detector, is how the language model
learns to live without either of them.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .activation_profile import profile_size
from .linear_product import Linear
from .streams import Streams
from .tag_statistics import NUM_SCORE_STATISTICS, WORD_DIRECTIONS, tag_words
from .tag_verification import TagVerification
from .typicality import Agreement, Typicality
from .zero_linear import ZeroLinear

# What share of sound pairs the question calls fitting when it is asked to decide. After a disagreement either stream is
# as likely to be wrong as the other, so the line lies where the two get equally likely, not far out in the tail.
ARBITER_QUANTILE = 0.75


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
    `streams.image` [N, P, D], `streams.text` [N, K, D] → the same, faded by weights [N, 2] in [0, 1].

    In training the statistics are updated and streams are dropped; in evaluation the weights come from typicality. A
    static prompt says nothing of the tags, but a question may hold them as words: it counts as a sound stream.
    Before anything was observed every weight is 1, and the router is the identity. A picture without tags has no tag
    stream: its weight is 0 always, so that it meets the null token that training knows.
    """

    def __init__(self, config):
        super().__init__()
        dim, vision_dim = config.text_config.hidden_size, config.vision_config.hidden_size
        settings = {"slope": config.reliability_slope, "quantile": config.reliability_quantile}
        self.image_typicality = Typicality(profile_size(config.vision_config), **settings)
        self.has_prompt = config.soft_prompt_type != "none"
        self.uses_tags = config.soft_prompt_type == "dynamic"
        if self.uses_tags:
            self.tag_typicality = Typicality(NUM_SCORE_STATISTICS, **settings)
            settings["quantile"] = config.agreement_quantile
            self.agreement = Agreement(vision_dim, WORD_DIRECTIONS, **settings)
            settings["quantile"] = ARBITER_QUANTILE
            self.arbiter = Agreement(vision_dim, WORD_DIRECTIONS, **settings) if config.question_agreement else None
            if config.tag_verification:
                slope = config.reliability_slope
                self.tag_verification = TagVerification(vision_dim, config.tag_separator_ids, slope)
        self.image_trust = config.image_trust
        self.image_complement = Complement(dim)
        self.text_complement = Complement(dim)
        # `nn.Dropout` draws the whole-stream drops, so that whoever switches dropout off switches these off too.
        self.stream_dropout = nn.Dropout(config.stream_dropout)

    def forward(self, streams: Streams):
        if not self.has_prompt:
            weights = torch.ones(streams.num_items, 2, device=streams.image.device)  # (N, 2)
        elif self.training:
            if torch.is_grad_enabled():
                self.observe(streams)
            weights = self.draw_drops(streams)  # (N, 2)
        else:
            weights = self.weigh(streams)  # (N, 2)
        if self.uses_tags:
            weights = torch.stack([weights[:, 0], weights[:, 1] * streams.has_tags], dim=-1)  # (N, 2)
        image_weight, text_weight = weights.to(streams.image.dtype)[..., None, None].unbind(1)  # (N, 1, 1) each
        image_null = self.image_complement(streams.text)  # (N, 1, D)
        text_null = self.text_complement(streams.image)  # (N, 1, D)
        image = image_weight * streams.image + (1 - image_weight) * image_null  # (N, P, D)
        text = text_weight * streams.text + (1 - text_weight) * text_null  # (N, K, D)
        return streams.routed(image, text), weights

    def read_scores(self, patches, image_profile, tag_input_ids, tag_mask, tag_scores):
        """
        Scores with which the soft prompt reads the tags, [N, L], where `tag_verification` is on: at inference less for
        those that a sound picture does not show. `patches` [N, P, Dv] are the tower's features, `image_profile`
        [N, 6·L] its activation profile. Training reads the scores as they are, and keeps statistics.
        """
        if not self.training:
            content, words = patches.float().mean(1), tag_words(tag_input_ids, tag_mask, tag_scores)  # (N, Dv), (N, R)
            # A picture that is at odds with the whole list may itself be the wrong one.
            agree = self.agreement(torch.cat([content, words], dim=-1))  # (N,)
            image = agree * self.image_typicality(image_profile.float())  # (N,)
            return tag_scores * self.tag_verification(patches, tag_input_ids, tag_mask, image)  # (N, L)
        if torch.is_grad_enabled():
            self.tag_verification.observe(self.agreement, patches, tag_input_ids, tag_mask)
        return tag_scores

    def draw_drops(self, streams):
        """Training weights, [N, 2] of 0 and 1: each stream is dropped at random, never all that there are."""
        kept = self.stream_dropout(torch.ones(streams.num_items, 2, device=streams.image.device)) > 0  # (N, 2)
        present = torch.ones_like(kept)  # (N, 2)
        if self.uses_tags:
            present = torch.stack([present[:, 0], streams.has_tags], dim=-1)  # (N, 2)
        kept = kept & present  # (N, 2)
        return torch.where(kept.any(-1, keepdim=True), kept, present).float()

    @torch.no_grad()
    def observe(self, streams):
        """Add a training batch to the statistics."""
        self.image_typicality.observe(streams.image_profile[streams.is_real])
        if self.uses_tags:
            tagged = streams.has_tags & streams.is_real  # (N,)
            self.tag_typicality.observe(streams.tag_scores[tagged])
            self.agreement.observe(torch.cat([streams.image_content, streams.tag_words], dim=-1)[tagged])
            if self.arbiter is not None and streams.question_words is not None:
                asked = torch.cat([streams.image_content, streams.question_words], dim=-1)  # (N, Dv + R)
                self.arbiter.observe(asked[streams.is_real & streams.is_asked])

    @torch.no_grad()
    def weigh(self, streams):
        """Inference weights, [N, 2]: typicality of each stream next to the other's, and blame where they disagree."""
        image = self.image_typicality(streams.image_profile)  # (N,)
        if not self.uses_tags:
            return torch.stack([image, torch.ones_like(image)], dim=-1)
        tags = self.tag_typicality(streams.tag_scores) * streams.has_tags  # (N,)
        trust = self.trust_in_image(streams)
        if trust is not None:
            image, tags = self.blame(streams, image, tags, trust)
        # What cannot be replaced is kept, however strange: 1 − (1 − w)·(the other's w).
        image, tags = 1 - (1 - image) * tags, 1 - (1 - tags) * image  # (N,), (N,)
        return torch.stack([image, tags], dim=-1)  # (N, 2)

    def trust_in_image(self, streams):
        """
        Which share of a disagreement the tags are to blame for, () or (N,); `None` blames nobody.

        A number by `image_trust`: a tagger reads the picture, not the other way round. By `question_agreement` it is
        the weight of the picture next to the question. With neither it is left to the language model, which reads both
        streams and weighs them better than one number does, see docs/architecture.md.
        """
        if self.arbiter is not None and streams.question_words is not None:
            return self.arbiter(torch.cat([streams.image_content, streams.question_words], dim=-1))  # (N,)
        return self.image_trust

    def blame(self, streams, image, tags, trust):
        """Weights [N], [N] after a disagreement of two sound streams, of which one is wrong."""
        agree = self.agreement(torch.cat([streams.image_content, streams.tag_words], dim=-1))  # (N,)
        disagreement = (1 - agree) * image * tags  # (N,)
        if self.arbiter is not None:
            disagreement = disagreement * streams.is_asked  # nobody asked, so nobody decides
        return image * (1 - disagreement * (1 - trust)), tags * (1 - disagreement * trust)
