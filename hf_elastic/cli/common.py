"""What the commands share: recipes with overrides."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from typing import get_args, get_origin, get_type_hints

from transformers import HfArgumentParser
from transformers.utils import ADAPTER_CONFIG_NAME

import hf_elastic_cli

from ..core.errors import UserError
from ..utils.folders import check_place
from .data import adapter_base

# Options that name files and folders which are read, and those that name what is written.
READ = (
    "model", "model_config", "tokenizer", "tokenizer_dataset", "teacher", "dataset", "data_dir", "space", "subnets",
    "calibration", "keep_vocabulary_of", "frontier", "latency_profile", "limits", "lora", "corpus", "index", "queries",
    "data", "ranker", "run", "texts", "profile", "trace",
)  # fmt: skip
WRITTEN = ("output_dir", "output", "work_dir")


class _OneLineParser(HfArgumentParser):
    def error(self, message: str) -> None:
        """One line, not the usage of two hundred options."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse(types: Sequence[type], argv: Sequence[str], command: str, fixed: Mapping | None = None) -> tuple:
    """Read `[recipe.yaml] --key value ...` into dataclasses; the command line wins over the recipe.

    Help and the keys of the recipe are the business of `hf_elastic_cli`.

    Args:
        types: dataclasses, one for each result.
        argv: arguments after the command.
        command: its name, for messages.
        fixed: defaults of this command that differ from those of the dataclasses.

    Raises:
        UserError: a value is refused; transformers' own dataclasses raise plain errors for that.
        OSError: there is no such recipe.
        SystemExit: bad arguments (status 2).
    """
    parser = _OneLineParser(list(types), prog=f"hf-elastic {command}", usage=argparse.SUPPRESS, allow_abbrev=False)
    arguments = list(argv)
    recipe = read_yaml(arguments.pop(0), as_text=True) if arguments and not arguments[0].startswith("-") else {}
    defaults = dict(fixed or {})
    takes_many = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    # transformers has options that are one text on the command line, and a list in Python.
    hints = {name: hint for one in types for name, hint in get_type_hints(one).items()}
    lists = {name for name, hint in hints.items() if any(get_origin(part) is list for part in get_args(hint))}
    for key, value in reversed(recipe.items()):
        if isinstance(value, list) and value and key in takes_many:
            arguments = [f"--{key}", *value, *arguments]
        elif isinstance(value, list) and key in takes_many | lists:
            defaults[key] = value
        elif value is None:  # as where it is not given, but for an option that may be nothing
            defaults |= {key: None} if type(None) in get_args(hints.get(key)) else {}
        else:
            arguments.insert(0, f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    parser.set_defaults(**defaults)
    try:
        *results, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    except (ValueError, ImportError, TypeError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    if rest:
        parser.error(f"unknown argument {rest[0]!r}; see hf-elastic {command} --help")
    check_written(vars(parser.parse_known_args(arguments)[0]), argv[0] if recipe else None)
    return tuple(results)


def check_written(options: Mapping[str, object], recipe: str | None) -> None:
    """Refuse an output that is or contains something that the command reads.

    Args:
        options: as they were given, by name.
        recipe: the file that they come from.

    Raises:
        UserError: names both.
    """
    inputs = {name: value for name, value in options.items() if name in READ and value is not None}
    if (model := options.get("model")) and os.path.isfile(os.path.join(model, ADAPTER_CONFIG_NAME)):
        inputs["the base of the adapter"] = adapter_base(model)
    if options.get("data_dir") is not None and options.get("dataset") is not None:
        inputs["dataset"] = os.path.join(str(options["data_dir"]), str(options["dataset"]))
    for name in WRITTEN:
        if options.get(name) is not None:
            check_place(name, options[name], {**inputs, "the recipe": recipe})


def read_yaml(path: str, label: str = "", *, as_text: bool = False) -> dict:
    """The mapping in a YAML file; `label` comes before its path in errors; for `as_text` see `hf_elastic_cli`.

    Raises:
        UserError: it is not YAML, or not a mapping.
    """
    try:
        return hf_elastic_cli.read_yaml(path, as_text=as_text)
    except ValueError as error:
        raise UserError(f"{label}{error}") from error
