"""The formats that a size can be written in: one table, which `export_subnet`, the command line and its help read."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import UserError
from .checkpoint import CheckpointFormat
from .format import Format
from .onnx.format import OnnxFormat
from .onnx.int8 import OnnxInt8Format, OnnxInt8StaticFormat, OnnxInt8WeightsFormat
from .openvino.format import OpenVINOFormat
from .openvino.int8 import OpenVINOInt8Format, OpenVINOInt8StaticFormat
from .tensorrt.format import TensorRTFormat

CHECKPOINT = CheckpointFormat()

# In the order in which they are written: a format may start from the files of one before it.
FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        CHECKPOINT,
        OnnxFormat(),
        OnnxInt8Format(),
        OnnxInt8StaticFormat(),
        OnnxInt8WeightsFormat(),
        OpenVINOFormat(),
        OpenVINOInt8Format(),
        OpenVINOInt8StaticFormat(),
        TensorRTFormat(),
    )
}


def select(names: Sequence[str]) -> list[Format]:
    """The formats of these names, in the order in which they are written, checked to be installed here.

    Raises:
        UserError: an unknown name, or none at all.
        MissingPackageError: a package is missing; the message names the extra.
    """
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise UserError(f"formats: {', '.join(map(repr, unknown))} is unknown; known: {', '.join(FORMATS)}")
    if not names:
        raise UserError(f"formats: none given; known: {', '.join(FORMATS)}")
    chosen = [one for name, one in FORMATS.items() if name in names]
    for one in chosen:
        one.check_installed()
    return chosen
