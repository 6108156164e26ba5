"""A plain table of scores with their intervals, for terminals and text files."""

from collections.abc import Mapping, Sequence


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded to their widest cell, a rule below the headers; the first `left` columns left-aligned."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, rows)])


def score_table(metrics: Mapping[str, float], confidence: float = 0.95) -> str:
    """Scores, their intervals where there are any, from the flat dict of an evaluator.

    Keys that end in `_low` and `_high` are the bounds of the key before; `TASK_samples` is a whole number.
    """
    rows = []
    for name, value in metrics.items():
        if name.endswith(("_low", "_high")) and name.rsplit("_", 1)[0] in metrics:
            continue
        bounds = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = "" if None in bounds else f"{bounds[0]:.4f} – {bounds[1]:.4f}"
        rows.append((name, f"{value:.0f}" if name.endswith("_samples") else f"{value:.4f}", interval))
    return format_table(("score", "value", f"{confidence:.0%} interval"), rows)
