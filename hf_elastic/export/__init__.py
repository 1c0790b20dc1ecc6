"""Subnets as files that other programs run."""

from .formats import FORMATS
from .subnet import export_subnet

# Each registers its formats, in the order in which they are written.
from . import outputs, onnx_formats, int8_formats, openvino_formats, tensorrt  # isort: skip  # noqa: F401

__all__ = ["FORMATS", "export_subnet"]
