"""OpenVINO IR as formats of `export_subnet`: float32, int8 weights, and int8 with calibration data."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...graphs.exporters import PACKAGES
from ...graphs.openvino import EXTRA, IR
from ..calibration import calibration_rows, check_calibration
from ..formats import Export, Format, register
from ..outputs import main_output
from ..parity import INT8, Tolerance


def load(export: Export, folder: Path, threads: int | None = None) -> Callable[[Mapping], np.ndarray]:
    """The IR file as a function from a batch to its main output."""
    from ...runtimes.openvino import OpenVINORunner

    runner = OpenVINORunner(folder / IR, threads)
    return lambda inputs: main_output(runner(inputs))


def run(export: Export, folder: Path) -> np.ndarray:
    """The main output of the IR file on the inputs of the export."""
    return load(export, folder)(export.inputs.tensors)


def write_float(export: Export, folder: Path) -> None:
    """Write the IR in float32."""
    from ...graphs.openvino import export_openvino

    export_openvino(export.view, export.inputs.tensors, folder / IR)


def write_weights(export: Export, folder: Path) -> None:
    """Compress the weights of the float32 IR."""
    from .quantize import compress_openvino

    with _float_graph(export) as source:
        compress_openvino(source, folder / IR)


def write_static(export: Export, folder: Path) -> None:
    """Quantize the float32 IR with calibration data."""
    from .quantize import quantize_openvino

    with _float_graph(export) as source:
        quantize_openvino(source, folder / IR, calibration_rows(export))


@contextlib.contextmanager
def _float_graph(export: Export) -> Iterator[Path]:
    """The float32 IR, which is written where it is not there already."""
    if "openvino" in export.written:
        yield export.written["openvino"] / IR
        return
    with tempfile.TemporaryDirectory(dir=export.staging) as folder:
        write_float(export, Path(folder))
        yield Path(folder) / IR


def check_static(options: Mapping[str, Any]) -> None:
    """Refuse to start without calibration data."""
    if options.get("calibration") is None:
        raise UserError("openvino-int8-static needs calibration: texts or tokenized rows like those that the model will see")
    check_calibration(options["calibration"])


def _register(
    name: str, description: str, write: Callable, quantized: bool, options: frozenset = frozenset(), check=None
) -> Format:
    packages = (*PACKAGES, "openvino", *(("nncf",) if quantized else ()))
    tolerance: Tolerance | None = INT8 if quantized else None
    return register(Format(name, description, write, run, packages, EXTRA, options, tolerance, check_options=check, load=load))


OPENVINO = _register("openvino", "OpenVINO IR in float32", write_float, False)
OPENVINO_INT8 = _register("openvino-int8", "the same with int8 weights", write_weights, True)
OPENVINO_INT8_STATIC = _register(
    "openvino-int8-static", "int8, ranges from calibration", write_static, True, frozenset({"calibration"}), check_static
)
