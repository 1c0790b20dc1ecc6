"""The formats that a size can be written in: one table, which `export_subnet` and the command line read.

A format is a `Format` that a module of its own registers when it is imported; `hf_elastic.export` imports them all, in the order
in which they are written, so that a format may start from the files of one before it. Such a module imports the packages that
it needs inside its functions: which are missing is checked before any work is done.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import MissingPackageError, UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from .parity import Tolerance, default_tolerance
from .scoring import HeldOut


@dataclass(frozen=True)
class Inputs:
    """What an export is compared on.

    Attributes:
        tensors: a padded batch, as the model takes it: `int64[batch, sequence]` each.
        record: the same for `parity.json`: texts, or shapes.
    """

    tensors: dict[str, torch.Tensor]
    record: list | dict


@dataclass(frozen=True)
class Export:
    """One export in progress: what every format is written from.

    Attributes:
        view: the size as a module that shares the supernet's storage.
        model: the supernet.
        subnet: a name, a subnet, or None for the full size.
        staging: the folder that becomes `output_dir`; it holds the checkpoint of the size.
        inputs: what the formats are compared on; a real batch.
        reference: the view's main output on them, as `predict` gives it.
        tokenizer: the model's, if it has one.
        options: what the caller set of the options of the formats.
        written: format -> its folder, for those that are complete; an int8 format takes the float graph from there.
        held_out: rows that every format is scored on, if the caller gave some.
        view_scores: what the view scores on them.
        max_accuracy_drop: percentage points of accuracy that a format may lose on them; None is no limit.
    """

    view: PreTrainedModel
    model: ElasticPreTrainedModel
    subnet: str | Mapping | None
    staging: Path
    inputs: Inputs
    reference: np.ndarray
    tokenizer: PreTrainedTokenizerBase | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    written: dict[str, Path] = field(default_factory=dict)
    held_out: HeldOut | None = None
    view_scores: Mapping[str, float] | None = None
    max_accuracy_drop: float | None = None


@dataclass(frozen=True)
class Format:
    """How a size is written, run and judged.

    Args:
        name: what `formats` calls it; also the name of its folder.
        description: a few words for `--help`.
        write: writes the files into a folder, which holds the config and the tokenizer already.
        run: the main output of what was written on the inputs of the export, in the shape of `Export.reference`.
        packages: modules that have to be importable.
        extra: the extra of this package that installs them, such as `hf-elastic[onnx]`.
        options: names of the keyword arguments of `export_subnet` that it reads.
        tolerance: how far `run` may be from the view, or a function of the options that says so; None, or if that returns None:
            the default of the name.
        evidence: further entries of `parity.json`, such as an accuracy; it raises `ParityError` if they are not good enough.
        check_options: given the options, raises ValueError for those that cannot be, before a model is loaded.
        check: given model, subnet and options, raises ValueError for what cannot be exported, before any work is done.
        in_root: whether it is written to the output folder itself.
        load: opens what was written, with a number of threads or the runtime's own (None), as a function from a batch to the main
            output; with it the format can be scored and timed.
        is_timed: whether `load` runs it where it is meant to run; of a stand-in the latency would mislead.
    """

    name: str
    description: str
    write: Callable[[Export, Path], None]
    run: Callable[[Export, Path], np.ndarray]
    packages: tuple[str, ...] = ()
    extra: str = "hf-elastic"
    options: frozenset[str] = frozenset()
    tolerance: Tolerance | Callable[[Mapping[str, Any]], Tolerance | None] | None = None
    evidence: Callable[[Export, Path], Mapping[str, Any]] | None = None
    check_options: Callable[[Mapping[str, Any]], None] | None = None
    check: Callable[[ElasticPreTrainedModel, Any, Mapping[str, Any]], None] | None = None
    in_root: bool = False
    load: Callable[[Export, Path, int | None], Callable[[Mapping], np.ndarray]] | None = None
    is_timed: bool = True

    def limits(self, options: Mapping[str, Any]) -> Tolerance:
        """The tolerance that applies with these options."""
        chosen = self.tolerance(options) if callable(self.tolerance) else self.tolerance
        return chosen or default_tolerance(self.name)

    def folder(self, root: Path) -> Path:
        """Where its files are below an output folder."""
        return root if self.in_root else root / self.name

    def check_installed(self) -> None:
        """Raise ImportError, naming the extra, if a package is missing."""
        for package in self.packages:
            if not _is_installed(package):
                raise MissingPackageError(f"{self.name} needs {package}, which is not installed: run pip install '{self.extra}'")


FORMATS: dict[str, Format] = {}
UNLIMITED = 2**31 - 1


def longest_sequence(model: PreTrainedModel) -> int:
    """The most tokens that a stock model takes: its positions, less those that RoBERTa's kind of table keeps for padding.

    `UNLIMITED` where positions have no table and the config names no limit (Transformer-XL).
    """
    reserved = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None
    ]
    return getattr(model.config, "max_position_embeddings", UNLIMITED) - max(reserved, default=0)


def register(one: Format) -> Format:
    """Add a format to the table.

    Raises:
        ValueError: the name is taken by another.
    """
    if FORMATS.setdefault(one.name, one) is not one:
        raise UserError(f"a format of the name {one.name!r} exists already")
    return one


def select(names: Sequence[str], options: Mapping[str, Any] | None = None) -> list[Format]:
    """The formats of these names, in the order in which they are written, checked to be possible here.

    Raises:
        ValueError: an unknown name, none at all, an option that none of them takes, or a value that one of them refuses.
        ImportError: a package is missing; the message names the extra.
    """
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise UserError(f"formats: {', '.join(map(repr, unknown))} is unknown; known: {', '.join(FORMATS)}")
    if not names:
        raise UserError(f"formats: none given; known: {', '.join(FORMATS)}")
    chosen = [one for name, one in FORMATS.items() if name in names]
    for option in options or {}:
        if not any(option in one.options for one in chosen):
            takers = [one.name for one in FORMATS.values() if option in one.options]
            raise UserError(f"{option}: {_who_takes(takers)}; formats: {', '.join(names)}")
    for one in chosen:
        one.check_installed()
        if options is not None and one.check_options is not None:
            one.check_options(options)
    return chosen


def _who_takes(takers: Sequence[str]) -> str:
    return f"an option of {', '.join(takers)}" if takers else "no format has this option"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # a parent package is missing
        return False
