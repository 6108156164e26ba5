"""VQA accuracy of one answer, with the normalization of the official VQA evaluation.

Source: S. Antol et al., "VQA: Visual Question Answering", ICCV 2015, section 3.3, and the evaluation code published
with the data set. Kept from that code because published figures include it: answers are normalized only where the human
answers differ among themselves, and of each answer the first 32 full stops are removed.

Not kept: there, an empty answer equals every answer that normalization empties ("the", "?"). Here an answer that comes
out empty is compared as it was written, and an empty one never matches.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The published pattern means to spare decimal points but only looks at what follows the point.
FULL_STOP = re.compile(r"\.(?!\d)")
MAX_FULL_STOPS = int(re.UNICODE)  # passed as the count in the published code
ARTICLES = frozenset(["a", "an", "the"])
NUMBER_WORDS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
NUMBER_WORDS["none"] = "0"

# Written without one of their apostrophes, these get it back. Forms that are words of their own without it are missing.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


@cache
def _contraction_of() -> dict[str, str]:
    mended = {
        word[:i] + word[i + 1 :]: word for word in CONTRACTIONS for i, character in enumerate(word) if character == "'"
    }
    # The published table asks for capitals in these after lower-casing, so they stay, and turns this one around.
    for never in ("id've", "i'dve"):
        mended.pop(never)
    return mended | {"somebody'd": "somebodyd"}


def _without_punctuation(text: str) -> str:
    glued_comma = COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        at_a_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if at_a_blank or glued_comma else " ")
    return FULL_STOP.sub("", result, count=MAX_FULL_STOPS)


def _clean(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(answer: str) -> str:
    """Official normal form: punctuation, lower case, number words, articles, contractions.

    Returns:
        `str`: may be empty ("the", "?").
    """
    words = (NUMBER_WORDS.get(word, word) for word in _without_punctuation(_clean(answer)).lower().split())
    return " ".join(_contraction_of().get(word, word) for word in words if word not in ARTICLES)


def _comparable(answer: str) -> str:
    return normalize_answer(answer) or _clean(answer).lower()


def vqa_accuracy(
    prediction: str, answers: Sequence[str] | Mapping[str, float], always_normalize: bool = False
) -> float:
    """Share of humans who would agree, in [0, 1].

    With a list of human answers: the mean over leaving one of them out of min(1, matches among the others / 3). With
    fewer than four answers that could never reach 1, so the divisor is then the number of the others. A single answer
    counts as it is, always normalized. Where several answers are right in themselves, give a mapping with score 1 each.

    With a mapping answer -> score (OK-VQA's soft labels): the score of the answer that matches, the highest of several.

    Args:
        prediction (`str`): the model's answer.
        answers (`Sequence[str]` or `Mapping[str, float]`): human answers, repeated as given, or soft scores in [0, 1].
        always_normalize (`bool`, *optional*, defaults to `False`): normalize even where all human answers are equal
            (the official code does not, so that "Yes." misses ten times "yes"). Soft scores are always normalized.

    Raises:
        ValueError: no answers, or a score outside [0, 1].
    """
    if len(answers) == 0:
        raise ValueError("answers is empty: give at least one human answer, or skip the question.")
    if isinstance(answers, Mapping):
        return _soft_accuracy(prediction, answers)
    given = _clean(prediction)
    human = [_clean(answer) for answer in answers]
    if always_normalize or len(human) == 1 or len(set(human)) > 1:
        given, human = _comparable(given), [_comparable(answer) for answer in human]
    if not given:
        return 0.0
    matches = sum(answer == given for answer in human)
    others = len(human) - 1
    if others == 0:
        return float(matches)
    needed = min(3, others)
    # Leaving out one of the matching answers leaves matches - 1, leaving out another one leaves them all.
    total = matches * min(1.0, (matches - 1) / needed) + (len(human) - matches) * min(1.0, matches / needed)
    return total / len(human)


def _soft_accuracy(prediction: str, scores: Mapping[str, float]) -> float:
    for answer, score in scores.items():
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"answers[{answer!r}]={score} must be a score in [0, 1].")
    given = _comparable(prediction)
    if not given:
        return 0.0
    return max((float(score) for answer, score in scores.items() if _comparable(answer) == given), default=0.0)
