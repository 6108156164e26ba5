"""Corruptions of a question's words, severity 1–5: typing errors, missing words, another way to ask.

Each function takes (question, severity, rng) and returns the new text. The random numbers of a word do not depend on
the severity, so a stronger severity hits the same words and more.
"""

import re
from collections.abc import Callable

import numpy as np

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: "".join(row[max(0, i - 1) : i] + row[i + 1 : i + 2]) for row in _KEYBOARD for i, letter in enumerate(row)
}


def _mistype(word: str, kind: float, place: float) -> str:
    """One error inside `word`: a neighbouring key, two letters swapped, one left out or one doubled."""
    at = int(place * (len(word) - 1))
    error = int(kind * 4)
    if error == 0 and word[at].lower() in _NEIGHBOURS:
        return word[:at] + _NEIGHBOURS[word[at].lower()][0] + word[at + 1 :]
    if error == 1 and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if error == 2:
        return word[:at] + word[at + 1 :]
    return word[: at + 1] + word[at] + word[at + 1 :]


def _typos(question: str, severity: int, rng: np.random.Generator) -> str:
    """Words of three letters and more are mistyped with a probability; at least one at every severity."""
    rate = (0.1, 0.2, 0.35, 0.55, 0.8)[severity - 1]
    words = question.split(" ")
    u = rng.random((len(words), 3))  # (words, hit / kind / place)
    long_enough = [i for i, word in enumerate(words) if sum(letter.isalpha() for letter in word) >= 3]
    if not long_enough:
        return question
    hit = {i for i in long_enough if u[i, 0] < rate} | {min(long_enough, key=lambda i: u[i, 0])}
    return " ".join(_mistype(word, u[i, 1], u[i, 2]) if i in hit else word for i, word in enumerate(words))


def _dropped_words(question: str, severity: int, rng: np.random.Generator) -> str:
    """Words are left out with a probability; at least one is, and at least one word stays."""
    rate = (0.1, 0.2, 0.3, 0.45, 0.6)[severity - 1]
    words = question.split(" ")
    u = rng.random(len(words))
    real = [i for i, word in enumerate(words) if any(letter.isalnum() for letter in word)]
    if len(real) < 2:
        return question
    by_luck = sorted(real, key=lambda i: u[i])
    gone = {i for i in real if u[i] < rate} | {by_luck[0]}
    gone.discard(by_luck[-1])
    return " ".join(word for i, word in enumerate(words) if i not in gone)


# Pattern of the question, then two ways to ask the same: one plain, one with rarer words.
_REWRITES = (
    (r"what colou?r is (.+)", "tell me the color of {0}", "which hue does {0} have"),
    (r"what shape is (.+)", "tell me the shape of {0}", "which form does {0} have"),
    (r"how many (.+) are there(.*)", "count the {0}{1}", "what is the number of {0} to be seen{1}"),
    (r"where is (.+)", "tell me the place of {0}", "in which part of the picture would you find {0}"),
    (r"is there (.+)", "do you see {0}", "would you say that the picture contains {0}"),
    (r"are there (.+)", "do you see {0}", "would you say that the picture contains {0}"),
    (r"what (?:is|are) (.+)", "tell me what you know about this : {0}", "could you name {0}"),
)
_POLITE = ("please answer : {0}", "look at the picture : {0}", "a question for you : {0}")
_INDIRECT = (
    "i would like to know something : {0}",
    "my friend could not see it , so {0}",
    "think first and then say : {0}",
)


def _paraphrase(question: str, severity: int, rng: np.random.Generator) -> str:
    """1: a polite opening. 2: other words. 3: both. 4: rarer words, opening. 5: rarer words, an indirect frame."""
    choice = int(rng.integers(0, 3))
    body = question.strip().rstrip("?").rstrip()
    mark = question.strip()[len(body) :]
    if severity >= 2:
        for pattern, plain, rare in _REWRITES:
            found = re.fullmatch(pattern, body, flags=re.IGNORECASE)
            if found:
                body = (rare if severity >= 4 else plain).format(*found.groups())
                break
    if severity in (1, 3, 4):
        body = _POLITE[choice].format(body)
    if severity == 5:
        body = _INDIRECT[choice].format(body) + " , if you can"
    return body + mark


QUESTION_CORRUPTIONS: dict[str, Callable[[str, int, np.random.Generator], str]] = {
    "typos": _typos,
    "dropped_words": _dropped_words,
    "paraphrase": _paraphrase,
}
