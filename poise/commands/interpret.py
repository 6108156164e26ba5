"""`poise interpret MODEL`: where does the model keep what it sees? Logit lens, token ablation, attention knockout and
concepts over scenes or task records with boxes; numbers as JSON, images as PNG, lens and concepts as HTML pages.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.commands.ask import check_model_name
from poise.commands.options import add_model_options, calibration_source, check_at_least, chosen_model, end_with

STUDIES = ("lens", "ablation", "knockout", "concepts")
BY_DEFAULT = STUDIES[:3]
FORMS = ("generative", "polling", "vqa")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise interpret",
        description="Where does the model keep what it sees? Reads visual tokens through the logit lens, replaces the "
        "tokens of objects, blocks attention in windows of layers, finds concepts in the states of image tokens.",
        epilog="example: poise interpret outputs/demo/reliability/model --samples 200 --tags drop",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a saved model, or a Hub repository (any image-text-to-text model)"
    )
    parser.add_argument(
        "--data",
        default="scenes:prior_broken",
        metavar="SOURCE",
        help="JSON lines of task records with boxes, a folder of annotated photos, or scenes:SPLIT[,name=value...] "
        "(default scenes:prior_broken, where a right colour cannot come from the shape)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=STUDIES, default=list(BY_DEFAULT), help="default: all but concepts"
    )
    parser.add_argument("--samples", type=int, default=200, metavar="N", help="records at most (default 200)")
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=list(FORMS), help="how ablation asks (default: all)"
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        help="how lens and knockout ask (default: vqa, or polling where no record asks of a box)",
    )
    parser.add_argument(
        "--tags",
        choices=("keep", "drop"),
        default="keep",
        help="drop: do not tell the model the tags, which name objects too (default keep)",
    )
    lens = parser.add_argument_group("logit lens")
    lens.add_argument("--pictures", type=int, default=8, metavar="N", help="images on the page (default 8)")
    lens.add_argument("--top-k", type=int, default=5, metavar="N", help="words a token and layer (default 5)")
    lens.add_argument("--words", nargs="+", metavar="WORD", help="words to map (default: those of the object's name)")
    ablation = parser.add_argument_group("token ablation")
    ablation.add_argument(
        "--buffers",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="patches around the object (default 0 1 2)",
    )
    ablation.add_argument(
        "--replacement", choices=("mean", "zero"), default="mean", help="what stands in for a token (default mean)"
    )
    ablation.add_argument(
        "--calibration",
        metavar="SOURCE",
        help="images that the mean token is taken of (default: scenes:validation for scenes, else the data itself)",
    )
    ablation.add_argument(
        "--calibration-pictures", type=int, default=500, metavar="N", help="how many of them at most (default 500)"
    )
    knockout = parser.add_argument_group("attention knockout")
    knockout.add_argument(
        "--window", type=int, metavar="N", help="layers blocked at a time (default: a quarter of them)"
    )
    knockout.add_argument(
        "--layers",
        nargs="+",
        metavar="FIRST-LAST",
        help="windows by their layers, counted from 0, in place of --window",
    )
    knockout.add_argument("--buffer", type=int, default=1, metavar="N", help="patches around the object (default 1)")
    concepts = parser.add_argument_group("concepts")
    concepts.add_argument("--concepts", type=int, default=16, metavar="N", help="how many (default 16)")
    concepts.add_argument("--depth", type=int, metavar="N", help="states before layer N (default: two thirds of them)")
    concepts.add_argument("--before", metavar="MODEL", help="also: what became of the concepts of this model in MODEL")
    parser.add_argument("--output", metavar="FOLDER", help="default: outputs/interpret/MODEL")
    parser.add_argument("--restart", action="store_true", help="forget what the folder already holds")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="records per batch (default 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random tokens (default 0)")
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: list[str]) -> int:
    """Prints what was found. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    from poise.evaluation.data_sources import load_data_source
    from poise.evaluation.interpretability.attention_knockout import AttentionKnockout
    from poise.evaluation.interpretability.lens_study import study_lens
    from poise.evaluation.interpretability.objects import records_with_objects
    from poise.evaluation.interpretability.report import (
        ablation_table,
        draw_ablation,
        draw_knockout,
        knockout_table,
        lens_table,
    )
    from poise.evaluation.interpretability.token_ablation import TokenAblation, mean_image_token
    from poise.evaluation.model_errors import UnsupportedProbe
    from poise.evaluation.probing.parts import model_parts
    from poise.evaluation.whole_files import write_whole
    from poise.model_loading import short_name

    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    counted = ("samples", "pictures", "calibration_pictures", "window", "top_k", "concepts", "batch_size")
    check_at_least(arguments, 1, *counted)
    windows = None if arguments.layers is None else [read_window(text) for text in arguments.layers]
    folder = Path(arguments.output or f"outputs/interpret/{short_name(arguments.model)}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file: name a folder.")
    for name in (arguments.model, *([] if arguments.before is None else [arguments.before])):
        check_model_name(name)
    with_tags, progress = arguments.tags == "keep", sys.stderr.isatty()
    records, offered = records_with_objects(load_data_source(arguments.data), arguments.samples)
    form = arguments.form or ("polling" if offered and "vqa" not in offered else "vqa")
    forms = [name for name in arguments.forms if name in offered]
    unasked = _unasked(arguments, form, forms, offered)
    if set(arguments.only) <= set(unasked):
        raise ValueError("; ".join(unasked.values()))
    options = {"batch_size": arguments.batch_size, "restart": arguments.restart, "progress": progress}
    knockout = AttentionKnockout(
        window=arguments.window,
        windows=windows,
        form=form,
        buffer=arguments.buffer,
        with_tags=with_tags,
        output_dir=folder / "attention_knockout",
        **options,
    )
    ablation = TokenAblation(
        forms=forms or arguments.forms,
        buffers=arguments.buffers,
        with_tags=with_tags,
        seed=arguments.seed,
        output_dir=folder / "token_ablation",
        **options,
    )
    calibration = load_data_source(calibration_source(arguments))
    model, processor = chosen_model(arguments)
    parts = model_parts(model)
    if "knockout" in arguments.only:
        knockout.check_windows(parts)
    folder.mkdir(parents=True, exist_ok=True)

    found: dict[str, Any] = {"model": arguments.model, "data": arguments.data, "settings": _settings(arguments)}

    def lens() -> str:
        found["logit_lens"] = study_lens(
            model,
            processor,
            records,
            folder,
            form=form,
            images=arguments.pictures,
            words=arguments.words,
            top_k=arguments.top_k,
            with_tags=with_tags,
            progress=progress,
        )
        return lens_table(found["logit_lens"])

    def ablate() -> str:
        if arguments.replacement == "mean":
            ablation.replacement = mean_image_token(
                model, processor, calibration, with_tags, arguments.batch_size, arguments.calibration_pictures, progress
            )
        metrics = found["token_ablation"] = ablation(model, processor, records)
        draw_ablation(metrics, ablation.forms, ablation.buffers, folder / "token_ablation.png")
        return ablation_table(metrics, ablation.forms, ablation.buffers)

    def knock_out() -> str:
        metrics = found["attention_knockout"] = knockout(model, processor, records)
        draw_knockout(metrics, knockout.pairs, folder / "attention_knockout.png")
        return knockout_table(metrics, knockout.pairs)

    def concepts() -> str:
        found["concepts"], table = study_concepts(arguments, model, processor, records, folder, with_tags, progress)
        return table

    tables: list[str] = []
    refused: dict[str, UnsupportedProbe] = {}
    for name, study in zip(STUDIES, (lens, ablate, knock_out, concepts), strict=True):
        if name in arguments.only and name not in unasked:
            try:
                tables.append(study())
            except UnsupportedProbe as error:
                refused.setdefault(str(error), error)
            else:  # what one study found is not lost with the next
                write_whole(folder / "interpret.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if not tables:
        raise next(iter(refused.values()))
    for line in [*dict.fromkeys(unasked[name] for name in arguments.only if name in unasked), *refused]:
        sys.stderr.write(f"not asked: {line}\n")
    end_with(found, "\n\n".join(tables), folder / "interpret.json", arguments.json)
    sys.stderr.write(f"numbers, images and the page are in {folder}\n")
    return 0


def study_concepts(
    arguments: argparse.Namespace,
    model: Any,
    processor: Any,
    records: Any,
    folder: Path,
    with_tags: bool,
    progress: bool,
) -> tuple[dict[str, Any], str]:
    """What the concepts are and find, and a table of it; the page is written."""
    from poise.evaluation.interpretability.concepts import (
        concept_words,
        find_concepts,
        overlap,
        patch_states,
        shifts,
        steering_effects,
    )
    from poise.evaluation.interpretability.concepts_page import concepts_page
    from poise.evaluation.probing.parts import model_parts
    from poise.evaluation.probing.prompt_reading import read_prompts
    from poise.evaluation.whole_files import write_whole
    from poise.model_loading import load_model

    options = {"with_tags": with_tags, "progress": progress}
    states = patch_states(model, processor, records, arguments.depth, **options)
    own = find_concepts(states.states, arguments.concepts, arguments.seed)
    parts = model_parts(model)
    prompts = read_prompts(parts, processor, [states.images[0]], ["?"])
    words = concept_words(prompts, processor, own, states.depth)
    rows: list[dict[str, Any]] = [{"words": some} for some in words]
    if states.depth < len(parts.layers):
        for row, effect in zip(rows, steering_effects(prompts, own, states.depth), strict=True):
            row["steering"] = float(effect)
    if arguments.before is not None:
        earlier, its_processor = load_model(
            arguments.before, arguments.device, arguments.dtype, trust_remote_code=arguments.trust_remote_code
        )
        theirs = patch_states(earlier, its_processor, records, states.depth, **options)
        former = find_concepts(theirs.states, arguments.concepts, arguments.seed)
        for row, shift in zip(rows, shifts(theirs, states, former, arguments.seed), strict=True):
            row["shift of the former model's"] = " ".join(f"{name} {value:.2f}" for name, value in shift.items())
    result: dict[str, Any] = {"depth": states.depth, "error": own.error, "concepts": rows}
    lines = [f"concepts before layer {states.depth}, {100 * own.error:.0f} % of the variance left over"]
    for number, row in enumerate(rows):
        told = [f"steering {row['steering']:.2f}"] if "steering" in row else []
        told += [row[name] for name in row if name.startswith("shift")]
        lines.append(f"{number + 1:>3}  {', '.join(word.strip() for word in row['words']):<44}{'  '.join(told)}")
    if states.labels:
        result["overlap"] = found = overlap(states, arguments.concepts, arguments.seed)
        lines.append(f"{'average precision on known objects':<40}{'concepts':>9}{'random':>8}{'chance':>8}")
        for word, scores in [*found["words"].items(), ("mean", found)]:
            lines.append(f"{word:<40}" + "".join(f"{scores[name]:>8.2f}" for name in ("concepts", "random", "chance")))
    write_whole(folder / "concepts.html", concepts_page(arguments.model, states, own, rows))
    return result, "\n".join(lines)


def _unasked(arguments: argparse.Namespace, form: str, forms: Sequence[str], offered: Sequence[str]) -> dict[str, str]:
    """Study → why it can ask nothing of these records."""
    if not offered:
        reason = (
            f"data={arguments.data!r} holds no record with a box, which token ablation and attention knockout need: "
            "give grounding records, or vqa records with a bbox"
        )
        return {"ablation": reason, "knockout": reason}
    unasked = {}
    can = f"the records with boxes of data={arguments.data!r} can be asked by {', '.join(offered)}"
    if not forms:
        unasked["ablation"] = f"--forms {' '.join(arguments.forms)}: {can}"
    if form not in offered:
        unasked["knockout"] = f"--form {form}: {can}"
    return unasked


def read_window(text: str) -> tuple[int, int]:
    """ "8-15" or "8" as (first, last) layer.

    Raises:
        ValueError: it is neither, or ends before it begins.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ValueError(f"--layers holds {text!r}; write windows as FIRST-LAST, such as 8-15.")
    return int(match[1]), int(match[2] or match[1])


def _settings(arguments: argparse.Namespace) -> Mapping[str, Any]:
    left_out = ("model", "data", "output", "restart", "device", "json", "trust_remote_code", "batch_size")
    return {name: value for name, value in vars(arguments).items() if name not in left_out}
