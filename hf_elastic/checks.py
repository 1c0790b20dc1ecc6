"""Checks of options that every stage makes."""

from __future__ import annotations


def check_integers(least: int, *, or_none: bool = False, **values: object) -> None:
    """Refuse values that are no whole numbers of `least` or more; True and False are none.

    Args:
        least: the smallest that is allowed.
        or_none: whether None is allowed too.
        values: by the name of the option.

    Raises:
        ValueError: names the option, its value and what is allowed.
    """
    for name, value in values.items():
        if or_none and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
