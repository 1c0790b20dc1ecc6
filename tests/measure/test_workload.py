"""What is timed: runtimes, phases and their input."""

import numpy as np
import pytest
import tiny
import torch
from measuring import classifier, decoder
from transformers import AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM
from hf_elastic.measure.workload import Workload

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "runtime", ["torch", pytest.param("torch.compile", marks=SLOW), "onnxruntime", pytest.param("openvino", marks=SLOW)]
)
def test_every_runtime_computes_the_same(runtime, tmp_path):
    """What is timed is the model's own forward: its logits are those of the view."""
    if runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
    model, workload = classifier(), Workload(2, 6, runtime=runtime)
    subnet = model.subnet("small")
    with torch.inference_mode():
        expected = model.view(subnet)(**workload.make_input(model)).logits
        result = workload.call(model, subnet, tmp_path)()
    logits = result["logits"] if runtime != "openvino" else next(iter(result.values()))
    torch.testing.assert_close(torch.as_tensor(np.asarray(logits)), expected, atol=1e-4, rtol=1e-4)


def test_a_token_after_a_prompt_is_timed_with_the_cache_of_the_prompt(tmp_path):
    """Called again and again, the cache stays that of the prompt, and the answer that of the whole text."""
    model, workload = decoder(), Workload(2, 5, phase="token")
    subnet = model.subnet({"num_hidden_layers": 3})
    ids = workload.make_input(model)["input_ids"]
    with torch.inference_mode():
        call = workload.call(model, subnet, tmp_path)
        expected = model.view(subnet)(input_ids=torch.cat([ids, ids[:, -1:]], dim=1)).logits[:, -1:]
        for _ in range(3):
            torch.testing.assert_close(call().logits, expected, atol=1e-4, rtol=1e-4)
        prefilled = Workload(2, 5, phase="prefill").call(model, subnet, tmp_path)()
    assert prefilled.past_key_values.get_seq_length() == 5


def test_weights_are_stored_for_fast_views_only_while_they_are_timed():
    model, seen = classifier(), []
    Workload(2, 6).measure(
        model, [model.subnet("small")], lambda *_: seen.append(all(p.is_contiguous() for p in model.parameters())), repeats=1
    )
    assert seen == [False]
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    model.set_memory_layout("prefix")
    Workload(2, 6).measure(model, [model.subnet("small")], repeats=1)
    assert model.memory_layout == "prefix" and not all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tvm"}, "runtime: 'tvm' is unknown; known: torch, torch.compile, onnxruntime, openvino"),
        ({"phase": "decode"}, "phase: 'decode' is unknown; known: forward, prefill, token"),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ({"runtime": "onnxruntime", "phase": "token"}, "onnxruntime has: forward"),
    ],
)
def test_bad_workloads(options, message):
    with pytest.raises(ValueError, match=message):
        Workload(**options)


def test_a_phase_that_the_model_does_not_have():
    with pytest.raises(ValueError, match="for causal language models; ElasticForSequenceClassification has: forward"):
        Workload(phase="token").measure(classifier(), [classifier().subnet(None)])


@pytest.mark.parametrize("phase", ["prefill", "token"])
def test_a_phase_without_a_key_value_cache(phase):
    base = AutoModelForCausalLM.from_config(tiny.config_of("transformer_xl"))
    model = ElasticForCausalLM.from_base(base, importance="none")
    with pytest.raises(ValueError, match=f"phase: '{phase}' needs a key-value cache, which transformer_xl has not"):
        Workload(1, 4, phase=phase).measure(model, [model.subnet(None)])
