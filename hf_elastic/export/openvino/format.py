"""OpenVINO IR as a format of `export_subnet`: the float32 graph, and what all OpenVINO formats share."""

from __future__ import annotations

from pathlib import Path

from ...graphs.exporters import PACKAGES
from ...graphs.openvino import EXTRA, IR
from ..format import Export, Format, Predict
from ..outputs import main_output


class OpenVINOFormat(Format):
    """OpenVINO IR in float32; the base of the others."""

    name = "openvino"
    description = "OpenVINO IR in float32"
    packages = (*PACKAGES, "openvino")
    extra = EXTRA

    def write(self, export: Export, folder: Path) -> None:
        """Write the IR."""
        write_float(export, folder)

    def load(self, export: Export, folder: Path) -> Predict:
        """The IR in OpenVINO."""
        from ...runtimes.openvino import OpenVINORunner

        runner = OpenVINORunner(folder / IR)
        return lambda inputs: main_output(runner(inputs))


def write_float(export: Export, folder: Path) -> None:
    """Write the IR in float32."""
    from ...graphs.openvino import export_openvino

    export_openvino(export.view, export.inputs.tensors, folder / IR)
