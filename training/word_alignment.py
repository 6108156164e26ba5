"""The soft prompt's first words: a projection that starts by saying to the language model what the tags say.

A random projection from the tag encoder into the language model speaks gibberish, and thousands of steps go into
learning a dictionary that exists already: both backbones know the same words. So the projection starts as the ridge
regression from the tag encoder's features of words in lists of tags to the language model's own embeddings of those
words. Nothing is trained, and no picture is needed.
"""

import random

import torch
from transformers import PreTrainedModel

from poise.processing import PoiseProcessor, Tag
from poise.processing.tag_tokens import tokenize_tags

NUM_LISTS = 512
TAGS_PER_LIST = 4
MOST_WORDS = 4096
RIDGE = 1e-3  # of the mean squared feature


def word_targets(model: PreTrainedModel, processor: PoiseProcessor) -> dict[int, torch.Tensor]:
    """The language model's embedding (D,) of every whole word in the tag encoder's vocabulary, by token id.

    A word that the language model spells in several pieces gets their mean, as a first guess.
    """
    special = set(processor.tag_tokenizer.all_special_ids)
    vocabulary = {
        token: index
        for token, index in processor.tag_tokenizer.get_vocab().items()
        if index not in special and (token.isalpha() or token == ",")
    }
    words = sorted(vocabulary, key=vocabulary.__getitem__)[: 4 * MOST_WORDS]
    # A leading space: inside a sentence is where byte-pair vocabularies keep their whole words.
    spelled = processor.tokenizer([" " + word for word in words], add_special_tokens=False)["input_ids"]
    table = model.get_input_embeddings().weight.detach()  # (V, D)
    unknown = processor.tokenizer.unk_token_id
    pairs = [(vocabulary[word], ids) for word, ids in zip(words, spelled, strict=True) if ids and unknown not in ids]
    pairs.sort(key=lambda pair: len(pair[1]))
    return {index: table[ids].float().mean(0) for index, ids in pairs[:MOST_WORDS] if len(ids) <= 3}


@torch.no_grad()
def align_words(model: PreTrainedModel, processor: PoiseProcessor, seed: int = 0) -> float:
    """
    Set the projection of a dynamic soft prompt to the ridge regression described above.

    Args:
        model: a Poise model with `soft_prompt_type="dynamic"` and pooling "tokens" or "mean", which keep words apart or
            average them; queries have no words to start from.
        processor ([`PoiseProcessor`]): made for it.
        seed (`int`, *optional*, defaults to 0): draws the lists of words.

    Returns:
        Share of the variance of the words' embeddings that the projection explains.

    Raises:
        ValueError: another prompt, or fewer shared words than there are features to fit.
    """
    config = model.config
    if config.soft_prompt_type != "dynamic" or config.soft_prompt_pooling == "queries":
        raise ValueError(
            f"align_words needs soft_prompt_type='dynamic' with soft_prompt_pooling='tokens' or 'mean', not "
            f"{config.soft_prompt_type!r} with {config.soft_prompt_pooling!r}: set align_words=false"
        )
    targets = word_targets(model, processor)
    if len(targets) < 16:
        raise ValueError(
            f"align_words found {len(targets)} words that both tokenizers know: set align_words=false here"
        )
    features, wanted = _features_and_targets(model, processor, targets, seed)  # (n, Dt), (n, D)
    centre, mean = features.mean(0), wanted.mean(0)
    centred, rest = features - centre, wanted - mean
    gram = centred.mT @ centred  # (Dt, Dt)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    weight = torch.linalg.solve(gram, centred.mT @ rest).mT  # (D, Dt)
    projection = model.model.soft_prompt.projection
    projection.weight.copy_(weight)
    projection.bias.copy_(mean - weight @ centre)
    return float(1 - (rest - centred @ weight.mT).square().sum() / rest.square().sum())


def _features_and_targets(model, processor, targets, seed):
    draw = random.Random(seed)
    words = [processor.tag_tokenizer.convert_ids_to_tokens(index) for index in targets]
    words = [word for word in words if word != ","]
    lists = [
        [Tag(" ".join(draw.sample(words, draw.choice((1, 2)))), 1.0) for _ in range(TAGS_PER_LIST)]
        for _ in range(NUM_LISTS)
    ]
    with_scores = model.config.tag_score_encoding == "text"
    batch = {
        name: torch.from_numpy(rows)
        for name, rows in tokenize_tags(lists, processor.tag_tokenizer, with_scores).items()
    }
    features, wanted = [], []
    for start in range(0, NUM_LISTS, 64):
        ids, mask, scores = (batch[name][start : start + 64].to(model.device) for name in
                             ("tag_input_ids", "tag_attention_mask", "tag_scores"))  # fmt: skip
        encoded = model.model.soft_prompt.encode(model.model.tag_encoder, ids, mask.bool(), scores)  # (N, L, Dt)
        for row, place in zip(*torch.where(mask.bool()), strict=True):
            index = int(ids[row, place])
            if index in targets:
                features.append(encoded[row, place].float())
                wanted.append(targets[index])
    return torch.stack(features), torch.stack(wanted)
