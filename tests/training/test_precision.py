"""bfloat16 where it pays, and a word where it does not."""

import math

import pytest
from test_trainer import arguments, classifier, rows

from hf_elastic import ElasticTrainer
from hf_elastic.training import precision


def test_speed_is_measured():
    speedup = precision.bf16_speedup()
    assert math.isfinite(speedup)
    assert speedup > 0


@pytest.mark.parametrize(("bf16", "speedup", "warned"), [(True, 0.25, True), (True, 3.0, False), (False, 0.25, False)])
def test_training_slower_than_it_could_be_is_called_out(tmp_path, monkeypatch, bf16, speedup, warned):
    said = []
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    monkeypatch.setattr(precision.logger, "warning", said.append)
    ElasticTrainer(model=classifier(), args=arguments(tmp_path, bf16=bf16, max_steps=1), train_dataset=rows()).train()
    assert [text for text in said if "4.0 times as fast in float32" in text] == said
    assert bool(said) == warned
