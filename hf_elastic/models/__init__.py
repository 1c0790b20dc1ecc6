"""Architectures of our own, known to the Auto classes as soon as hf_elastic is imported."""

from . import elm as elm
from . import transfo_xl as transfo_xl
