import pytest

from hf_elastic.measure import workload
from hf_elastic.search import Latency


@pytest.fixture
def timed(monkeypatch):
    """Latencies that say which call they belong to: the run's drift times the number of layers; and every run's names."""
    runs = []

    def measure(callables, **options):
        runs.append(len(callables))
        drift = len(runs)
        samples = {}
        for name, call in callables.items():
            milliseconds = drift * call() / 1000
            samples[name] = Latency.from_samples([milliseconds * (1 + step / 100) for step in range(-3, 4)])
        return samples

    monkeypatch.setattr(workload, "measure_latency", measure)
    # What is timed returns what its latency will be made of.
    monkeypatch.setattr(workload.Workload, "call", lambda self, model, subnet, path: lambda: model.num_parameters_of(subnet))
    return runs
