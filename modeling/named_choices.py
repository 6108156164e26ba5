"""A configuration field that takes one of several names: the error that says which."""

from difflib import get_close_matches


def check_choice(argument, value, choices):
    """Raise a `ValueError` that names `argument`, `value` and the nearest of `choices`."""
    if value in choices:
        return
    near = get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument}={value!r} is not known: choose one of {', '.join(map(repr, choices))}.{hint}")
