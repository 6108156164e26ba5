"""Caption tokens. The expected words of SENTENCES were printed by Stanford's PTBTokenizer (CoreNLP 3.4.1)."""

import json
import shutil
import string
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.evaluation.metrics.ptb_tokenizer import DROPPED, ptb_tokenize

SENTENCES = [
    ("A man rides a horse.", "a man rides a horse"),
    ("Two dogs, one black-and-white, chase a ball!", "two dogs one black-and-white chase a ball"),
    ("The dog's ball isn't red; it's blue.", "the dog 's ball is n't red it 's blue"),
    ("They can't see the boys' kite and won't look.", "they ca n't see the boys kite and wo n't look"),
    (
        '"Stop!" says a sign (a small one) at the corner.',
        "stop says a sign -lrb- a small one -rrb- at the corner",
    ),
    ("A bus [number 42] waits -- its driver's asleep...", "a bus -lsb- number 42 -rsb- waits its driver 's asleep"),
    ("She cannot reach the shelf, he's gonna help.", "she can not reach the shelf he 's gon na help"),
    ('A sign reads "NO PARKING 8am-5pm" near the 7-eleven.', "a sign reads no parking 8am-5pm near the 7-eleven"),
    (
        "Mr. Green waits at 10:30 a.m. on Main St. with a T-shirt.",
        "mr. green waits at 10:30 a.m. on main st. with a t-shirt",
    ),
    (
        "A slice costs $2.50 and 1/2 of the pizza is 50% off.",
        "a slice costs $ 2.50 and 1/2 of the pizza is 50 % off",
    ),
    ("men and/or women w/ umbrellas & hats", "men and/or women w / umbrellas & hats"),
    ("a jack-o'-lantern by the o'clock tower of the '90s", "a jack-o lantern by the o'clock tower of the '90s"),
    (
        "A plate of crème brûlée at 90° on a 20-year-old table",
        "a plate of crème brûlée at 90 ° on a 20-year-old table",
    ),
    (
        "rock 'n' roll band at the M&M's store in the U.S.",
        "rock 'n' roll band at the m&m 's store in the u.s.",
    ),
    ("wow!! what a photo :) of a cat...and a dog", "wow !! what a photo :-rrb- of a cat and a dog"),
    ("the cat.The dog sits, e.g., on a hat., or a mat", "the cat.the dog sits e.g. on a hat. or a mat"),
    ("y'all gotta see 1,000 geese on the no. 5 bus", "y' all got ta see 1,000 geese on the no. 5 bus"),
    ("A “curly” kite – the child’s – doesn’t fly", "a curly kite the child 's does n't fly"),
    ("the 1st 3-D movie @ the park #sunny", "the 1st 3-d movie @ the park #sunny"),
    ("an email: dog@park.org or www.park.org/dogs.", "an email dog@park.org or www.park.org/dogs"),
    ("  spaces\tand tabs  \n", "spaces and tabs"),
    ("", ""),
]


@pytest.mark.parametrize(("caption", "expected"), SENTENCES)
def test_known_sentences(caption, expected):
    assert ptb_tokenize(caption) == expected.split()


def test_fakecap_has_the_published_number_of_tokens(shared_folder):
    folder = shared_folder / "metric_reference" / "coco_val2014_fakecap"
    captions = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    published = json.loads((folder / "published.json").read_text())
    tokens = [ptb_tokenize(item["caption"]) for item in captions]
    # What BLEU counts: n-grams of the hypotheses, n = 1..4.
    guesses = [sum(max(0, len(words) - n + 1) for words in tokens) for n in range(1, 5)]
    assert len(captions) == 1000
    assert guesses == published["bleu_stats"]["guess"] == [9893, 8893, 7893, 6893]


def test_agrees_with_the_java_program(shared_folder, tmp_path):
    package = find_spec("pycocoevalcap")  # a package without __init__.py, so it has places but no origin
    if package is None or not package.submodule_search_locations or shutil.which("java") is None:
        pytest.skip("needs Java and the package pycocoevalcap, whose jar is the reference")
    jar = Path(list(package.submodule_search_locations)[0], "tokenizer", "stanford-corenlp-3.4.1.jar")
    captions = [caption for caption, _ in SENTENCES]
    subset = json.loads(
        (shared_folder / "metric_reference/coco_val2014_fakecap/subset_with_references.json").read_text()
    )
    captions += [reference for item in subset["items"] for reference in item["references"]]
    for line in (shared_folder / "data" / "captions.jsonl").read_text().splitlines():
        captions += json.loads(line)["captions"]
    captions = [" ".join(caption.split("\n")) for caption in captions]
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(captions), encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run([*command, "-preserveLines", "-lowerCase", str(file)], capture_output=True, check=True)
    lines = done.stdout.decode().split("\n")
    assert len(captions) > 1500
    for caption, line in zip(captions, lines, strict=False):
        assert ptb_tokenize(caption) == [word for word in line.split() if word not in DROPPED], caption


@given(st.text(alphabet=string.printable + "’“”–…½é£", max_size=40))
def test_any_text_gives_lower_case_words_without_blanks(caption):
    for word in ptb_tokenize(caption):
        assert word and word not in DROPPED
        assert word == word.lower() and word.split() == [word]


def test_long_text_takes_linear_time():
    # Each of these once was, or could be, a pattern that backtracks: they must all end at once.
    for piece in ("a-", "a.", "a/", "<a ", "'", "1,", "ab", "n't"):
        assert len(ptb_tokenize(piece * 5000)) <= 10_000
