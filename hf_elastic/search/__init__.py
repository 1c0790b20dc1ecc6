"""Find the sizes of a supernet that are worth having on the machine that will run them."""

from ..measure.latency import Latency, measure_latency
from .frontier import Frontier, Point
from .objectives import Objective
from .search import search_subnets

__all__ = ["Frontier", "Latency", "Objective", "Point", "measure_latency", "search_subnets"]
