"""What the commands share: recipes with overrides, and one-line errors."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..core.errors import UserError


class _OneLineParser(HfArgumentParser):
    def error(self, message: str) -> None:
        """One line, not the usage of two hundred options."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(types: Sequence[type], argv: Sequence[str], command: str, description: str, fixed: Mapping | None = None) -> tuple:
    """Read `[recipe.yaml] --key value ...` into dataclasses; the command line wins over the recipe.

    Args:
        types: dataclasses, one for each result.
        argv: arguments after the command.
        command: its name, for messages.
        description: for `--help`.
        fixed: defaults of this command that differ from those of the dataclasses.

    Raises:
        ValueError: the recipe has a key that no dataclass has.
        FileNotFoundError: there is no such recipe.
        SystemExit: bad arguments (status 2) or `--help` (0).
    """
    parser = _OneLineParser(
        list(types),
        prog=f"hf-elastic {command}",
        description=f"{description} Usage: hf-elastic {command} [recipe.yaml] [--key value ...]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    arguments = list(argv)
    recipe = read_recipe(arguments.pop(0), types) if arguments and not arguments[0].startswith("-") else {}
    defaults = {**(fixed or {}), **recipe}
    for action in parser._actions:
        if action.dest in defaults:
            action.required = False  # a value from the recipe satisfies a required option
            if action.nargs in ("+", "*") and isinstance(defaults[action.dest], str):
                defaults[action.dest] = [defaults[action.dest]]  # `key: value`, as `--key value` is a list of one
    parser.set_defaults(**defaults)
    *results, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    if rest:
        parser.error(f"unknown argument {rest[0]!r}; see hf-elastic {command} --help")
    return tuple(results)


def read_yaml(path: str, label: str = "") -> dict:
    """The mapping in a YAML file; `label` comes before its path in errors.

    Raises:
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{label}{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{label}{path} must be a mapping of options")
    return recipe


def read_recipe(path: str, types: Sequence[type]) -> dict:
    """The keys of a YAML recipe.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a mapping, or has a key that the command does not know.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no recipe {path!r}; give a YAML file, or options as --key value")
    recipe = read_yaml(path)
    known = {field.name for one in types for field in dataclasses.fields(one) if field.init}
    for key in recipe:
        if key not in known:
            raise UserError(f"{path}: unknown option {key!r}; see the command's --help")
    return recipe


def fail(message: str) -> int:
    """Print a one-line error; return the exit status of bad input."""
    print(f"hf-elastic: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
