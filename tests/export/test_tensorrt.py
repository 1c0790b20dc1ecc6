"""TensorRT without TensorRT: operators, types, profiles, names of options, the CPU's results; the build against a stand-in."""

import json
import shlex
import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import config_of, randomize, space_of
from transformers import AutoModelForMaskedLM

from hf_elastic import ElasticForMaskedLM
from hf_elastic.export import export_subnet
from hf_elastic.export.tensorrt.graph import FLOAT32_OPERATORS, count_in_floats, fix_axes, lower_precision
from hf_elastic.export.tensorrt.operators import check_operators, operator_table, problems
from hf_elastic.export.tensorrt.profile import Profile, profile_of, provider_options, trtexec_command
from hf_elastic.utils.lengths import longest_sequence

# `provider_option_names` of onnxruntime/core/providers/tensorrt/tensorrt_execution_provider_info.cc (microsoft/onnxruntime).
PROVIDER_OPTIONS = frozenset(
    (
        "device_id",
        "has_user_compute_stream",
        "trt_max_partition_iterations",
        "trt_min_subgraph_size",
        "trt_max_workspace_size",
        "trt_fp16_enable",
        "trt_int8_enable",
        "trt_int8_calibration_table_name",
        "trt_int8_use_native_calibration_table",
        "trt_dla_enable",
        "trt_dla_core",
        "trt_dump_subgraphs",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_engine_cache_prefix",
        "trt_engine_decryption_enable",
        "trt_engine_decryption_lib_path",
        "trt_force_sequential_engine_build",
        "trt_context_memory_sharing_enable",
        "trt_layer_norm_fp32_fallback",
        "trt_timing_cache_enable",
        "trt_timing_cache_path",
        "trt_force_timing_cache",
        "trt_detailed_build_log",
        "trt_build_heuristics_enable",
        "trt_sparsity_enable",
        "trt_builder_optimization_level",
        "trt_auxiliary_streams",
        "trt_tactic_sources",
        "trt_extra_plugin_lib_paths",
        "trt_profile_min_shapes",
        "trt_profile_max_shapes",
        "trt_profile_opt_shapes",
        "trt_cuda_graph_enable",
    )
)
# Flags of trtexec in TensorRT 10, still taken by 11 (NVIDIA's "Migrating trtexec Usage from TensorRT 10.x to 11.x").
TRTEXEC_FLAGS = frozenset(
    (
        "--onnx",
        "--saveEngine",
        "--stronglyTyped",
        "--minShapes",
        "--optShapes",
        "--maxShapes",
        "--skipInference",
    )
)
SIZE = {"num_hidden_layers": 1, "intermediate_size": 16}
SMALL = {"opt_batch_size": 2, "max_batch_size": 3, "opt_sequence_length": 8, "max_sequence_length": 20}


@pytest.fixture(scope="module")
def model():
    # RoBERTa: its positions are a cumulative sum, and its table keeps two of them for padding.
    stock = randomize(AutoModelForMaskedLM.from_config(config_of("roberta")))
    return ElasticForMaskedLM.from_base(stock, space=space_of("roberta"))


def graph_of(nodes, inputs, outputs, initializers=(), opset=18, domains=()):
    values = [[helper.make_tensor_value_info(name, *kind) for name, kind in group.items()] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *values, initializer=list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports)


FLOATS, INTS = (TensorProto.FLOAT, [2, 3]), (TensorProto.INT64, [2, 3])


# --- operators -------------------------------------------------------------------------------------------------------


def test_the_table_is_the_published_one():
    table = operator_table()
    assert (table["tensorrt"], table["opsets"]) == ("10.15", [9, 24])
    assert "onnx-tensorrt" in table["source"] and "Apache-2.0" in table["licence"]
    assert table["operators"]["CumSum"] == ["FP32", "FP16", "BF16"]
    assert not set(table["operators"]) & set(table["unsupported"])
    # All operators of the matrix (158 with a Y, 42 with an N); those that ONNX has no more are from old operator sets.
    assert (len(table["operators"]), len(table["unsupported"])) == (158, 42)
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert set(table["operators"]) - known == {"ParametricSoftplus", "ScaledTanh"} | (
        set(table["operators"]) & {"ImageScaler", "DeformConv"} - known
    )


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "message"),
    [
        ([helper.make_node("Det", ["x"], ["y"], name="d")], {"x": FLOATS}, {"y": (TensorProto.FLOAT, [])},
         r"Det \(d\).*not support"),
        ([helper.make_node("Softmax", ["x"], ["y"])], {"x": (TensorProto.DOUBLE, [2])}, {"y": (TensorProto.DOUBLE, [2])},
         r"Softmax \(node that makes y\): TensorRT does not take FP64 here, only FP32, FP16, BF16"),
        ([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft", name="g")], {"x": FLOATS}, {"y": FLOATS},
         r"Gelu \(g\): operators of the domain 'com.microsoft'"),
        ([helper.make_node("ReduceMean", ["x", "a"], ["y"], name="r")], {"x": FLOATS, "a": (TensorProto.INT64, [1])},
         {"y": FLOATS}, r"ReduceMean \(r\): input 1 must be a constant"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(nodes, inputs, outputs, message):
    with pytest.raises(ValueError, match=f"outside TensorRT's operator support: {message}"):
        check_operators(graph_of(nodes, inputs, outputs, domains=["com.microsoft"]))


def test_zero_points_must_be_zero():
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    for value, found in ((0, 0), (3, 1)):
        zero = numpy_helper.from_array(np.int8(value), "zero")
        node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], name="q")
        model = graph_of([node], {"x": FLOATS}, {"y": (TensorProto.INT8, [2, 3])}, [scale, zero])
        assert len(list(problems(model))) == found


def test_graphs_within_nodes_and_functions_are_searched():
    inner = helper.make_graph([helper.make_node("Det", ["x"], ["z"], name="inside")], "then", [],
                              [helper.make_tensor_value_info("z", TensorProto.FLOAT, [])])  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = graph_of([node], {"x": FLOATS, "c": (TensorProto.BOOL, [])}, {"y": (TensorProto.FLOAT, [])})
    assert any("Det (inside)" in problem for problem in problems(model))
    called = graph_of([helper.make_node("Own", ["x"], ["y"], domain="own")], {"x": FLOATS}, {"y": FLOATS}, domains=["own"])
    body = [helper.make_node("Unique", ["x"], ["y"], name="body")]
    called.functions.append(helper.make_function("own", "Own", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    assert [problem.split(":")[0] for problem in problems(called)] == ["Unique (body)"]


def test_old_opsets_are_refused():
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": FLOATS}, {"y": FLOATS}, opset=8)
    assert "opset 8 is outside 9 to 24" in next(problems(model))


# --- the graph -------------------------------------------------------------------------------------------------------


def mean_square():
    """y = x / sqrt(mean(x^2) + 1e-6) @ w"""
    weights = [numpy_helper.from_array(np.array(value, kind), name) for name, value, kind in (
        ("two", 2.0, np.float32), ("axes", [-1], np.int64), ("epsilon", 1e-6, np.float32),
        ("w", np.eye(3), np.float32))]  # fmt: skip
    steps = [("Pow", ["x", "two"], "square"), ("ReduceMean", ["square", "axes"], "mean"), ("Add", ["mean", "epsilon"], "sum"),
             ("Sqrt", ["sum"], "root"), ("Div", ["x", "root"], "scaled"), ("MatMul", ["scaled", "w"], "y")]  # fmt: skip
    return graph_of([helper.make_node(op, ins, [out]) for op, ins, out in steps], {"x": FLOATS}, {"y": FLOATS}, weights)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_products_are_lowered_and_norms_are_not(precision, kind):
    model = onnx.shape_inference.infer_shapes(lower_precision(mean_square(), precision))
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        expected = TensorProto.FLOAT if node.op_type in FLOAT32_OPERATORS or node.op_type == "Add" else kind
        if node.op_type != "Cast":
            assert types[node.output[0]] == expected, node.op_type
    assert types["x"] == types["y"] == TensorProto.FLOAT
    assert [tensor.data_type for tensor in model.graph.initializer if tensor.name.startswith("w")] == [kind]
    assert not list(problems(model))


def test_sums_of_whole_numbers_are_exact():
    axis = numpy_helper.from_array(np.int64(1), "axis")
    model = graph_of([helper.make_node("CumSum", ["x", "axis"], ["y"])], {"x": INTS}, {"y": INTS}, [axis])
    assert "INT64" in next(problems(model))
    count_in_floats(model)
    assert not list(problems(model))
    from onnx.reference import ReferenceEvaluator

    x = np.array([[5000, 3000, 1], [2**22, 1, 1]])
    assert np.array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], x.cumsum(1))


def test_fixed_axes():
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], *({name: (TensorProto.FLOAT, ["batch_size", 3])} for name in "xy"))
    fix_axes(model, {"batch_size": 4})
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)] == [4, 4]


# --- profiles and names ----------------------------------------------------------------------------------------------


def test_profiles():
    assert profile_of({}, 62) == Profile((1, 8, 32), (1, 62, 62))
    assert profile_of({"max_batch_size": 4, "min_sequence_length": 200}, 512) == Profile((1, 4, 4), (200, 200, 512))
    static = profile_of({"min_batch_size": 2, "max_batch_size": 2, "min_sequence_length": 16, "max_sequence_length": 16}, 512)
    assert static.is_static and static.fixed == {"batch_size": 2, "sequence_length": 16}
    assert static.spec("opt", ["input_ids", "attention_mask"]) == "input_ids:2x16,attention_mask:2x16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_batch_size": 0}, "min_batch_size must be an integer of at least 1, got 0"),
        ({"min_batch_size": 9, "max_batch_size": 4}, "batch_size: min 9, opt 4 and max 4 must not fall"),
        ({"opt_sequence_length": 99}, "max_sequence_length: 99 is longer than the model, which takes 62 tokens"),
        ({"precision": "fp8"}, "precision: 'fp8' is unknown; known: fp32, fp16, bf16, int8"),
    ],
)
def test_bad_options_stop_before_any_work(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_subnet(model, SIZE, tmp_path / "out", ["tensorrt"], **options)
    assert list(tmp_path.iterdir()) == []


def test_names_are_real():
    for profile in (profile_of({}, 64), Profile((2, 2, 2), (8, 8, 8))):
        options = provider_options(profile, ["input_ids"], "cache")
        assert set(options) <= PROVIDER_OPTIONS
        flags = {part.split("=")[0] for part in trtexec_command(profile, ["input_ids"], "g", "e")[1:]}
        assert flags <= TRTEXEC_FLAGS
        assert ("trt_profile_min_shapes" in options) == ("--minShapes" in flags) == (not profile.is_static)


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_export(model, tmp_path, precision):
    record = export_subnet(model, SIZE, tmp_path / "out", ["tensorrt"], precision=precision, **SMALL)["tensorrt"]
    folder = tmp_path / "out" / "tensorrt"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.onnx", "parity.json", "tensorrt.json"]
    assert record["passed"] and record["run_on"] == "CPUExecutionProvider" and record["precision"] == precision
    assert [run["shape"] for run in record["profile_shapes"]] == [[1, 1], [2, 8], [1, 20]]
    assert record["max_abs_difference"] > 0
    written = json.loads((folder / "tensorrt.json").read_text())
    assert written["profile"]["max"] == {"batch_size": 3, "sequence_length": 20}
    assert written["engine"]["built"] is False and written["what_ran"]["tensorrt"].startswith("nothing")
    command = shlex.split(written["trtexec"])
    assert "--maxShapes=input_ids:3x20,attention_mask:3x20" in command and "--stronglyTyped" in command
    assert written["onnxruntime"]["options"]["trt_profile_opt_shapes"] == "input_ids:2x8,attention_mask:2x8"
    graph = onnx.load(folder / "model.onnx")
    assert written["operators"] == check_operators(graph)
    stored = {TensorProto.DataType.Name(tensor.data_type) for tensor in graph.graph.initializer if np.prod(tensor.dims) > 500}
    assert {"fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8"}[precision] in stored


def test_static_shapes(model, tmp_path):
    static = {"min_batch_size": 3, "max_batch_size": 3, "min_sequence_length": 18, "max_sequence_length": 18}
    record = export_subnet(model, SIZE, tmp_path / "out", ["tensorrt"], precision="fp32", **static)["tensorrt"]
    assert record["max_relative_difference"] < 1e-5 and record["rows"] == 64
    written = json.loads((tmp_path / "out" / "tensorrt" / "tensorrt.json").read_text())
    assert written["inputs"]["input_ids"] == {"type": "int64", "shape": [3, 18]} and "Shapes" not in written["trtexec"]


def test_inputs_longer_than_the_profile(model, tmp_path):
    with pytest.raises(ValueError, match="max_sequence_length: 8 is shorter than the 16 tokens"):
        export_subnet(model, SIZE, tmp_path / "out", ["tensorrt"], precision="fp32", max_sequence_length=8)
    assert list(tmp_path.iterdir()) == []


def test_positions_kept_for_padding(model):
    assert longest_sequence(model.base) == 62


def test_a_build_that_cannot_be_stops_before_any_work(model, tmp_path):
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is installed")
    with pytest.raises(ImportError, match=r"build: neither tensorrt nor onnxruntime's .* pip install tensorrt"):
        export_subnet(model, SIZE, tmp_path / "out", ["tensorrt"], build=True)
    assert list(tmp_path.iterdir()) == []


def test_the_build_calls_tensorrt(tmp_path, monkeypatch):
    """A stand-in for the package: what is called, in which order. That the real one accepts it has to be seen on a GPU."""
    from hf_elastic.export.tensorrt.build import build_engine

    calls = []
    ok = {"parse": True}

    class Recorder:
        num_errors = 1

        def __init__(self, *_args):
            pass

        def __getattr__(self, name):
            return lambda *args: calls.append((name, *args)) or Recorder()

        def parse_from_file(self, path):
            return ok["parse"]

        def get_error(self, _index):
            return types.SimpleNamespace(desc=lambda: "no such operator")

        def build_serialized_network(self, _network, _config):
            return b"plan"

    class Logger(Recorder):
        WARNING = 1

    fake = types.SimpleNamespace(
        __version__="10.15", Logger=Logger, Builder=Recorder, OnnxParser=Recorder,
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=1),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    profile = Profile((1, 2, 4), (1, 8, 16))
    assert build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", profile, ["input_ids"]) == "10.15"
    assert (tmp_path / "m.engine").read_bytes() == b"plan"
    assert calls[0] == ("create_network", 2)
    assert ("set_shape", "input_ids", (1, 1), (2, 8), (4, 16)) in calls
    assert calls[-1][0] == "add_optimization_profile"
    ok["parse"] = False
    with pytest.raises(ValueError, match=r"TensorRT 10\.15 does not take the graph: no such operator"):
        build_engine(tmp_path / "m.onnx", tmp_path / "n.engine", profile, ["input_ids"])


# --- standard_only, and a full disk ----------------------------------------------------------------------------------


def test_standard_only(model, tmp_path):
    with pytest.raises(ValueError, match=r"this size is not standard, as is asked for: .*nearest standard size is \{"):
        export_subnet(model, {"intermediate_size": [7, 16, 33, 48]}, tmp_path / "out", standard_only=True)
    assert list(tmp_path.iterdir()) == []
    export_subnet(model, SIZE, tmp_path / "out", standard_only=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 kB, less than the checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing(small_disk, tmp_path, capsys):
    from test_vocabulary import model_for, word_piece

    from hf_elastic.cli.main import main

    tokenizer = word_piece()
    model_for(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(["export", "--model", str(tmp_path / "model"), "--output_dir", str(small_disk / "out")]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "hf-elastic" in line]
    assert len(error) == 1 and f"the disk of {small_disk / 'out'} is full; nothing was written" in error[0]
    assert list(small_disk.iterdir()) == []
