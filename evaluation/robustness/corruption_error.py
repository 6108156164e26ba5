"""Corruption errors against a reference model, as ImageNet-C counts them (Hendrycks & Dietterich, 1903.12261, 4).

With E the error of a degradation c at severity s, and f the model, r the reference:

* CE = Σₛ E(f, c, s) / Σₛ E(r, c, s); mCE is its mean over degradations. Below 1 is better than the reference.
* relative CE = Σₛ (E(f, c, s) − E(f, clean)) / Σₛ (E(r, c, s) − E(r, clean)): what is lost, not what is wrong.
"""

from collections.abc import Mapping, Sequence

Scores = Mapping[str, float]


def corruption_errors(
    scores: Scores, reference: Scores, degradations: Sequence[str], severities: Sequence[int]
) -> dict[str, float]:
    """
    `mce` and `relative_mce`, and `NAME_ce`, `NAME_relative_ce` of each degradation that both have scores for.

    Args:
        scores, reference: what [`RobustnessEvaluator`] found for the model and for the reference, on the same data.
        degradations (`Sequence[str]`), severities (`Sequence[int]`): what was measured.

    A ratio whose reference makes no error, or loses nothing, is left out.

    Raises:
        ValueError: the reference lacks every one of these degradations.
    """
    found: dict[str, float] = {}
    shared = [
        name for name in degradations if all(f"{name}_{s}" in part for s in severities for part in (scores, reference))
    ]
    if not shared:
        raise ValueError(
            f"reference has none of the degradations {', '.join(degradations)} at severities "
            f"{', '.join(map(str, severities))}: measure it with the same --degradations and --severities"
        )
    for name in shared:
        own, other = (sum(1 - part[f"{name}_{s}"] for s in severities) for part in (scores, reference))
        if other > 0:
            found[f"{name}_ce"] = own / other
        own, other = (sum(part["clean"] - part[f"{name}_{s}"] for s in severities) for part in (scores, reference))
        if other > 0:
            found[f"{name}_relative_ce"] = own / other
    for mean, ending in (("mce", "_ce"), ("relative_mce", "_relative_ce")):
        values = [found[f"{name}{ending}"] for name in shared if f"{name}{ending}" in found]
        if values:
            found[mean] = sum(values) / len(values)
    return found
