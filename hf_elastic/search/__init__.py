"""Find the sizes of a supernet that are worth having on the machine that will run them."""

from .frontier import Frontier, Objective, Point
from .measure import Latency, measure_latency
from .search import search_subnets

__all__ = ["Frontier", "Latency", "Objective", "Point", "measure_latency", "search_subnets"]
