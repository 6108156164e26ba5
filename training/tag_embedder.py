"""Tags and captions in one space: the model that the tag-encoder stage trains.

An image's tags take exactly the way that they take into a dynamic soft prompt with mean pooling
(`modeling.soft_prompt`): same line of text, same score encodings. A caption is read by the same encoder and averaged
over its tokens. Embeddings have unit length, so a distance says the same as a cosine.
"""

import torch
from torch import nn

from poise.modeling.soft_prompt import LOWEST_SCORE, MeanPooling, ScoreEmbedding
from poise.training.triplet_loss import triplet_margin_loss


class TagEmbedder(nn.Module):
    """
    Args:
        encoder (`PreTrainedModel`): BERT-like; its pooler, if any, is left as it is.
        score_encoding (`str`): how scores enter: `"text"`, `"embedding"`, `"attention_bias"` (see [`PoiseConfig`]).
        margin, p (`float`): of the triplet loss.
        negatives (`str`): `"random"` or `"semi_hard"`.
    """

    def __init__(
        self, encoder: nn.Module, score_encoding: str, margin: float = 1.0, p: float = 2.0, negatives: str = "random"
    ):
        super().__init__()
        self.encoder, self.score_encoding = encoder, score_encoding
        self.margin, self.p, self.negatives = margin, p, negatives
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler.requires_grad_(False)  # nothing reads it; processes would wait for its gradient
        dim = encoder.config.hidden_size
        self.score_embedding = ScoreEmbedding(dim) if score_encoding == "embedding" else None
        if self.score_embedding is not None:
            nn.init.zeros_(self.score_embedding.linear.weight)  # starts with the inputs of the pretraining
            nn.init.zeros_(self.score_embedding.linear.bias)
        self.pooling = MeanPooling()

    def embed_tags(
        self, tag_input_ids: torch.Tensor, tag_attention_mask: torch.Tensor, tag_scores: torch.Tensor
    ) -> torch.Tensor:
        """Unit vectors of N images' tags, three times (N, L) → (N, D)."""
        words = self.encoder.get_input_embeddings()(tag_input_ids)  # (N, L, D)
        if self.score_embedding is not None:
            words = words + self.score_embedding(tag_scores).to(words.dtype)  # (N, L, D)
        states = self.encoder(inputs_embeds=words, attention_mask=tag_attention_mask).last_hidden_state  # (N, L, D)
        log_scores = None
        if self.score_encoding == "attention_bias":
            log_scores = tag_scores.clamp_min(LOWEST_SCORE).log()  # (N, L)
        pooled = self.pooling(states, tag_attention_mask.bool(), log_scores)[:, 0]  # (N, D)
        return nn.functional.normalize(pooled, dim=-1)  # (N, D)

    def embed_captions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Unit vectors of M captions, twice (M, L) → (M, D)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (M, L, D)
        return nn.functional.normalize(self.pooling(states, attention_mask.bool())[:, 0], dim=-1)  # (M, D)

    def forward(
        self,
        tag_input_ids: torch.Tensor,
        tag_attention_mask: torch.Tensor,
        tag_scores: torch.Tensor,
        caption_input_ids: torch.Tensor,
        caption_attention_mask: torch.Tensor,
        caption_owner: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """
        Loss of one batch of triplets, in its batch.

        Args:
            tag_input_ids, tag_attention_mask, tag_scores (B, L): anchors, as `tokenize_tags` makes them.
            caption_input_ids, caption_attention_mask (M, L'): captions; an image with several has their mean as its
                positive.
            caption_owner (M,): row of the anchor whose image a caption describes.
        """
        anchors = self.embed_tags(tag_input_ids, tag_attention_mask, tag_scores)  # (B, D)
        captions = self.embed_captions(caption_input_ids, caption_attention_mask)  # (M, D)
        own = caption_owner == torch.arange(len(anchors), device=caption_owner.device)[:, None]  # (B, M)
        positives = nn.functional.normalize(own.to(captions.dtype) @ captions, dim=-1)  # (B, D)
        loss = triplet_margin_loss(anchors, positives, captions, ~own, self.negatives, self.margin, self.p)
        return {"loss": loss}
