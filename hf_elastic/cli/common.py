"""What the commands share: recipes with overrides."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from transformers import HfArgumentParser

import hf_elastic_cli

from ..core.errors import UserError


class _OneLineParser(HfArgumentParser):
    def error(self, message: str) -> None:
        """One line, not the usage of two hundred options."""
        self.exit(2, f"{self.prog}: error: {message}\n")


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
    recipe = read_yaml(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else {}
    defaults = {**(fixed or {}), **recipe}
    for action in parser._actions:
        if action.dest in defaults:
            action.required = False  # a value from the recipe satisfies a required option
            if action.nargs in ("+", "*") and isinstance(defaults[action.dest], str):
                defaults[action.dest] = [defaults[action.dest]]  # `key: value`, as `--key value` is a list of one
    parser.set_defaults(**defaults)
    try:
        *results, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    except (ValueError, ImportError) as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    if rest:
        parser.error(f"unknown argument {rest[0]!r}; see hf-elastic {command} --help")
    return tuple(results)


def read_yaml(path: str, label: str = "") -> dict:
    """The mapping in a YAML file; `label` comes before its path in errors.

    Raises:
        UserError: it is not YAML, or not a mapping.
    """
    try:
        return hf_elastic_cli.read_yaml(path)
    except ValueError as error:
        raise UserError(f"{label}{error}") from error
