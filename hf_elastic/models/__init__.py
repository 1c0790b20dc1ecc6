"""Architectures of our own, known to the Auto classes as soon as hf_elastic is imported."""

from .transfo_xl import register as register
