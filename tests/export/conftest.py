"""Each graph is drawn once a session: `torch.export` takes seconds even for a tiny model, and many tests start from one graph."""

import hashlib
from functools import wraps

import pytest
import torch
from tiny import config_of, decisive, randomize, space_of
from transformers import AutoModelForSequenceClassification

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.graphs import exporters, onnx, openvino

SIMPLE = (bool, int, float, str, tuple, type(None))
DRAWN: dict[str, object] = {}


def key_of(model, inputs: dict, *others) -> str:
    """Hash of all that decides a graph: classes, config, weights, the numbers that modules hold, inputs, and options."""
    found = hashlib.sha256(repr((model.config.to_dict(), model.config._attn_implementation, others)).encode())
    for name, module in model.named_modules():
        numbers = {key: value for key, value in vars(module).items() if isinstance(value, SIMPLE)}
        found.update(repr((name, type(module).__qualname__, sorted(numbers.items(), key=str))).encode())
    for name, tensor in model.state_dict().items():
        found.update(repr((name, tensor.shape, tensor.stride(), tensor.dtype)).encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, tensor in _flat(inputs):
        # Axes are open: their sizes do not matter, except the 2 that stands for a 1; nor do values, except a mask of ones alone.
        is_full_mask = name == "attention_mask" and bool(tensor.all())
        found.update(repr((name, tensor.dtype, tensor.dim(), tensor.shape[-1] == 2, is_full_mask)).encode())
    return found.hexdigest()


def _flat(inputs: dict, prefix: str = ""):
    for name, value in inputs.items():
        yield from _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def drawn_once(write_graph):
    """`write_graph`, which copies the file that it has written before; graphs of two files are drawn anew."""

    @wraps(write_graph)
    def write(model, inputs, axes, path, **options):
        key = key_of(model, inputs, axes, options, exporters.LARGEST_SINGLE_FILE)
        if key in DRAWN:
            path.write_bytes(DRAWN[key])
            return
        write_graph(model, inputs, axes, path, **options)
        if not exporters.weight_file(path).exists():
            DRAWN[key] = path.read_bytes()

    return write


def kept(with_transformers):
    """The same for OpenVINO's exporter, which returns a graph."""

    @wraps(with_transformers)
    def draw(model, inputs):
        key = key_of(model, inputs, "openvino")
        if key not in DRAWN:
            DRAWN[key] = with_transformers(model, inputs)
        return DRAWN[key]

    return draw


@pytest.fixture(scope="module", autouse=True)
def _graphs_are_drawn_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "write_graph", drawn_once(onnx.write_graph))
        patch.setattr(openvino, "_with_transformers", kept(openvino._with_transformers))
        yield


@pytest.fixture(scope="session")
def model():
    """A classifier of two layers whose decisions int8 keeps."""
    torch.manual_seed(0)
    stock = decisive(
        randomize(AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=3, num_hidden_layers=2)))
    )
    return ElasticForSequenceClassification.from_base(stock, space={**space_of("bert"), "num_hidden_layers": [1, 2]})
