"""int8 in ONNX: instruction sets, calibration, layers kept in float, accuracy with each export."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny import batch, config_of, randomize, space_of
from transformers import AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM
from hf_elastic.export import FORMATS, export_subnet
from hf_elastic.export.format import Format
from hf_elastic.export.onnx.instructions import INSTRUCTIONS, detect_instructions, resolve_instructions
from hf_elastic.export.onnx.quantize import (
    prepare_graph,
    quantize_dynamically,
    quantize_statically,
    quantize_weights,
    weighted_nodes,
)
from hf_elastic.export.outputs import predict
from hf_elastic.export.parity import ParityError
from hf_elastic.export.scoring import HeldOut, check_drop
from hf_elastic.graphs.exporters import ON_TRANSFORMERS_5
from hf_elastic.graphs.onnx import export_onnx
from hf_elastic.runtimes.onnxruntime import OnnxRunner
from hf_elastic.utils.progress import Bar

LAYERS = 2
ROWS = [{"input_ids": ids[mask.bool()].tolist()} for ids, mask in zip(*batch(length=12, rows=9).values())]


class PadToLongest:
    """A collator of rows with `input_ids` and `labels`."""

    def __call__(self, rows):
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        masks = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        return {"input_ids": padded, "attention_mask": masks, "labels": torch.tensor([row["labels"] for row in rows])}


@pytest.fixture(scope="module")
def held_out(model):
    """Rows labelled by the model itself, so that the view is always right."""
    with torch.no_grad():
        right = [int(model.view(None)(input_ids=torch.tensor([row["input_ids"]])).logits.argmax()) for row in ROWS]
    rows = [{**row, "labels": label} for row, label in zip(ROWS, right)]
    return HeldOut.from_rows(model, rows, PadToLongest(), "made up", batch_size=4)


@pytest.fixture(scope="module")
def prepared(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    source = export_onnx(model.view(None), batch(rows=2), folder / "model.onnx")
    return prepare_graph(source, folder / "prepared.onnx")


class ExactRunner(OnnxRunner):
    """With signed weights made unsigned, whose sums saturate nowhere."""

    def __init__(self, path, threads):
        super().__init__(path, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.x64quantprecision", "1")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def error_of(model, path, runner=OnnxRunner) -> float:
    """Mean error of the logits, as a share of their mean size."""
    inputs = batch(length=12, rows=9)
    expected = predict(model.view(None), inputs)
    return float(np.abs(runner(path, threads=1)(inputs)["logits"] - expected).mean() / np.abs(expected).mean())


def operators_of(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_preparing_changes_no_output(model, prepared):
    assert error_of(model, prepared) < 1e-5
    names = [node.name for node in onnx.load(prepared).graph.node]
    assert len(set(names)) == len(names)
    # Layers of six products, three tables, the pooler and the classifier.
    assert len(weighted_nodes(prepared)) == LAYERS * 6 + 3 + 2


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_dynamic_for_every_instruction_set(model, prepared, tmp_path, instructions):
    target = tmp_path / "int8.onnx"
    quantize_dynamically(prepared, target, instructions)
    assert list(tmp_path.iterdir()) == [target]
    assert operators_of(target)["MatMulInteger"] == LAYERS * 6 + 2
    settings = INSTRUCTIONS[instructions]
    # Signed weights of 8 bits are for CPUs that keep sums in 32 bits; on others two products saturate (docs/int8.md), so the
    # weights are made unsigned on loading.
    can_saturate = settings.signed and not settings.reduce_range and resolve_instructions() in ("avx2", "avx512")
    assert 0 < error_of(model, target, ExactRunner if can_saturate else OnnxRunner) < 0.05
    types = Counter(weight.data_type for weight in onnx.load(target).graph.initializer if len(weight.dims) == 2)
    wanted = onnx.TensorProto.INT8 if settings.signed else onnx.TensorProto.UINT8
    # The three tables are looked up, not multiplied with, and unsigned in any case.
    assert types[wanted] == LAYERS * 6 + 2 + (0 if settings.signed else 3)
    largest = max(
        int(np.abs(onnx.numpy_helper.to_array(weight).astype(int)).max())
        for weight in onnx.load(target).graph.initializer
        if weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) == 2
    ) if settings.signed else 127  # fmt: skip
    assert largest <= (64 if settings.reduce_range else 127)


def test_static_quantizes_products_with_weights_only(model, prepared, tmp_path):
    runner = OnnxRunner(prepared, threads=1)
    feeds = [runner.feed({name: tensor[:1] for name, tensor in batch(seed=seed).items()}) for seed in range(4)]
    quantize_statically(prepared, tmp_path / "int8.onnx", feeds)
    operators = operators_of(tmp_path / "int8.onnx")
    assert operators["MatMulInteger"] == 0
    assert operators["DequantizeLinear"] > operators["QuantizeLinear"] > 0
    assert 0 < error_of(model, tmp_path / "int8.onnx") < 0.15
    narrow = [{**feed, "input_ids": np.zeros_like(feed["input_ids"])} for feed in feeds]
    quantize_statically(prepared, tmp_path / "narrow.onnx", narrow)
    assert error_of(model, tmp_path / "narrow.onnx") > error_of(model, tmp_path / "int8.onnx")


def test_weights_only(model, prepared, tmp_path):
    for compute in ("float", "int8"):
        target = tmp_path / f"{compute}.onnx"
        quantize_weights(prepared, target, compute)
        nodes = [node for node in onnx.load(target).graph.node if node.op_type == "MatMulNBits"]
        assert len(nodes) == LAYERS * 6 + 2
        levels = {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "accuracy_level"}
        assert levels == {1 if compute == "float" else 4}
        assert 0 < error_of(model, target) < 0.05


@pytest.mark.parametrize("quantize", [quantize_dynamically, quantize_weights])
def test_excluded_nodes_stay_in_float(model, prepared, tmp_path, quantize):
    quantize(prepared, tmp_path / "all.onnx", excluded=list(weighted_nodes(prepared)))
    assert error_of(model, tmp_path / "all.onnx") < 1e-5
    assert not operators_of(tmp_path / "all.onnx").keys() & {"MatMulInteger", "MatMulNBits", "DequantizeLinear"}


@pytest.mark.slow
@pytest.mark.skipif(not ON_TRANSFORMERS_5, reason="Optimum packs attention in another way")
def test_packed_attention_is_taken_apart(model, tmp_path):
    source = export_onnx(model.view(None), batch(rows=2), tmp_path / "model.onnx", optimize="O2")
    assert operators_of(source)["Attention"] == LAYERS
    prepared = prepare_graph(source, tmp_path / "prepared.onnx")
    operators = operators_of(prepared)
    assert (operators["Attention"], operators["MultiHeadAttention"]) == (0, LAYERS)
    assert error_of(model, prepared) < 1e-5
    quantize_dynamically(prepared, tmp_path / "int8.onnx")
    assert operators_of(tmp_path / "int8.onnx")["MatMulInteger"] == LAYERS * 6 + 2
    assert 0 < error_of(model, tmp_path / "int8.onnx") < 0.05


def test_instructions_of_a_cpu(tmp_path):
    info = tmp_path / "cpuinfo"
    for flags, wanted in [
        ("fpu avx2", "avx2"),
        ("avx2 avx512f", "avx512"),
        ("avx512f avx512_vnni", "avx512_vnni"),
        ("avx2 avx_vnni", "avx512_vnni"),
    ]:
        info.write_text(f"processor: 0\nflags\t\t: {flags}\n")
        assert detect_instructions(info, "x86_64") == wanted
    assert detect_instructions(info, "aarch64") == "arm64"
    assert detect_instructions(tmp_path / "none", "x86_64") in ("avx2", "avx512")
    assert resolve_instructions("avx2") == "avx2"
    assert resolve_instructions() in INSTRUCTIONS
    with pytest.raises(ValueError, match="cpu_instructions: 'sse' is unknown; known: auto, avx2, avx512, avx512_vnni, arm64"):
        resolve_instructions("sse")


@pytest.mark.skipif(ON_TRANSFORMERS_5, reason="Optimum's table is in the other lane")
def test_types_are_optimums():
    from onnxruntime.quantization import QuantType
    from optimum.onnxruntime import AutoQuantizationConfig

    for name, settings in INSTRUCTIONS.items():
        theirs = getattr(AutoQuantizationConfig, name)(is_static=False)
        assert theirs.per_channel
        assert theirs.activations_dtype == QuantType.QUInt8
        assert theirs.weights_dtype == (QuantType.QInt8 if settings.signed else QuantType.QUInt8)


def test_every_export_says_what_it_is_worth(model, held_out, tmp_path):
    formats = ["safetensors", "onnx", "onnx-int8", "onnx-int8-weights"]
    records = export_subnet(model, None, tmp_path / "out", formats, held_out=held_out, max_accuracy_drop=100)
    for name, record in records.items():
        folder = tmp_path / "out" / (name if name != "safetensors" else "")
        assert record == json.loads((folder / "parity.json").read_text())
        assert record["held_out"]["rows"] == 9
        assert record["held_out"]["view"]["accuracy"] == 1.0
        assert set(record["held_out"]["file"]) == {"accuracy", "f1", "matthews_correlation"}
        low, high = record["latency"]["file_interval_ms"]
        assert 0 < low <= record["latency"]["file_ms"] <= high
        assert record["size_mb"] > 0
    assert records["onnx"]["held_out"]["file"]["accuracy"] == 1.0
    assert records["onnx-int8"]["quantization"]["cpu_instructions"] in INSTRUCTIONS
    assert records["onnx-int8-weights"]["quantization"]["weights_compute"] == "float"
    assert records["onnx-int8"]["size_mb"] < records["onnx"]["size_mb"]


def spoil(monkeypatch, harmful: set[int]) -> None:
    """Make int8 of the given weighted nodes (by place) ruin the graph, as an outlier in a real model would."""
    from hf_elastic.export.onnx import quantize

    def ruined(prepared, target, cpu_instructions=None, excluded=()):
        quantize_dynamically(prepared, target, cpu_instructions, excluded)
        names = list(weighted_nodes(prepared))
        if any(names[place] not in excluded for place in harmful):
            graph = onnx.load(target)
            for weight in graph.graph.initializer:
                if weight.name == "base.classifier.bias" or weight.name.endswith("classifier.bias"):
                    weight.CopyFrom(onnx.numpy_helper.from_array(np.array([9e3, -9e3, 0], np.float32) * len(
                        [place for place in harmful if names[place] not in excluded]
                    ), weight.name))  # fmt: skip
            onnx.save(graph, target)

    monkeypatch.setattr(quantize, "quantize_dynamically", ruined)


class Wrong(Format):
    """Right on the inputs of the certificate, and wrong on the held-out rows."""

    name, description = "wrong", ""

    def write(self, export, folder):
        pass

    def run(self, export, folder):
        return export.reference

    def load(self, export, folder):
        return lambda batch: -predict(export.view, batch)


def test_too_much_loss_is_refused(model, held_out, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "wrong", Wrong())
    record = export_subnet(model, None, tmp_path / "any", ["wrong"], held_out=held_out)["wrong"]
    assert record["held_out"]["accuracy_drop_points"] == 100
    with pytest.raises(ParityError, match=r"wrong: accuracy on 9 rows of made up falls from 100\.0% to 0\.0%, 100\.00 points"):
        export_subnet(model, None, tmp_path / "out", ["safetensors", "wrong"], held_out=held_out, max_accuracy_drop=99.5)
    assert [path.name for path in tmp_path.iterdir()] == ["any"]


def test_harmful_layers_stay_in_float(model, held_out, prepared, tmp_path, monkeypatch):
    spoil(monkeypatch, {3, 7})
    records = export_subnet(
        model, None, tmp_path / "out", ["onnx-int8"], held_out=held_out, max_accuracy_drop=0.5, fallback="float",
        calibration=ROWS[:3],
    )  # fmt: skip
    kept = [one["node"] for one in records["onnx-int8"]["quantization"]["kept_in_float"]]
    names = list(weighted_nodes(prepared))
    assert {names[3], names[7]} <= set(kept)
    assert records["onnx-int8"]["held_out"]["accuracy_drop_points"] <= 0.5
    assert len(kept) < 10


def test_sensitivity_finds_the_harmful_layer():
    from hf_elastic.export.onnx.sensitivity import keep_in_float, rank_by_harm

    harm = {"a": 0.1, "b": 3.0, "c": 0.5}
    outputs_without = lambda kept: [np.array([sum(value for name, value in harm.items() if name not in kept)])]  # noqa: E731
    with Bar(False) as bar:
        ranked = rank_by_harm(list(harm), outputs_without, [np.zeros(1)], bar)
        assert [name for name, _ in ranked] == ["b", "c", "a"]
        assert keep_in_float(ranked, lambda kept: outputs_without(kept)[0] < 0.2, bar) == ["b", "c"]
        with pytest.raises(ParityError, match="even with all 3 layers"):
            keep_in_float(ranked, lambda kept: False, bar)


def test_scores_of_a_language_model():
    torch.manual_seed(0)
    stock = randomize(AutoModelForCausalLM.from_config(config_of("llama")))
    model = ElasticForCausalLM.from_base(stock, space=space_of("llama"))
    ids = torch.randint(3, 90, (3, 10), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * 10, "labels": row.tolist()} for row in ids]
    held_out = HeldOut.from_rows(model, rows, None, "made up", batch_size=2)
    with torch.no_grad():
        output = stock(input_ids=ids, labels=ids)
    scores = held_out.score(lambda batch: predict(model.view(None), batch))
    assert scores["perplexity"] == pytest.approx(float(output.loss.exp()), rel=1e-4)
    assert scores["accuracy"] == pytest.approx(float((output.logits[:, :-1].argmax(-1) == ids[:, 1:]).float().mean()))


def test_the_limit_is_on_points_of_accuracy(held_out):
    assert check_drop("x", held_out, {"accuracy": 0.9}, {"accuracy": 0.895}, 0.5) == pytest.approx(0.5)
    with pytest.raises(ParityError, match=r"x: accuracy on 9 rows of made up falls from 90\.0% to 89\.4%, 0\.60 points"):
        check_drop("x", held_out, {"accuracy": 0.9}, {"accuracy": 0.894}, 0.5)


@pytest.mark.parametrize(
    ("formats", "options", "message"),
    [
        (["onnx-int8-static"], {}, "onnx-int8-static needs calibration"),
        (["onnx-int8-static"], {"calibration": "a text"}, "calibration must be a list"),
        (["onnx-int8-static"], {"calibration": [{"sentence": "a", "label": 1}]}, "row 0 has the columns sentence, label; a tok"),
        (["onnx-int8-static"], {"calibration": ["fine", 3]}, "calibration: row 1 is 3"),
        (["onnx-int8"], {"cpu_instructions": "mmx"}, "cpu_instructions: 'mmx' is unknown; known: auto, avx2"),
        (["onnx-int8"], {"fallback": "float"}, "fallback: .* needs max_accuracy_drop"),
        (["onnx-int8"], {"max_accuracy_drop": 0.5}, "max_accuracy_drop needs labelled rows"),
        (["onnx-int8"], {"max_accuracy_drop": -1.0}, "max_accuracy_drop must be 0 or more"),
        (["onnx", "onnx-int8"], {"optimize": "O4"}, "optimize: O4 is half precision, of which there is no int8"),
        (["onnx-int8-weights"], {"weights_compute": "int4"}, "weights_compute: 'int4' is unknown; known: float, int8"),
        (["onnx"], {"cpu_instructions": "avx2"}, "cpu_instructions: an option of onnx-int8, onnx-int8-static; formats: onnx"),
    ],
)
def test_bad_input(model, tmp_path, formats, options, message):
    with pytest.raises(ValueError, match=message):
        export_subnet(model, None, tmp_path / "out", formats, **options)
    assert list(tmp_path.iterdir()) == []


def test_fallback_values(model, held_out, tmp_path):
    with pytest.raises(ValueError, match="fallback: 'half' is unknown; known: float"):
        export_subnet(model, None, tmp_path / "out", ["onnx-int8"], fallback="half", held_out=held_out, max_accuracy_drop=1.0)
