"""Draws the architecture: `python docs/figures/draw_architecture.py` writes `docs/figures/architecture.png`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

IMAGE, TAGS, WORDS, ROUTER, INK, QUIET = "#2563eb", "#b45309", "#475569", "#047857", "#0f172a", "#64748b"
FROZEN, TRAINED = "#eef2f7", "#ffffff"
HEIGHT = 0.92


def box(axes, x, y, width, title, detail, color, trained, height=HEIGHT):
    """A module around (x, y): white with a firm edge where it is trained, grey and dashed where it is frozen."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.14",
            facecolor=TRAINED if trained else FROZEN, edgecolor=color, linewidth=2.0 if trained else 1.4,
            linestyle="-" if trained else (0, (4, 2.5)),
        )
    )  # fmt: skip
    axes.text(x, y + 0.15, title, ha="center", va="center", fontsize=11.5, color=INK, weight="bold")
    axes.text(x, y - 0.2, detail, ha="center", va="center", fontsize=9, color=QUIET)


def arrow(axes, start, end, color, label="", lift=0.16, bend=0.0):
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=13, linewidth=1.7, color=color, shrinkA=0, shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
        )
    )  # fmt: skip
    if label:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + lift)
        axes.text(*middle, label, ha="center", va="center", fontsize=8.5, color=color)


def draw() -> Figure:
    figure = Figure(figsize=(12.4, 4.9), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 12.4)
    axes.set_ylim(0, 4.9)
    axes.set_axis_off()

    top, middle, bottom = 4.05, 2.55, 1.05
    axes.text(0.18, top, "image", fontsize=11.5, color=IMAGE, va="center", weight="bold")
    axes.text(0.18, middle, "tags\n+ scores", fontsize=11.5, color=TAGS, va="center", weight="bold")
    axes.text(0.18, bottom, "question", fontsize=11.5, color=WORDS, va="center", weight="bold")

    box(axes, 2.35, top, 1.75, "vision tower", "SigLIP, CLIP, DINOv2 …", IMAGE, trained=False)
    box(axes, 4.95, top, 1.6, "projector", "MLP or aggregator", IMAGE, trained=True)
    box(axes, 2.35, middle, 1.75, "tag encoder", "BERT, MiniLM …", TAGS, trained=False)
    box(axes, 4.95, middle, 1.6, "soft prompt", "K tokens from the tags", TAGS, trained=True)
    box(axes, 2.35, bottom, 1.75, "embeddings", "of the language model", WORDS, trained=False)

    # The router stands between both streams.
    centre = (top + middle) / 2
    box(axes, 7.6, centre, 1.85, "", "", ROUTER, trained=True, height=top - middle + HEIGHT)
    axes.text(7.6, centre + 0.62, "information router", ha="center", fontsize=11, color=INK, weight="bold")
    axes.text(
        7.6, centre - 0.1, "who can be trusted?\na failing stream fades,\nthe other one stands in",
        ha="center", va="center", fontsize=9.2, color=ROUTER, linespacing=1.35,
    )  # fmt: skip
    axes.text(7.6, centre - 0.86, "gate · channel · reliability", ha="center", fontsize=8.5, color=QUIET)

    box(axes, 10.45, middle, 1.95, "language model", "causal or seq2seq, + LoRA", INK, trained=False)
    axes.text(10.45, bottom + 0.02, "answer", ha="center", va="center", fontsize=11.5, color=INK, weight="bold")

    arrow(axes, (0.95, top), (1.46, top), IMAGE)
    arrow(axes, (1.05, middle), (1.46, middle), TAGS)
    arrow(axes, (1.1, bottom), (1.46, bottom), WORDS)
    arrow(axes, (3.24, top), (4.13, top), IMAGE, "N × P × Dv")
    arrow(axes, (3.24, middle), (4.13, middle), TAGS, "N × L × Dt")
    arrow(axes, (5.77, top), (6.65, top), IMAGE, "N × P × D")
    arrow(axes, (5.77, middle), (6.65, middle), TAGS, "N × K × D")
    arrow(axes, (8.54, top), (9.75, middle + 0.5), IMAGE, bend=-0.18)
    axes.text(9.2, top + 0.02, "image tokens", fontsize=8.5, color=IMAGE, va="center")
    arrow(axes, (8.54, middle), (9.45, middle), TAGS, "prompt")
    arrow(axes, (3.24, bottom), (9.75, middle - 0.5), WORDS, bend=0.16)
    axes.text(5.6, 0.62, "B × T × D", fontsize=8.5, color=WORDS, ha="center")
    arrow(axes, (10.45, middle - 0.48), (10.45, bottom + 0.24), INK)

    legend = 0.24
    for x, trained, text in ((3.75, True, "trained"), (5.0, False, "frozen")):
        axes.add_patch(
            FancyBboxPatch(
                (x, legend - 0.09), 0.32, 0.18, boxstyle="round,pad=0,rounding_size=0.05", edgecolor=QUIET,
                facecolor=TRAINED if trained else FROZEN, linewidth=1.6 if trained else 1.2,
                linestyle="-" if trained else (0, (4, 2.5)),
            )
        )  # fmt: skip
        axes.text(x + 0.42, legend, text, fontsize=9, color=QUIET, va="center")
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("architecture.png"), dpi=150, metadata={"Software": None})
