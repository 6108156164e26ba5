"""
Questions as they are published: VQA v2, OK-VQA, A-OKVQA, POPE, HallusionBench, MMStar, conversations; JSON and tables.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .json_lines import RowError
from .record_images import coco_file_name
from .task_record import PLACEHOLDER

Rows = Sequence[Mapping[str, Any]]


def okvqa(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Records of OK-VQA, or of anything in VQA v2's form: all annotators' answers, repeats included.

    VQA accuracy is computed from the ten answers themselves, so no scores are needed beside them.

    Args:
        document: the questions file and the annotations file, in any order, as a list of the two; or rows of a table
            on the Hub, with `answers` as texts or as objects.
        split (`str`, *optional*): not used, the files are one split each.
    """
    files = [document] if isinstance(document, Mapping) else document if isinstance(document, list) else []
    if files and all(isinstance(part, Mapping) for part in files) and any("questions" in part for part in files):
        yield from _vqa_files(files)
        return
    for row in document:
        image_id = row.get("image_id", row.get("id_image", row["question_id"]))
        image = row.get("image") or coco_file_name(image_id, "")
        yield _record("okvqa", row["question_id"], image, image_id, row["question"], _answers(row.get("answers")))


def aokvqa(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Records of A-OKVQA: direct answers, and in the metadata the choices and which of them is right.

    Args:
        document: the published list, or rows of a table on the Hub (whose `direct_answers` may be a list written out as
            text). Questions whose answers are withheld (the test split) give no record.
        split (`str`, *optional*): only entries of this split, where they name one.
    """
    for row in document:
        if split is not None and row.get("split") not in (None, split):
            continue
        direct = row.get("direct_answers")
        answers = _answers(ast.literal_eval(direct) if isinstance(direct, str) else direct)
        choices, right = row.get("choices"), row.get("correct_choice_idx")
        if not answers and choices and right is not None:
            answers = [choices[right]]
        image_id = row.get("image_id", row["question_id"])
        image = row.get("image") or coco_file_name(image_id, "")
        record = _record("aokvqa", row["question_id"], image, image_id, row["question"], answers)
        if choices and right is not None:
            record["metadata"].update(choices=list(choices), correct_choice_idx=int(right))
        yield record


def pope(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Records of POPE: questions answered yes or no.

    Args:
        document: the published lines (`text`, `label`), or rows of a table on the Hub (`question`, `answer`).
        split (`str`, *optional*): only this `category` (random, popular, adversarial), where rows name one.
    """
    for row in document:
        category = row.get("category")
        if split is not None and category not in (None, split):
            continue
        image = row["image"]
        name = row.get("image_source") or image
        question = row.get("question") or row.get("text")
        answer = row.get("answer") or row.get("label")
        record = _record("pope", row["question_id"], image, name, question, _answers([answer]))
        if category is not None:
            record["id"] = f"pope-{category}-{row['question_id']}"
            record["metadata"]["category"] = category
        yield record


def conversations(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Records of visual instruction data: one for each question that is answered.

    Every question stands alone in its record, without the turns before it; a system message is left out.

    Args:
        document: rows with `conversations` as LLaVA writes them (`from`: human or gpt, `value`), or with `messages` as
            chat templates read them (`role`, `content`), their image in `image`, in `images`, or among the content.
        split (`str`, *optional*): not used.

    Raises:
        RowError: turns that do not alternate, or are none.
    """
    for number, row in enumerate(document):
        name = str(row.get("id", row.get("question_id", number)))
        field = "conversations" if row.get("conversations") else "messages"
        if not isinstance(row[field], Sequence) or isinstance(row[field], str):
            raise RowError(field, f"{row[field]!r} is no list of turns; mend or leave the row out.")
        turns = [_turn(turn, f"{field}[{place}]") for place, turn in enumerate(row[field])]
        images = [image for _, _, own in turns for image in own]
        outside = row.get("images") or row.get("image") or []
        images += outside if isinstance(outside, list) else [outside]
        talk = [(role, text) for role, text, _ in turns if role != "system"]
        pairs = list(zip(talk[::2], talk[1::2], strict=False))
        if any((asked, answered) != ("user", "assistant") for (asked, _), (answered, _) in pairs):
            raise RowError(field, "questions and answers do not take turns; mend or leave the row out.")
        for place, ((_, question), (_, answer)) in enumerate(pairs):
            record = _record("chat", name, images or None, name, question, [answer])
            yield {**record, "id": name if len(pairs) == 1 else f"{name}-{place}"}


ROLES = {"human": "user", "gpt": "assistant"}  # as LLaVA calls them


def _turn(turn: Any, field: str) -> tuple[str, str, list[Any]]:
    """(role, text without placeholders, images) of one message."""
    if not isinstance(turn, Mapping):
        raise RowError(field, f"{turn!r} is no turn with a role and a text; mend or leave the row out.")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not all(map(_is_part, parts)):
        raise RowError(field, f"{content!r} is no text and no list of parts; mend or leave the row out.")
    texts = [part["text"] for part in parts if part.get("type") == "text"]
    images = [next((part[key] for key in ("image", "path", "url") if part.get(key)), None)
              for part in parts if part.get("type") == "image"]  # fmt: skip
    text = " ".join(texts).replace(PLACEHOLDER, "").strip()
    return ROLES.get(str(role), str(role)), text, [image for image in images if image is not None]


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and (part.get("type") != "text" or isinstance(part.get("text"), str))


def hallusionbench(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Records of HallusionBench: yes or no about a figure, its altered versions, or without any figure.

    Args:
        document: the published list, or rows of a table on the Hub.
        split (`str`, *optional*): only this `category` (VD, VS).
    """
    for row in document:
        if split is not None and row["category"] != split:
            continue
        names = ("category", "subcategory", "set_id", "figure_id", "question_id")
        place = {name: str(row[name]) for name in names}
        has_figure = str(row.get("visual_input")) != "0"
        # Asked without a figure a list names none; a table has its column all the same.
        image = row.get("image") or (row.get("filename") if has_figure else None)
        image = image.removeprefix("./") if isinstance(image, str) else image
        answer = {"1": "yes", "0": "no"}.get(str(row["gt_answer"]))
        figure, key = "-".join(place[name] for name in names[:4]), "-".join(place.values())
        record = _record("hallusionbench", key, image, figure, row["question"], _answers([answer] if answer else []))
        record["metadata"] |= {**place, "has_figure": has_figure}
        yield record


def mmstar(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Records of MMStar: questions with their options in them, answered by a letter.

    Args:
        document: rows of the published table.
        split (`str`, *optional*): only this `category`.
    """
    for row in document:
        if split is not None and row["category"] != split:
            continue
        record = _record("mmstar", row["index"], row["image"], row["index"], row["question"], _answers([row["answer"]]))
        record["metadata"] |= {name: row[name] for name in ("category", "l2_category") if name in row}
        yield record


def _vqa_files(documents: Rows) -> Iterator[dict[str, Any]]:
    """Questions and annotations are two files, tied by `question_id`."""
    questions = next(part for part in documents if "questions" in part)
    answers = {
        annotation["question_id"]: annotation
        for part in documents
        if "annotations" in part
        for annotation in part["annotations"]
    }
    if not answers:
        raise ValueError("okvqa needs two files: give the annotations (with the answers) beside the questions.")
    subset = questions.get("data_subtype", "")
    for question in questions["questions"]:
        found = _answers(answers.get(question["question_id"], {}).get("answers"))
        image = coco_file_name(question["image_id"], subset)
        yield _record("okvqa", question["question_id"], image, question["image_id"], question["question"], found)


def _answers(found: Any) -> list[str]:
    return [answer["answer"] if isinstance(answer, Mapping) else str(answer) for answer in found or []]


def _record(
    source: str, question_id: Any, image: Any, image_id: Any, question: Any, answers: list[str]
) -> dict[str, Any]:
    metadata = {"source": source, "image_id": str(image_id), "question_id": question_id}
    return {
        "id": f"{source}-{question_id}",
        "image": image,
        "task": "vqa",
        "question": question,
        "answers": answers,
        "metadata": metadata,
    }
