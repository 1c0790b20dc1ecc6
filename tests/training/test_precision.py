"""bfloat16 where it pays, and a word where it does not."""

import math

import pytest
import torch
from test_trainer import arguments, classifier, rows

from hf_elastic import ElasticTrainer
from hf_elastic.core.errors import UserError
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


@pytest.mark.parametrize(("speedup", "expected"), [(3.0, True), (0.25, False)])
def test_auto_takes_bfloat16_where_a_cpu_is_faster_in_it(tmp_path, monkeypatch, speedup, expected):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    args = arguments(tmp_path, bf16="auto")
    assert args.bf16 is expected
    assert precision.describe(args) == f"training on cpu in {'bfloat16' if expected else 'float32'}"
    assert arguments(tmp_path, bf16="auto", fp16=True, use_cpu=not torch.cuda.is_available()).bf16 is False


@pytest.mark.parametrize(("given", "expected"), [(True, True), (False, False), ("true", True), ("False", False)])
def test_bfloat16_as_it_is_asked_for(tmp_path, given, expected):
    assert arguments(tmp_path, bf16=given).bf16 is expected


@pytest.mark.parametrize("given", ["maybe", 3, None])
def test_bfloat16_is_a_choice_of_three(tmp_path, given):
    with pytest.raises(UserError, match=f"bf16: {given!r} is unknown; known: auto, true, false"):
        arguments(tmp_path, bf16=given)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")
def test_the_device_is_taken_that_is_there(tmp_path):
    args = arguments(tmp_path, bf16=True, use_cpu=False)
    assert (args.device.type, args.bf16) == ("cpu", True)
