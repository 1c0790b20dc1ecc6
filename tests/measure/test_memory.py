"""Peak memory in fresh processes."""

import sys

import pytest
import tiny
import torch
from measuring import classifier
from transformers import BertForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.measure.memory import measure_memory
from hf_elastic.measure.workload import Workload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@pytest.fixture(scope="module")
def model():
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 2048, "vocab_size": 5000}
    base = BertForSequenceClassification(tiny.config_of("bert", max_position_embeddings=256, **sizes))
    return ElasticForSequenceClassification.from_base(base, space={"num_hidden_layers": [1, 4]}, importance="none")


@pytest.fixture(scope="module")
def subnets(model):
    return [model.subnet("largest"), model.subnet("smallest")]


@pytest.fixture(scope="module")
def short(model, subnets):
    return measure_memory(model, subnets, Workload(1, 8, threads=1))


def test_peak_memory_is_a_peak(model, subnets, short):
    """Weights within one process's high-water mark, though they are zeros there; MB."""
    weights = [4e-6 * model.num_parameters_of(subnet) for subnet in subnets]
    for subnet, megabytes in zip(subnets, weights):
        assert megabytes < short[subnet].loaded_mb <= short[subnet].peak_mb < megabytes + 60
    assert short[subnets[0]].peak_mb - short[subnets[1]].peak_mb == pytest.approx(weights[0] - weights[1], rel=0.35)


@pytest.mark.slow
def test_activations_of_a_batch_come_on_top(model, subnets, short):
    long = measure_memory(model, subnets[:1], Workload(16, 256, threads=1))[subnets[0]]
    # 16 x 256 tokens x 2048 channels of the feed-forward's inside are 34 MB, in and out of its activation.
    assert long.peak_mb > short[subnets[0]].peak_mb + 34


@pytest.mark.slow
def test_two_processes_find_the_same_peaks(model, subnets, short):
    found = measure_memory(model, subnets, Workload(1, 8, threads=1), workers=2)
    for subnet in subnets:
        assert abs(found[subnet].peak_mb - short[subnet].peak_mb) < 0.1 * short[subnet].peak_mb


def test_workers_must_be_there(model, subnets):
    with pytest.raises(ValueError, match="workers must be an integer of at least 1, got 0"):
        measure_memory(model, subnets, Workload(1, 8, 1), workers=0)


@pytest.mark.slow
def test_a_process_that_fails_says_why(monkeypatch):
    model = classifier()
    monkeypatch.setattr(Workload, "make_input", lambda *_: {"input_ids": torch.tensor([[10**6]])})  # no such token
    with pytest.raises(ValueError, match=r"peak memory of Subnet.*(Runtime|Index)Error"):
        measure_memory(model, [model.subnet(None)], Workload(1, 8))
