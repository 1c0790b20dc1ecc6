"""What a format is: how a size is written, run and judged. `formats.py` lists them all."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import MissingPackageError
from ..core.modeling_elastic import ElasticPreTrainedModel
from .inputs import Inputs
from .parity import FLOAT32, Tolerance
from .scoring import HeldOut

# How an output folder may be laid out: a folder for each format; or as text-embeddings-inference and transformers.js want it.
LAYOUTS = (FOLDERS, HUB) = ("folders", "hub")
HUB_FOLDER = "onnx"

Predict = Callable[[Mapping[str, torch.Tensor]], np.ndarray]


@dataclass(frozen=True)
class Export:
    """One export in progress: what every format is written from.

    Attributes:
        view: the size as a stock module in float32 on the CPU; it shares the supernet's storage where that is of this kind.
        model: the supernet.
        subnet: a name, a subnet, or None for the full size.
        staging: the folder that becomes `output_dir`; it holds the checkpoint of the size.
        inputs: what the formats are compared on; a real batch.
        reference: the view's main output on them, as `predict` gives it.
        tokenizer: the model's, if it has one.
        options: what is set of the options of the formats.
        calibration: texts or tokenized rows that the ranges of activations are taken from, if the caller gave some.
        held_out: rows that every format is scored on, if the caller gave some.
        view_scores: what the view scores on them.
        full_scores: what the full size does.
        max_accuracy_drop: percentage points of accuracy that a format may lose on them; None is no limit.
        written: format -> its folder, for those that are complete; an int8 format takes the float graph from there.
    """

    view: PreTrainedModel
    model: ElasticPreTrainedModel
    subnet: str | Mapping | None
    staging: Path
    inputs: Inputs
    reference: np.ndarray
    tokenizer: PreTrainedTokenizerBase | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: Sequence | None = None
    held_out: HeldOut | None = None
    view_scores: Mapping[str, float] | None = None
    full_scores: Mapping[str, float] | None = None
    max_accuracy_drop: float | None = None
    written: dict[str, Path] = field(default_factory=dict)


class Format(ABC):
    """How a size is written, run and judged. A format imports the packages that it needs inside its methods.

    Attributes:
        name: what `formats` calls it; also the name of its folder.
        description: a few words for `--help`.
        packages: modules that have to be importable.
        extra: the extra of this package that installs them, such as `hf-elastic[onnx]`.
        options: fields of `ExportConfig` that it reads.
        takes_calibration: whether it reads calibration data.
        needs_calibration: whether it cannot be written without.
        in_root: whether it is written to the output folder itself.
        hub_name: what its graph is called, without the suffix, in `onnx/` of `layout="hub"`; None if it is not for that.
        is_timed: whether `load` runs it where it is meant to run; of a stand-in the latency would mislead.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "hf-elastic"
    options: ClassVar[frozenset[str]] = frozenset()
    takes_calibration: ClassVar[bool] = False
    needs_calibration: ClassVar[bool] = False
    in_root: ClassVar[bool] = False
    hub_name: ClassVar[str | None] = None
    is_timed: ClassVar[bool] = True

    @abstractmethod
    def write(self, export: Export, folder: Path) -> None:
        """Write the files into a folder, which holds the config and the tokenizer already."""

    @abstractmethod
    def load(self, export: Export, folder: Path) -> Predict:
        """Open what was written, as a function from a batch to the main output, in the shape of `Export.reference`."""

    def run(self, export: Export, folder: Path) -> np.ndarray:
        """The main output of what was written on the inputs of the export."""
        return self.load(export, folder)(export.inputs.tensors)

    def check_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to check
        """Raise UserError for options that cannot be, before a model is loaded."""

    def check(self, model: ElasticPreTrainedModel, options: Mapping[str, Any]) -> None:  # noqa: B027
        """Raise UserError for what cannot be exported of a model, before any work is done."""

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """How far `run` may be from the view with these options."""
        return FLOAT32

    def evidence(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """Further entries of `parity.json`. Raises `ParityError` if they are not good enough."""
        return {}

    def folder(self, root: Path) -> Path:
        """Where its files are written below an output folder."""
        return root if self.in_root else root / self.name

    def place(self, root: Path, layout: str) -> Path:
        """Where it is to be found below an output folder in the end: a folder, or a file in one that it shares with others."""
        return root / HUB_FOLDER / f"{self.hub_name}.onnx" if layout == HUB and self.hub_name else self.folder(root)

    def check_installed(self) -> None:
        """Raise MissingPackageError, naming the extra, if a package is missing."""
        for package in self.packages:
            if not is_installed(package):
                raise MissingPackageError(f"{self.name} needs {package}, which is not installed: run pip install '{self.extra}'")


def is_installed(package: str) -> bool:
    """Whether a module could be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # a parent package is missing
        return False


@contextlib.contextmanager
def float_folder(export: Export, name: str, write: Callable[[Export, Path], object]) -> Iterator[Path]:
    """The folder of a float format that an int8 one starts from; where it is not exported too, a temporary one.

    Args:
        export: the export.
        name: the float format.
        write: writes its graph to a folder.
    """
    if name in export.written:
        yield export.written[name]
        return
    with tempfile.TemporaryDirectory(dir=export.staging) as folder:
        write(export, Path(folder))
        yield Path(folder)
