"""Subnets as files that other programs run."""

from .config import ExportConfig
from .formats import FORMATS
from .subnet import export_subnet

__all__ = ["FORMATS", "ExportConfig", "export_subnet"]
