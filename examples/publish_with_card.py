# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise"]
# ///
"""Publish a model with a card, its results and its code, after a check that it loads where Poise is not installed.

    python examples/publish_with_card.py outputs/own_vlm --repo user/name            # writes and checks the folder
    python examples/publish_with_card.py outputs/own_vlm --repo user/name --upload   # and uploads it

A run of `poise sft` brings recipe and results along by itself: `poise publish RUN --repo user/name`.
"""

import argparse

from poise import PoiseForConditionalGeneration, PoiseProcessor
from poise.evaluation.data_sources import load_data_source
from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.evaluation.intervals import Score
from poise.hub_cards import CardData, EvaluationRow, push_to_hub, write_publishable_folder

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--repo", required=True)
parser.add_argument("--data", default="scenes:test,size=100")
parser.add_argument("--output", default="outputs/published")
parser.add_argument("--upload", action="store_true")
arguments = parser.parse_args()

model = PoiseForConditionalGeneration.from_pretrained(arguments.model).eval()
processor = PoiseProcessor.from_pretrained(arguments.model)
scores = GenerationEvaluator(task="vqa")(model, processor, load_data_source(arguments.data, task="vqa"))

card = CardData(license="apache-2.0")
name = "vqa_accuracy"
score = Score.read(scores, name)
card.evaluation.append(EvaluationRow("clean", name, score.value, score.low, score.high))
folder = write_publishable_folder(model, processor, arguments.output, card, repository=arguments.repo)
print(f"{folder} loads without Poise; its card is README.md")
if arguments.upload:
    print(push_to_hub(model, processor, arguments.repo, card_data=card))
