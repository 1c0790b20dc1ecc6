"""ONNX files that one major of transformers wrote, in the runtime of the other, where this package cannot be imported.

Set HF_ELASTIC_OTHER_PYTHON to the interpreter of an environment with the other major version and its ONNX packages.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny import batch, config_of, randomize, space_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification, export_subnet
from hf_elastic.export.outputs import predict
from hf_elastic.graphs.exporters import ON_TRANSFORMERS_5

OTHER = "HF_ELASTIC_OTHER_PYTHON"
NEW = 32
SUBNET = {"num_hidden_layers": 1, "intermediate_size": 16}
needs_other = pytest.mark.other_lane

READING = Path(__file__).with_name("reading.py")


def in_the_other(folder, inputs: dict, new: int, tmp_path) -> np.ndarray:
    """What the other environment makes of a folder: logits, or `new` generated tokens."""
    given = json.dumps({name: tensor.tolist() for name, tensor in inputs.items()})
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", OTHER)}
    command = [os.environ[OTHER], str(READING), str(folder), str(new), given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.partition("RESULT")[2])
    assert result["version"].startswith("4." if ON_TRANSFORMERS_5 else "5."), "this is the same major"
    return np.array(result["values"])


@needs_other
def test_an_encoder_crosses(tmp_path):
    stock = randomize(AutoModelForSequenceClassification.from_config(config_of("bert", num_hidden_layers=2, num_labels=3)))
    model = ElasticForSequenceClassification.from_base(stock, space={**space_of("bert"), "num_hidden_layers": [1, 2]})
    export_subnet(model, SUBNET, tmp_path / "out", ["onnx"])
    inputs = batch(9, 3)
    logits = in_the_other(tmp_path / "out" / "onnx", inputs, 0, tmp_path)
    assert np.abs(logits - predict(model.view(SUBNET), inputs)).max() < 1e-5


@needs_other
def test_a_decoder_crosses_with_its_cache(tmp_path):
    stock = randomize(AutoModelForCausalLM.from_config(config_of("llama", num_hidden_layers=2)))
    model = ElasticForCausalLM.from_base(stock, space={**space_of("llama"), "num_hidden_layers": [1, 2]})
    export_subnet(model, SUBNET, tmp_path / "out", ["onnx"])
    inputs = batch(9, 3, left=True)
    tokens = in_the_other(tmp_path / "out" / "onnx", inputs, NEW, tmp_path)
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    expected = model.view(SUBNET).generate(**inputs, generation_config=settings, eos_token_id=-1)
    assert np.array_equal(tokens, expected[:, 9:].numpy())


@pytest.mark.slow
@pytest.mark.skipif(not ON_TRANSFORMERS_5, reason="ExportedModel came with transformers 5")
def test_exported_model_returns_what_the_model_returns(tmp_path):
    """In this environment too, and for a size whose config is ours."""
    from transformers.exporters import ExportedModel

    stock = randomize(AutoModelForSequenceClassification.from_config(config_of("bert", num_hidden_layers=2)))
    model = ElasticForSequenceClassification.from_base(stock, space={**space_of("bert"), "num_hidden_layers": [1, 2]})
    subnet = {"intermediate_size": [16, 33]}
    export_subnet(model, subnet, tmp_path / "out", ["onnx"])
    inputs = batch(7, 2)
    output = ExportedModel.from_pretrained(tmp_path / "out" / "onnx")(**inputs)
    expected = model.view(subnet)(**inputs)
    assert type(output) is type(expected)
    assert np.abs(output.logits.numpy() - expected.logits.detach().numpy()).max() < 1e-5
