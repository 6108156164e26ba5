"""Log-likelihood of given answers: the model's own loss, whatever the batch."""

import pytest
import torch

from poise.evaluation.generation_evaluator import answer_log_likelihoods
from poise.processing.batching.collators import TrainingCollator

pytestmark = pytest.mark.numerics

ANSWERS = ["red", "blue square", "a red circle and a blue square", "2"]


def collator_of(model, processor):
    return TrainingCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)


def test_is_the_models_loss(model_and_processor, scenes):
    model, processor = model_and_processor
    for answer in ANSWERS:
        sums, counts = answer_log_likelihoods(model, collator_of(model, processor), scenes[:1], [answer])
        batch = collator_of(model, processor)([{**scenes[0], "task": "vqa", "answers": [answer]}])
        with torch.no_grad():
            loss = model(**batch).loss.item()  # mean over the answer's tokens and the end
        assert counts == [int((batch["labels"] != -100).sum())] == [len(answer.split()) + 1]
        assert sums[0] == pytest.approx(-loss * counts[0], rel=1e-4)


def test_does_not_depend_on_the_batch(model_and_processor, scenes):
    model, processor = model_and_processor
    collator = collator_of(model, processor)
    together, _ = answer_log_likelihoods(model, collator, scenes[:4], ANSWERS)
    alone = [
        answer_log_likelihoods(model, collator, [record], [answer])[0][0]
        for record, answer in zip(scenes[:4], ANSWERS, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-4)


def test_is_the_sum_over_the_answer_and_its_end(model_and_processor, scenes):
    model, processor = model_and_processor
    collator = collator_of(model, processor)
    batch = collator([{**scenes[0], "task": "vqa", "answers": ["red"]}])
    labels = batch.pop("labels")
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(**batch, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels)).logits[0]
        else:
            logits = model(**batch).logits[0, (labels[0] != -100).nonzero()[0, 0] - 1 :]
    log_probabilities = logits.log_softmax(-1)
    red, end = processor.tokenizer.convert_tokens_to_ids(["red", "</s>"])
    expected = log_probabilities[0, red] + log_probabilities[1, end]
    sums, _ = answer_log_likelihoods(model, collator, scenes[:1], ["red"])
    assert sums[0] == pytest.approx(expected.item(), rel=1e-4)
