"""What an image shows of words, and how much that speaks for image and tags being of one scene, all from frozen parts.

A training stream says which words go with which images. From the running covariance of mean patch features and mean
word embeddings of the tags follows a linear map from features to words, in closed form. The mean over places commutes
with it, so one place can be asked, too: a tag's evidence is that of the place that shows all of its words best, since a
red square and a blue star together show no blue square. A question's evidence is that of the place that best shows its
words beyond those of the mean question. Words that stand in every question drop out with the mean, and words that no
image explains are mapped to by nothing: which words of a question count need not be said by anybody.

How much evidence is much? Failures are never seen in training, but mismatches are free: what an image shows of the
*next* sample's words. Logistic regression of own against other pairs (Platt, 1999), on samples that the map was not
fitted to, turns evidence into the log odds that two things are of one scene.
"""

import torch

from .linear_product import linear_product
from .typicality import (
    MIN_CALIBRATION,
    CalibratedStatistics,
    RunningMoments,
    StreamStatistics,
    full_precision,
    gather_rows,
    held_out_by_hash,
)

REFIT = 1.25  # the map is fitted anew whenever the statistics have grown by a quarter
MAP_SHRINKAGE = 0.3  # weight of the diagonal in the joint covariance that the map comes from
MOST = 4.0  # log odds of one piece of evidence are cut off here: none alone counts for more than 55 to 1


class PairCalibration(CalibratedStatistics):
    """Log odds that evidence [...] comes from an own pair and not from another one; 0 before enough was seen."""

    def __init__(self):
        super().__init__(3)  # evidence of the own pair, of another pair, and the weight of the own one
        self.register_buffer("slope_offset", torch.zeros(2, dtype=torch.float32))

    @torch.no_grad()
    def fit(self):
        """Logistic regression on two numbers by Newton's method, with a ridge that keeps separable data finite."""
        if self.calibration.is_meta or not bool(self.ready):
            return
        own, other, weight = self.kept().double().unbind(-1)  # (C,) each
        evidence = torch.cat([own, other])  # (2C,)
        is_own = torch.cat([torch.ones_like(own), torch.zeros_like(other)])  # (2C,)
        weight = torch.cat([weight, torch.ones_like(other)])  # (2C,)
        inputs = torch.stack([evidence, torch.ones_like(evidence)], dim=-1)  # (2C, 2)
        solution, ridge = inputs.new_zeros(2), torch.eye(2, dtype=torch.float64, device=own.device)
        for _ in range(25):
            expected = torch.sigmoid(inputs @ solution)  # (2C,)
            gradient = inputs.mT @ (weight * (is_own - expected)) - ridge @ solution
            curvature = inputs.mT @ (inputs * (weight * expected * (1 - expected))[:, None]) + ridge
            solution = solution + torch.linalg.solve(curvature, gradient)
        self.slope_offset.copy_(solution)
        self.stale = False

    def forward(self, evidence):
        slope, offset = self.slope_offset.unbind()
        return torch.where(self.ready, (slope * evidence + offset).clamp(-MOST, MOST), 0.0)


class WordEvidence(StreamStatistics):
    """
    Log odds that image, tags and question are of one scene.

    Args:
        vision_dim (`int`): Dv, channels of the frozen tower's patch features.
        word_dim (`int`): R, channels of the tag encoder's word embeddings.
        separator_ids (`Sequence[int]`): token ids that stand between tags or around them; without any, every token
            counts as a tag.
    """

    def __init__(self, vision_dim, word_dim, separator_ids):
        super().__init__()
        self.vision_dim, self.separator_ids = vision_dim, tuple(separator_ids or ())
        self.pairs = RunningMoments(vision_dim + word_dim)  # mean patch, mean tag word
        self.words = RunningMoments(word_dim)  # single tag words
        self.questions = RunningMoments(word_dim)  # mean question words
        self.tags_shown, self.question_shown, self.question_named = (PairCalibration() for _ in range(3))
        as_float = {"dtype": torch.float32}
        self.register_buffer("to_words", torch.zeros(vision_dim, word_dim, **as_float))
        self.register_buffer("shown_covariance", torch.zeros(word_dim, word_dim, **as_float))
        self.register_buffer("word_precision", torch.zeros(word_dim, word_dim, **as_float))
        self.register_buffer("image_mean", torch.zeros(vision_dim, **as_float))
        self.register_buffer("fitted_count", torch.zeros((), dtype=torch.int64))
        self.neighbour = None  # patches and question of the last sample of the batch before

    # ---- training ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, patches, tags, question):
        """
        Add a training batch: patches [N, P, Dv], `tags` (word embeddings [N, L, R], ids, mask, scores [N, L]) and
        `question` (embeddings [N, Q, R], mask [N, Q]) or `None`. Every process must call it, with its own (possibly no)
        rows.
        """
        patches = patches.float()
        embedded, ids, mask, scores = tags
        is_word, _ = self.tags_of_tokens(ids, mask)  # (N, L)
        weight = is_word * scores.float()  # (N, L)
        total = weight.sum(-1, keepdim=True)  # (N, 1)
        mean_words = (weight[..., None] * embedded).sum(1) / total.clamp_min(1e-4)  # (N, R)
        content = patches.mean(1)  # (N, Dv)
        has_words, held_out = total[:, 0] > 0, held_out_by_hash(content)  # (N,), (N,)
        asked = self.question_words(question, len(patches), mean_words)  # (N, R)
        is_asked = torch.zeros_like(has_words) if question is None else question[1].any(-1)  # (N,)
        if int(self.pairs.count) >= MIN_CALIBRATION and int(self.pairs.count) > REFIT * int(self.fitted_count):
            self.fit_map()
        self._calibrate(patches, tags, asked, is_asked, held_out)
        learn = ~held_out
        self.pairs.merge(gather_rows(torch.cat([content, mean_words], dim=-1)[has_words & learn]))
        self.words.merge(gather_rows(embedded[is_word & learn[:, None]].float()))
        self.questions.merge(gather_rows(asked[is_asked & learn]))
        if len(patches):
            self.neighbour = (patches[-1:], asked[-1:])

    def _calibrate(self, patches, tags, asked, is_asked, held_out):
        """Keep what held-out samples show of their own words and of those of the sample before."""
        embedded, ids, mask, scores = tags
        if int(self.fitted_count) == 0 or len(patches) == 0:
            return
        last = self.neighbour
        if last is None:  # the first batch is a ring
            if len(patches) < 2:
                return
            last = (patches[-1:], asked[-1:])
        # The best place is what counts: images with fewer places repeat their last one.
        places = max(last[0].shape[1], patches.shape[1])
        others = torch.cat([_repeated_to(places, last[0]), _repeated_to(places, patches[:-1])])  # (N, P', Dv)
        other_asked = torch.cat([last[1], asked[:-1]])  # (N, R)
        own, is_tag, _ = self.shown(patches, tags)  # (N, L) each
        other, _, _ = self.shown(others, tags)  # (N, L)
        score_of_tag = self.score_of_tag(tags)  # (N, L)
        kept = is_tag & held_out[:, None]  # (N, L)
        self.tags_shown.keep(gather_rows(torch.stack([own[kept], other[kept], score_of_tag[kept]], dim=-1)))
        kept = is_asked & held_out  # (N,)
        ones = torch.ones_like(asked[:, 0])  # (N,)
        pairs = (self.asked_is_shown(patches, asked), self.asked_is_shown(others, asked), ones)
        self.question_shown.keep(gather_rows(torch.stack(pairs, dim=-1)[kept]))
        kept = kept & is_tag.any(-1)  # (N,)
        pairs = (self.asked_is_named(tags, asked), self.asked_is_named(tags, other_asked), ones)
        self.question_named.keep(gather_rows(torch.stack(pairs, dim=-1)[kept]))

    def fit_map(self):
        """
        Features → words: the block of the joint Gaussian's precision between the two, −Λᵥᵤ = Σ⁻¹(v|u) · A, where A is
        the regression of features on words. It says what a word adds to the image beside all other words, so it does
        not take a star for a sign of yellow where most stars are yellow.
        """
        with full_precision(self.to_words):
            joint = self.pairs.covariance(MAP_SHRINKAGE)  # (Dv + R, Dv + R)
            to_words = -torch.linalg.inv(joint)[: self.vision_dim, self.vision_dim :]  # (Dv, R)
            self.to_words.copy_(to_words)
            self.shown_covariance.copy_(to_words.mT @ joint[: self.vision_dim, : self.vision_dim] @ to_words)
            self.word_precision.copy_(torch.linalg.inv(self.words.covariance()))
        self.image_mean.copy_(self.pairs.mean[: self.vision_dim])
        self.fitted_count.copy_(self.pairs.count)

    # ---- evidence ------------------------------------------------------------------------------------------------

    def tags_of_tokens(self, ids, mask):
        """is_word [N, L] bool, and for each token the number of its tag in [0, L), or L for tokens of none, [N, L]."""
        separators = torch.tensor(self.separator_ids, dtype=ids.dtype, device=ids.device)  # (S,)
        between = torch.isin(ids, separators)  # (N, L)
        is_word = mask & ~between  # (N, L)
        # Without separators every token is a tag.
        place = between.cumsum(-1) if self.separator_ids else torch.ones_like(ids).cumsum(-1) - 1  # (N, L)
        return is_word, torch.where(is_word, place.clamp_max(ids.shape[1] - 1), ids.shape[1])

    def score_of_tag(self, tags):
        """The score of each tag, in the place of its number, [N, L]."""
        _, ids, mask, scores = tags
        _, tag_of_token = self.tags_of_tokens(ids, mask)  # (N, L)
        room = torch.zeros(len(ids), ids.shape[1] + 1, device=ids.device)  # (N, L + 1)
        return room.scatter(1, tag_of_token, scores.float())[:, :-1]

    def shown(self, patches, tags):
        """
        How well the best place shows all words of a tag, in standard deviations of what images show of each word.

        Returns:
            evidence [N, L] by number of the tag, is_tag [N, L] bool (which of these there are), tag_of_token [N, L].
        """
        embedded, ids, mask, _ = tags
        is_word, tag_of_token = self.tags_of_tokens(ids, mask)  # (N, L) each
        with full_precision(patches):
            words = embedded.float() - self.words.mean  # (N, L, R)
            shown = self._places(patches) @ words.mT / self._spread(words, self.shown_covariance)[:, None]  # (N, P, L)
        room = shown.new_full((*shown.shape[:2], shown.shape[2] + 1), torch.inf)  # (N, P, L + 1)
        index = tag_of_token[:, None].expand_as(shown)  # (N, P, L)
        evidence = room.scatter_reduce(2, index, shown, "amin").amax(1)[:, :-1]  # (N, L)
        is_tag = torch.zeros_like(room[:, 0], dtype=torch.bool).scatter(1, tag_of_token, is_word)[:, :-1]  # (N, L)
        return torch.where(is_tag, evidence, 0.0), is_tag, tag_of_token

    def question_words(self, question, num_images, like):
        """Mean word of each question, [N, R]; zero without one."""
        if question is None:
            return like.new_zeros(num_images, like.shape[-1])
        embedded, mask = question
        weight = mask.float()[..., None]  # (N, Q, 1)
        return (weight * embedded.float()).sum(1) / weight.sum(1).clamp_min(1.0)  # (N, R)

    def asked_is_shown(self, patches, asked):
        """How well the best place shows what is asked beyond the mean question, asked [N, R] → [N]."""
        asked = asked - self.questions.mean  # (N, R)
        with full_precision(patches):
            shown = (self._places(patches) * asked[:, None]).sum(-1)  # (N, P)
        return shown.amax(-1) / self._spread(asked, self.shown_covariance)

    def asked_is_named(self, tags, asked):
        """How well the best tag word fits what is asked, a cosine of whitened words, asked [N, R] → [N]."""
        embedded, ids, mask, _ = tags
        is_word, _ = self.tags_of_tokens(ids, mask)  # (N, L)
        asked = asked - self.questions.mean  # (N, R)
        words = embedded.float() - self.words.mean  # (N, L, R)
        product = (words * linear_product(asked, self.word_precision)[:, None]).sum(-1)  # (N, L)
        size = self._spread(words, self.word_precision) * self._spread(asked, self.word_precision)[:, None]  # (N, L)
        return torch.where(is_word, product / size, -1.0).amax(-1)

    def _places(self, patches):
        """Every place in the space of words, [N, P, Dv] → [N, P, R]."""
        return (patches.float() - self.image_mean) @ self.to_words

    @staticmethod
    def _spread(directions, matrix):
        """√(dᵀ M d) of directions [..., R] → [...]."""
        return (linear_product(directions, matrix) * directions).sum(-1).clamp_min(1e-12).sqrt()

    def forward(self, patches, tags, question):
        """
        Log odds of N images: tags [N, L] (does the image show each tag?), with is_tag and tag_of_token [N, L]; shown
        [N] (does it show what is asked?) and named [N] (do the tags name it?), 0 where nothing is asked.
        """
        evidence, is_tag, tag_of_token = self.shown(patches, tags)  # (N, L) each
        asked = self.question_words(question, len(patches), self.words.mean)  # (N, R)
        is_asked = torch.zeros(len(patches), device=patches.device) if question is None else question[1].any(-1).float()
        shown = self.question_shown(self.asked_is_shown(patches, asked)) * is_asked  # (N,)
        named = self.question_named(self.asked_is_named(tags, asked)) * is_asked  # (N,)
        return self.tags_shown(evidence), is_tag, tag_of_token, shown, named


def _repeated_to(places, patches):
    """Patches [N, P, Dv] → [N, places, Dv], the last one repeated."""
    missing = places - patches.shape[1]
    return patches if missing == 0 else torch.cat([patches, patches[:, -1:].expand(-1, missing, -1)], dim=1)
