"""Options: reading those that are mappings, and checks that every stage makes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml

import hf_elastic_cli

from ..core.errors import UserError

# What weights may be written in.
DTYPES = ("float32", "float16", "bfloat16")


def check_dtype(value: str | None, *others: str) -> None:
    """Refuse what is neither a name in `DTYPES` nor one of the others; None is allowed.

    Raises:
        ValueError: names the value and what is allowed.
    """
    if value is not None and value not in (*others, *DTYPES):
        raise UserError(f"dtype: {value!r} is unknown; known: {', '.join((*others, *DTYPES))}")


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
            raise UserError(f"{name} must be an integer of at least {least}, got {value!r}")


def read_mapping(name: str, value: str | Mapping | None) -> dict | None:
    """An option that is a mapping in a recipe, and JSON, a JSON file or what a recipe would have on the command line.

    Raises:
        ValueError: it is none of them.
    """
    if value is None or isinstance(value, Mapping):
        return None if value is None else dict(value)
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"{name}: {value!r} is not a mapping")
    # As a path, JSON may be longer than a file name can be.
    is_inline = isinstance(value, str) and _is_inline(value)
    text = value if is_inline or not Path(value).is_file() else Path(value).read_text(encoding="utf-8")
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        if not (loaded := _flow_mapping(text)):
            raise UserError(f"{name}: {value!r} is neither a JSON mapping nor a JSON file ({error})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{name}: {value!r} is not a mapping")
    return loaded


def read_name_or_mapping(name: str, value: str | Mapping | None) -> str | dict | None:
    """An option that may also be a name, which stays as it is; the rest as by `read_mapping`, which raises."""
    is_name = isinstance(value, str) and not _is_inline(value)
    return value if is_name else read_mapping(name, value)


def _is_inline(text: str) -> bool:
    return text.lstrip().startswith("{")


def _flow_mapping(text: str) -> dict | None:
    """A mapping as recipes write it, `{logits: 0.5}`, if the text is one."""
    if not _is_inline(text):
        return None
    with suppress(yaml.YAMLError, ValueError):  # ValueError: of dates that are none
        return yaml.load(text, hf_elastic_cli.yaml_loader())
    return None
