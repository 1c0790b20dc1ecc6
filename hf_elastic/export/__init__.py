"""Subnets as files that other programs run."""

from .formats import FORMATS
from .subnet import export_subnet

# Each registers its formats, in the order in which they are written.
from . import outputs  # isort: skip  # noqa: F401
from .onnx import format as onnx_formats, int8 as int8_formats  # isort: skip  # noqa: F401
from .openvino import format as openvino_formats  # isort: skip  # noqa: F401
from .tensorrt import format as tensorrt  # isort: skip  # noqa: F401

__all__ = ["FORMATS", "export_subnet"]
