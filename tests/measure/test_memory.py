"""Peak memory in fresh processes."""

import sys

import pytest
import tiny
from measuring import classifier
from transformers import BertForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.measure.memory import measure_memory
from hf_elastic.measure.workload import Workload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


def wide():
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 2048, "vocab_size": 5000}
    base = BertForSequenceClassification(tiny.config_of("bert", max_position_embeddings=256, **sizes))
    return ElasticForSequenceClassification.from_base(base, space={"num_hidden_layers": [1, 4]}, importance="none")


def test_peak_memory_is_a_peak():
    """Weights within one process's high-water mark; MB."""
    model = wide()
    subnets = [model.subnet("largest"), model.subnet("smallest")]
    short = measure_memory(model, subnets, Workload(1, 8, threads=1))
    weights = [4e-6 * model.num_parameters_of(subnet) for subnet in subnets]
    for subnet, megabytes in zip(subnets, weights):
        assert megabytes < short[subnet].loaded_mb <= short[subnet].peak_mb < megabytes + 60
    assert short[subnets[0]].peak_mb - short[subnets[1]].peak_mb == pytest.approx(weights[0] - weights[1], rel=0.35)


@pytest.mark.slow
def test_activations_of_a_batch_come_on_top():
    model = wide()
    subnet = model.subnet("largest")
    short, long = (measure_memory(model, [subnet], Workload(*shape, threads=1))[subnet] for shape in ((1, 8), (16, 256)))
    # 16 x 256 tokens x 2048 channels of the feed-forward's inside are 34 MB, in and out of its activation.
    assert long.peak_mb > short.peak_mb + 34


@pytest.mark.slow
def test_a_process_that_fails_says_why(monkeypatch):
    model = classifier(max_position_embeddings=8)
    with pytest.raises(ValueError, match=r"peak memory of Subnet.*(Runtime|Index)Error"):
        measure_memory(model, [model.subnet(None)], Workload(1, 9))


@pytest.mark.slow
def test_two_processes_find_the_same_peaks():
    """Weights of zeros weigh as much: the peak is at least that of the parameters."""
    model = classifier(hidden_size=256, intermediate_size=512, num_attention_heads=4, vocab_size=20000)
    subnets = [model.subnet({"num_hidden_layers": depth}) for depth in (1, 4)]
    one, two = (measure_memory(model, subnets, Workload(1, 8, 1), workers=workers) for workers in (1, 2))
    for subnet in subnets:
        assert one[subnet].peak_mb > 4e-6 * model.num_parameters_of(subnet)
        assert abs(one[subnet].peak_mb - two[subnet].peak_mb) < 0.1 * one[subnet].peak_mb
    with pytest.raises(ValueError, match="workers must be an integer of at least 1, got 0"):
        measure_memory(model, subnets, Workload(1, 8, 1), workers=0)
