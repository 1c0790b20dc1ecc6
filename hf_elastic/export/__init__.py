"""Subnets as files that other programs run."""

from .subnet import FORMATS, export_subnet

__all__ = ["FORMATS", "export_subnet"]
