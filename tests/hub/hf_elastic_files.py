"""Files as the other commands write them."""

from hf_elastic.search import Frontier
from hf_elastic.search.objectives import Objective
from hf_elastic.search.point import Point


def frontier_of(model, other=None) -> Frontier:
    """Measured values of three sizes of the test model, or of one that is given."""
    accuracy, latency = Objective("accuracy", "maximize"), Objective("latency_ms", "minimize", "ms")
    facts = {
        "machine": {"processor": "Imaginary 3000", "torch_threads": 2},
        "settings": {"sequence_length": 8},
        "warnings": ["the machine was busy"],
    }
    if other is not None:
        return Frontier([accuracy, latency], [Point(other, {"accuracy": 0.5, "latency_ms": 1.0})], facts)
    sizes = {name: model.subnet(name).to_dict() for name in ("largest", "small", "odd")}
    points = [
        Point(sizes["largest"], {"accuracy": 0.875, "latency_ms": 4.0, "parameters": 1.0}, name="full"),
        Point(sizes["small"], {"accuracy": 0.75, "latency_ms": 1.5}, {"latency_ms": [1.25, 1.75]}),
        Point(sizes["odd"], {"accuracy": 0.8, "latency_ms": 2.5}, {"latency_ms_is": "predicted"}),
    ]
    return Frontier([accuracy, latency], points, facts)
