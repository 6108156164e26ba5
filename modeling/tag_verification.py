"""Does the picture show what a tag names? A check of every tag against every place of the picture.

A tagger's invention may fit the scene and carry a high score; among true tags neither its score nor the list as a whole
looks odd. What gives it away is the picture: no place in it looks like the words. The joint statistics of pictures and
tag lists that the reliability router keeps anyway hold a linear map from mean features to words (a regression). The
mean over places commutes with it, so the map can be asked about one place: whether all words of a tag are shown
*there*, since a red square and a blue star together show no blue square. A tag's evidence is that of its best place.

How much evidence is enough is learned from the training stream's own tags. Some of these are inventions too, and lie
low; so centre and spread are read off the upper half alone. Each batch is scored with the map of earlier batches,
before the statistics have seen it.
"""

import torch
from transformers import initialization as init

from .tag_statistics import WORD_DIRECTIONS, word_directions
from .typicality import MIN_CALIBRATION, CalibratedStatistics, full_precision, gather_rows

REFIT = 1.25  # the map is fitted anew whenever the statistics have grown by a quarter
TAIL = 2.0  # spreads below the centre at which a tag is half denied: one true tag in 44, if evidence is normal
ONE_SPREAD = 0.8413  # share of a normal distribution that lies below its mean plus one standard deviation


class TagVerification(CalibratedStatistics):
    """
    Share of its score that each tag keeps.

    Args:
        vision_dim (`int`): Dv, channels of the frozen tower's patch features.
        separator_ids (`Sequence[int]`): token ids that stand between tags or around them; without any, every token
            counts as a tag.
        slope (`float`): steepness, per spread of the evidence.
    """

    def __init__(self, vision_dim, separator_ids, slope):
        super().__init__(1)
        self.separator_ids, self.slope = tuple(separator_ids or ()), slope
        as_float = {"dtype": torch.float32}
        self.register_buffer("to_words", torch.zeros(vision_dim, WORD_DIRECTIONS, **as_float))
        self.register_buffer("mean", torch.zeros(vision_dim + WORD_DIRECTIONS, **as_float))
        self.register_buffer("fitted_count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("centre_spread", torch.tensor([0.0, 1.0], **as_float))

    def init_own_weights(self, std):
        for name, buffer in self.named_buffers(recurse=False):
            init.zeros_(buffer)
            if name == "centre_spread":
                init.copy_(buffer, torch.tensor([0.0, 1.0], dtype=torch.float32))

    @torch.no_grad()
    def observe(self, joint, patches, tag_input_ids, tag_mask):
        """
        Add a training batch: patches [N, P, Dv], ids and mask [N, L]. `joint` ([`Agreement`]) has the statistics of
        mean features and tag words so far. Every process must call it, with its own (possibly no) tags.
        """
        seen = int(joint.count)
        if seen >= MIN_CALIBRATION and seen > REFIT * int(self.fitted_count):
            self._fit_map(joint)
        if int(self.fitted_count) == 0:
            return
        evidence, is_tag, _ = self.evidence(patches, tag_input_ids, tag_mask)  # (N, L) each
        self.keep(gather_rows(evidence[is_tag][:, None]))

    def _fit_map(self, joint):
        vision_dim = self.to_words.shape[0]
        with full_precision(self.to_words):
            covariance = joint.covariance()  # (Dv + R, Dv + R)
            features, crossed = covariance[:vision_dim, :vision_dim], covariance[:vision_dim, vision_dim:]
            self.to_words.copy_(torch.linalg.solve(features, crossed))
        self.mean.copy_(joint.mean)
        self.fitted_count.copy_(joint.count)

    def evidence(self, patches, tag_input_ids, tag_mask):
        """
        How well the best place of the picture shows all words of a tag.

        Returns:
            evidence [N, L] of the tags, is_tag [N, L] bool (which of these there are), and tag_of_token [N, L], the
            place of each token's tag in both, L for tokens of none.
        """
        length = tag_input_ids.shape[1]
        is_word, tag_of_token = self._tags_of_tokens(tag_input_ids, tag_mask)  # (N, L) each
        vision_mean, word_mean = self.mean.split([self.to_words.shape[0], WORD_DIRECTIONS])
        with full_precision(patches):
            places = (patches.float() - vision_mean) @ self.to_words  # (N, P, R)
            words = word_directions(tag_input_ids) - word_mean  # (N, L, R)
            shown = places @ words.mT  # (N, P, L)
        nothing = shown.new_full((*shown.shape[:2], length + 1), torch.inf)  # (N, P, L + 1)
        index = tag_of_token[:, None].expand_as(shown)  # (N, P, L)
        evidence = nothing.scatter_reduce(2, index, shown, "amin").amax(1)[:, :length]  # (N, L)
        is_tag = torch.zeros_like(nothing[:, 0], dtype=torch.bool).scatter(1, tag_of_token, is_word)  # (N, L + 1)
        return evidence, is_tag[:, :length], tag_of_token

    def _tags_of_tokens(self, tag_input_ids, tag_mask):
        """Which tokens are words of a tag [N, L], and the number of that tag [N, L], L for the others."""
        length = tag_input_ids.shape[1]
        if not self.separator_ids:
            each = torch.arange(length, device=tag_input_ids.device).expand_as(tag_input_ids)  # (N, L)
            return tag_mask, torch.where(tag_mask, each, length)
        separators = torch.tensor(self.separator_ids, device=tag_input_ids.device)  # (S,)
        between = torch.isin(tag_input_ids, separators)  # (N, L)
        is_word = tag_mask & ~between  # (N, L)
        return is_word, torch.where(is_word, between.cumsum(-1), length)

    @torch.no_grad()
    def fit(self):
        """Centre and spread of the evidence for true tags."""
        if self.calibration.is_meta or not bool(self.ready):
            return
        kept = self.kept()[:, 0]  # (C,)
        centre = kept.median()
        spread = (kept.quantile(ONE_SPREAD) - centre).clamp_min(1e-6)
        self.centre_spread.copy_(torch.stack([centre, spread]))
        self.stale = False

    def forward(self, patches, tag_input_ids, tag_mask, image_weight):
        """
        Share of its score that each tag token keeps, [N, L]. A picture denies tags only as far as it can be believed
        itself: by its own weight [N], and by showing at least one of the tags. Where it shows none of them, picture and
        list are at odds as wholes, which is for others to judge.
        """
        evidence, is_tag, tag_of_token = self.evidence(patches, tag_input_ids, tag_mask)  # (N, L) each
        centre, spread = self.centre_spread.unbind()
        shown = torch.sigmoid(self.slope * ((evidence - centre) / spread + TAIL))  # (N, L)
        believed = image_weight * torch.where(is_tag, shown, 0.0).amax(-1)  # (N,)
        kept = 1 - believed[:, None] * torch.where(is_tag, 1 - shown, 0.0)  # (N, L)
        kept = torch.nn.functional.pad(kept, (0, 1), value=1.0).gather(1, tag_of_token)  # (N, L)
        return torch.where(self.ready, kept, 1.0)
