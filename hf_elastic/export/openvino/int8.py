"""int8 OpenVINO IR as formats of `export_subnet`: weights alone, and with calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...graphs.openvino import IR
from ..calibration import calibration_rows
from ..format import Export, float_folder
from ..parity import INT8, Tolerance
from .format import OpenVINOFormat, write_float


class OpenVINOInt8Format(OpenVINOFormat):
    """Only the weights in int8; the base of the other."""

    name = "openvino-int8"
    description = "the same with int8 weights"
    packages = (*OpenVINOFormat.packages, "nncf")

    def quantize(self, export: Export, source: Path, target: Path) -> None:
        """Write a quantized IR from one in float32."""
        from .quantize import compress_openvino

        compress_openvino(source, target)

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """Decisions have to stay, values may move."""
        return INT8

    def write(self, export: Export, folder: Path) -> None:
        """Quantize the float32 IR."""
        with float_folder(export, OpenVINOFormat.name, write_float) as source:
            self.quantize(export, source / IR, folder / IR)


class OpenVINOInt8StaticFormat(OpenVINOInt8Format):
    """Weights in int8, activations with the ranges that calibration data take."""

    name = "openvino-int8-static"
    description = "int8, ranges from calibration"
    takes_calibration = needs_calibration = True

    def quantize(self, export: Export, source: Path, target: Path) -> None:
        """Write an IR with fixed ranges."""
        from .quantize import quantize_openvino

        quantize_openvino(source, target, calibration_rows(export))
