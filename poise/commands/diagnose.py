"""`poise diagnose MODEL`: which modality the answers follow, by attention, by coalitions, and by the router itself."""

import argparse
import sys
from typing import Any

from poise.commands.options import add_model_options, calibration_source, check_at_least, chosen_model, end_with

PARTS = ("attention", "coalitions", "router")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise diagnose",
        description="Which modality dominates? MDI and AEI from the attention of the positions that generate; accuracy "
        "and log-likelihood with every subset of image, tags and question, with exact Shapley shares; answers where "
        "the prior is wrong; the router's weights under degradations. Ends in a verdict.",
        epilog="example: poise diagnose outputs/demo/reliability/model --samples 300",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a saved model, or a Hub repository (any image-text-to-text model)"
    )
    parser.add_argument(
        "--data",
        default="scenes:prior_broken",
        metavar="SOURCE",
        help="JSON lines of vqa records, a folder of annotated photos, or scenes:SPLIT[,name=value...] "
        "(default %(default)s, where the answer that shape suggests is always wrong)",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="default: all that the model has")
    parser.add_argument("--samples", type=int, default=300, metavar="N", help="vqa records at most (default 300)")
    parser.add_argument(
        "--baselines", nargs="+", choices=("mean", "swap"), default=["mean", "swap"], help="what takes the place of a "
        "modality: mean tokens, another sample's (default: both)",
    )  # fmt: skip
    parser.add_argument(
        "--tags",
        choices=("keep", "drop"),
        default="keep",
        help="drop: do not tell the model the records' tags; a model without a stream for them is told in words "
        "(default keep)",
    )
    parser.add_argument(
        "--calibration",
        metavar="SOURCE",
        help="records that mean tokens are taken of (default: scenes:validation for scenes, else the data itself)",
    )
    parser.add_argument(
        "--severity", type=int, default=4, metavar="N", help="of the degradations that the router is shown (default 4)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of swaps and degradations (default 0)")
    parser.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="longest answer (default 16)")
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: diagnosis/ in the model's run, else outputs/diagnosis/MODEL"
    )
    parser.add_argument("--restart", action="store_true", help="forget what the folder already holds")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="records per batch (default 64)")
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: list[str]) -> int:
    """Prints tables and the verdict. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    from poise.evaluation.data_sources import data_name, load_data_source
    from poise.evaluation.dominance.attention import AttentionDominance
    from poise.evaluation.dominance.coalitions import CoalitionDominance, players_of
    from poise.evaluation.dominance.figure import draw_dominance
    from poise.evaluation.dominance.report import (
        attention_table,
        coalition_table,
        dominance_rows,
        router_table,
        verdict,
    )
    from poise.evaluation.model_errors import UnsupportedProbe
    from poise.evaluation.probing.mean_tokens import mean_tokens
    from poise.evaluation.probing.parts import model_parts
    from poise.evaluation.robustness.router_weights import RouterByCondition, has_router
    from poise.evaluation.whole_files import write_whole
    from poise.model_loading import output_folder

    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    check_at_least(arguments, 1, "max_new_tokens")
    folder = output_folder(arguments.model, "diagnosis", arguments.output)
    progress = sys.stderr.isatty()
    options: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "restart": arguments.restart,
        "progress": progress,
    }
    with_tags = arguments.tags == "keep"
    attention = AttentionDominance(
        with_tags=with_tags, max_new_tokens=arguments.max_new_tokens, output_dir=folder / "attention", **options
    )
    coalition = CoalitionDominance(
        baselines=arguments.baselines,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        output_dir=folder / "coalitions",
        **options,
    )
    router = RouterByCondition(
        severity=arguments.severity, degradation_seed=arguments.seed, output_dir=folder / "router", **options
    )
    records = load_data_source(arguments.data, arguments.samples, "vqa")
    calibration = load_data_source(calibration_source(arguments), task="vqa")
    model, processor = chosen_model(arguments)
    parts = model_parts(model)
    coalition.with_tags = with_tags and any(records[place].get("tags") for place in range(min(len(records), 100)))
    players = players_of(parts, coalition.with_tags)
    baselines, only = list(arguments.baselines), list(arguments.only)
    try:
        parts.check_image_tokens("mean tokens or attention on the image")
    except UnsupportedProbe as error:
        baselines, only = [name for name in baselines if name != "mean"], [name for name in only if name != "attention"]
        if not baselines or not {"coalitions", "router"} & set(only):
            raise
        sys.stderr.write(f"not asked: {error}\n")
    coalition.baselines = tuple(baselines)

    scores: dict[str, dict[str, float]] = {}
    tables = []
    if "coalitions" in only:
        if "mean" in baselines:
            coalition.means = mean_tokens(
                model, processor, calibration, arguments.batch_size, progress=progress, with_tags=with_tags
            )
        scores["coalitions"] = coalition(model, processor, records)
        tables.append(coalition_table(scores["coalitions"], players))
        if parts.is_routed:  # what the same model does without its router, and without tags
            bare = CoalitionDominance(
                baselines=baselines, seed=arguments.seed, max_new_tokens=arguments.max_new_tokens, with_tags=False,
                output_dir=folder / "coalitions_without_router", **options,
            )  # fmt: skip
            if "mean" in baselines:
                settings = {"progress": progress, "with_tags": False}
                bare.means = mean_tokens(parts.vlm, processor, calibration, arguments.batch_size, **settings)
            scores["coalitions_without_router"] = bare(parts.vlm, processor, records)
            before = coalition_table(scores["coalitions_without_router"], players)
            tables[-1:] = ["with its router\n" + tables[-1], "without its router\n" + before]
    if "attention" in only:
        scores["attention"] = attention(model, processor, records)
        tables.append(attention_table(scores["attention"]))
    if "router" in arguments.only and has_router(model):
        scores["router"] = router(model, processor, records)
        tables.append(router_table(scores["router"], arguments.severity))
    measured = scores.get("coalitions"), scores.get("attention"), scores.get("router")
    sentences = verdict(*measured, players)
    found = {
        "model": arguments.model,
        "data": arguments.data,
        "settings": {name: getattr(arguments, name) for name in ("samples", "seed", "severity", "baselines")},
        "players": list(players),
        "verdict": sentences,
        **scores,
        "dominance": dominance_rows(*measured, players, data_name(arguments.data)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([*tables, "Verdict: " + " ".join(sentences)])
    write_whole(folder / "diagnosis.txt", text + "\n")
    draw_dominance(*measured, players, sentences, folder / "diagnosis.png")
    end_with(found, text, folder / "diagnosis.json", arguments.json)
    sys.stderr.write(f"numbers, image and answers are in {folder}\n")
    return 0
