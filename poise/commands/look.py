"""`poise look MODEL IMAGE QUESTION`: one answer about one image, and a page on what it rests on."""

import argparse
import sys
from pathlib import Path

from poise.commands.options import add_model_options, check_at_least, chosen_model


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise look",
        description="Answer a question about an image, and write one HTML page: for each word of the answer where on "
        "the image attention and the effect of ablation lie, the answer without the image, without the question's "
        "words and on degraded images, and what the logit lens reads in each patch. For any image-text-to-text model.",
        epilog='example: poise look outputs/demo/published photo.jpg "what color is the star ?"',
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model or a run, or a Hub repository")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument(
        "--tags", default="", metavar="NAME[:SCORE],...", help="what a tagger saw, scores from 0 to 1 (default 1)"
    )
    parser.add_argument("--output", metavar="FILE", help="the page (default: outputs/look/MODEL-IMAGE.html)")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default 32)")
    parser.add_argument(
        "--cells", type=int, default=64, metavar="N", help="parts of the image taken away one by one (default 64)"
    )
    parser.add_argument("--severity", type=int, default=4, metavar="N", help="of the degradations, 1 to 5 (default 4)")
    parser.add_argument("--top-k", type=int, default=3, metavar="N", help="words a patch and depth (default 3)")
    add_model_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Prints the answer and where the page is. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    from poise.commands.ask import check_model_name, check_question
    from poise.model_loading import short_name
    from poise.processing.image_loading import open_image
    from poise.processing.tags import parse_tags

    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    check_question(arguments.question)
    check_at_least(arguments, 1, "max_new_tokens", "cells", "top_k")
    if not 1 <= arguments.severity <= 5:
        raise ValueError(f"--severity is {arguments.severity}; write 1 to 5.")
    tags, image = parse_tags(arguments.tags), open_image(arguments.image)
    page = Path(arguments.output or f"outputs/look/{short_name(arguments.model, Path(arguments.image).stem)}.html")
    if page.is_dir():
        raise ValueError(f"--output {str(page)!r} is a folder: name an HTML file.")
    check_model_name(arguments.model)
    from transformers.utils import logging

    from poise.evaluation.interpretability.look import look
    from poise.evaluation.interpretability.look_page import look_page
    from poise.evaluation.whole_files import write_whole

    logging.disable_progress_bar()
    model, processor = chosen_model(arguments)
    found = look(
        model,
        processor,
        image,
        arguments.question,
        tags,
        name=arguments.model,
        max_new_tokens=arguments.max_new_tokens,
        severity=arguments.severity,
        cells=arguments.cells,
        top_k=arguments.top_k,
        progress=sys.stderr.isatty(),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, look_page(found))
    print(found.answer)
    for note in found.notes:
        sys.stderr.write(f"not asked: {note}\n")
    sys.stderr.write(f"the page is {page}\n")
    return 0
