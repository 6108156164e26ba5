"""`poise rank-encoders`: which vision and text encoder, at which layers, are worth aligning."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import logging as transformers_logging

TABLE_FILE = "ranking.json"
PLOT_FILE = "ranking.png"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise rank-encoders",
        description="Compare frozen vision and text encoders on paired data, layer by layer (unbiased linear CKA).",
        epilog="An encoder is a Hub id, a folder or tiny:NAME; random:NAME is the same architecture without training.",
    )
    parser.add_argument("--vision", nargs="+", default=["tiny:vision"], metavar="ENCODER", help="vision encoders")
    parser.add_argument("--text", nargs="+", default=["tiny:tag_encoder"], metavar="ENCODER", help="text encoders")
    parser.add_argument("--data", default="scenes:validation", metavar="SOURCE", help="images with captions")
    parser.add_argument("--samples", type=int, default=1024, metavar="N", help="images, at most (default 1024)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images at once (default 128)")
    parser.add_argument("--output", default="outputs/rank-encoders", metavar="FOLDER", help="for table and plot")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, ... (default cpu)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Prints the best layers of every combination; writes all of them, and a heat map."""
    arguments = build_parser().parse_args(list(argv))
    from poise.evaluation.whole_files import write_whole
    from poise.model_loading import chosen_device
    from poise.training.align.caption_pairs import load_pairs
    from poise.training.curation.encoder_ranking import best_by_pair, check_batches, draw_ranking, rank_encoders
    from poise.training.curation.encoder_states import TextStates, VisionStates

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # Everything that a slip could spoil comes before the encoders.
    device, folder = chosen_device(arguments.device), Path(arguments.output)
    pairs = load_pairs(arguments.data, None)
    check_batches(pairs, arguments.samples, arguments.batch_size)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {arguments.output!r} is a file: name a folder")
    vision = {name: VisionStates(name, device) for name in arguments.vision}
    text = {name: TextStates(name, device) for name in arguments.text}
    ranking = rank_encoders(vision, text, pairs, arguments.samples, arguments.batch_size)
    best = best_by_pair(ranking)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"data": arguments.data, "best": asdict(best[0]), "pairs": [asdict(pair) for pair in ranking]}
    write_whole(folder / TABLE_FILE, json.dumps(content, indent=1) + "\n")
    draw_ranking(ranking, folder / PLOT_FILE)
    width = max(len(name) for name in (*vision, *text, "vision encoder"))
    lines = [f"{'vision encoder':<{width}}  layer  {'text encoder':<{width}}  layer    CKA"]
    for pair in best:
        names = f"{pair.vision:<{width}}  {pair.vision_layer:>5}  {pair.text:<{width}}  {pair.text_layer:>5}"
        lines.append(f"{names}  {pair.cka:.3f}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(
        f"\nbest: poise align --vision {best[0].vision} --vision_feature_layer {best[0].vision_layer} "
        f"--text {best[0].text} --text_feature_layer {best[0].text_layer}\n"
    )
    sys.stderr.write(f"table in {folder / TABLE_FILE}, plot in {folder / PLOT_FILE}\n")
    return 0
