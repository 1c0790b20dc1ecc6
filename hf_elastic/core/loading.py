"""Loading a checkpoint with errors that say what is wrong: which folder, which file, which tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig

from .errors import MismatchError, UserError


def check_path(name: str | os.PathLike | None) -> None:
    """Raise for a missing folder before it is taken for the name of a repository on the Hub.

    Args:
        name: what a user gave to `from_pretrained`; `owner/name` and `name` may be on the Hub, anything else is a path.

    Raises:
        UserError: it is neither text nor a path.
        FileNotFoundError: it looks like a path and does not exist.
    """
    if name is None:
        return
    if not isinstance(name, (str, os.PathLike)):
        raise UserError(f"a checkpoint is a Hub id or a folder, not a {type(name).__name__}")
    text = os.fspath(name)
    looks_like_a_path = isinstance(name, os.PathLike) or text.startswith((".", "~", os.sep)) or re.search(r"\\|/.*/|/$", text)
    if looks_like_a_path and not os.path.exists(text):
        raise FileNotFoundError(f"there is no checkpoint folder {text!r} (seen from {os.getcwd()!r})")


def load_config(name: str | os.PathLike, **kwargs) -> PretrainedConfig:
    """The config of a checkpoint.

    Raises:
        UserError: its model type is missing or unknown, or its config class refuses a value.
        OSError: no such checkpoint, or no `config.json` in it.
    """
    check_path(name)
    try:
        return AutoConfig.from_pretrained(name, **kwargs)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the config of {os.fspath(name)!r} cannot be used: {error}") from error


def load_checkpoint(load: Callable[..., Any], name: str | os.PathLike | None, *args, **kwargs) -> Any:
    """Call a `from_pretrained`, and say in one line which file or tensor is to blame if the weights do not fit.

    Raises:
        MismatchError: a tensor has another shape than the config says.
        OSError: a weights file is truncated or not a safetensors file.
    """
    try:
        return load(name, *args, **kwargs)
    except SafetensorError as error:
        raise OSError(f"the weights in {os.fspath(name)!r} cannot be read, the file is truncated or damaged: {error}") from error
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        found = "; ".join(_mismatches(load, name, str(error), *args, **kwargs))
        raise MismatchError(
            f"the weights in {os.fspath(name)!r} do not fit its config: {found} (mismatched sizes; with "
            "ignore_mismatched_sizes=True these are made anew)"
        ) from error


def _mismatches(load: Callable[..., Any], name: str | os.PathLike | None, error: str, *args, **kwargs) -> list[str]:
    """Load again, ignoring wrong shapes, to learn which tensors have one: neither release says it all in its error."""
    _, info = load(name, *args, **{**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True})
    keys = sorted(info["mismatched_keys"])
    if all(isinstance(key, str) for key in keys):  # transformers 4.57: names here, the first shape in the error
        return [", ".join(keys), error.rpartition("size mismatch ")[2].strip()]
    return [f"{key} has the shape {tuple(stored)}, expected {tuple(expected)}" for key, stored, expected in keys]
