"""TensorRT as a format of `export_subnet`: a graph that an engine can be built from as it is, and how to build it.

TensorRT needs an NVIDIA GPU. What this module can show without one, it does: every operator, type and operator set is on
TensorRT's published support list, the shapes are those of the profile, and the same file computes on a CPU what the view does.
What it cannot show (that an engine is built, how fast it is, what it computes) `tensorrt.json` says plainly.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import UserError
from ...core.modeling_elastic import ElasticPreTrainedModel
from ...graphs.exporters import EXTRA, PACKAGES, weight_file
from ..calibration import calibration_rows, check_calibration
from ..formats import Export, Format, longest_sequence, register
from ..outputs import main_output, predict
from ..parity import FLOAT32, INT8, ParityError, Tolerance, compare, violations
from .build import HOW_TO_INSTALL, build_engine, build_in_cache, check_builder
from .profile import OPTIONS, Profile, profile_of, provider_options, trtexec_command

GRAPH, ENGINE, CACHE, DESCRIPTION = "model.onnx", "model.engine", "engine_cache", "tensorrt.json"
PRECISIONS = {
    "fp32": FLOAT32,
    "fp16": Tolerance(max_relative_difference=1e-2, min_argmax_agreement=0.9),
    "bf16": Tolerance(max_relative_difference=1e-1, min_argmax_agreement=0.9),
    "int8": INT8,
}
HOW_RUN = {
    "fp32": "the file itself",
    "fp16": "the file itself; where the CPU has no float16 kernel, ONNX Runtime casts around a float32 one",
    "bf16": "the file with every bfloat16 value held in float32 and rounded, since the CPU provider has no bfloat16 kernels",
    "int8": "the file itself; QuantizeLinear and DequantizeLinear around the products with weights",
}


def precision_of(options: Mapping[str, Any]) -> str:
    """The precision that the options ask for; default fp16.

    Raises:
        ValueError: an unknown one.
    """
    precision = options.get("precision", "fp16")
    if precision not in PRECISIONS:
        raise UserError(f"precision: {precision!r} is unknown; known: {', '.join(PRECISIONS)}")
    return precision


def tolerance_of(options: Mapping[str, Any]) -> Tolerance:
    """How far the graph may be from the view, which depends on the precision."""
    return PRECISIONS[precision_of(options)]


def _profile(model: ElasticPreTrainedModel, options: Mapping[str, Any]) -> Profile:
    return profile_of(options, longest_sequence(model.base))


def check(model: ElasticPreTrainedModel, subnet: Any, options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that cannot be, and ImportError for a build that cannot be done here."""
    precision_of(options)
    _profile(model, options)
    if options.get("calibration") is not None:
        check_calibration(options["calibration"])
    if options.get("build"):
        check_builder()


def write(export: Export, folder: Path) -> None:
    """Write `model.onnx`, `tensorrt.json` and, with the option `build`, an engine."""
    import onnx

    from ...graphs.onnx import export_onnx
    from .operators import check_operators, operator_table

    precision, profile = precision_of(export.options), _profile(export.model, export.options)
    graph = folder / GRAPH
    export_onnx(export.view, export.inputs.tensors, graph)
    if weight_file(graph).exists():
        raise UserError("tensorrt: a size with more than 2 GB of weights cannot be prepared; export a smaller one")
    calibrated_on = _convert(export, graph, precision, profile)
    model = onnx.load(graph)
    counts = check_operators(model)
    inputs = [value.name for value in model.graph.input]
    options = provider_options(profile, inputs, CACHE)
    record = {
        "precision": precision,
        "profile": profile.to_dict(),
        "static_shapes": profile.is_static,
        "inputs": {value.name: _described(value) for value in model.graph.input},
        "outputs": {value.name: _described(value) for value in model.graph.output},
        "opset": model.opset_import[0].version,
        "operators": counts,
        "operators_checked_against": {key: operator_table()[key] for key in ("source", "tensorrt", "opsets")},
        "trtexec": shlex.join(trtexec_command(profile, inputs, GRAPH, ENGINE)),
        "onnxruntime": {"provider": "TensorrtExecutionProvider", "options": options},
        "needs": "TensorRT 10 or 11 (strongly typed networks, int64 inputs); ONNX Runtime built for it",
        "calibrated_on": calibrated_on,
        "engine": _build(export, folder, profile, inputs, options),
        "what_ran": {
            "cpu": f"{HOW_RUN[precision]}, in ONNX Runtime on the CPU, compared in parity.json",
            "tensorrt": "nothing: that an engine computes the same, and how fast, has to be measured on the GPU",
        },
    }
    (folder / DESCRIPTION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _described(value) -> dict:
    import onnx

    tensor = value.type.tensor_type
    shape = [dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim]
    return {"type": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": shape}


def _convert(export: Export, graph: Path, precision: str, profile: Profile) -> str | None:
    """Give the graph its types and shapes; says what int8 was calibrated on."""
    import onnx

    from .graph import count_in_floats, fix_axes, lower_precision

    calibrated_on = None
    if precision == "int8":
        from .int8 import quantize

        batches, calibrated_on = _calibration(export, graph)
        quantize(graph, batches)
    model = onnx.load(graph)
    fix_axes(model, profile.fixed)
    if precision in ("fp16", "bf16"):
        model = lower_precision(model, precision)
    count_in_floats(model)
    onnx.save(model, graph)
    return calibrated_on


def _calibration(export: Export, graph: Path) -> tuple[list[dict[str, np.ndarray]], str]:
    from ...runtimes.onnxruntime import OnnxRunner

    rows = calibration_rows(export)
    given = export.options.get("calibration") is not None
    what = "rows of calibration" if given else "rows that the export is compared on, for want of calibration"
    runner = OnnxRunner(graph)
    return [runner.feed(row) for row in rows], f"{len(rows)} {what}"


def _build(export: Export, folder: Path, profile: Profile, inputs: list[str], options: Mapping[str, Any]) -> dict:
    if not export.options.get("build"):
        return {"built": False, "how": f"run the trtexec command, or export with --build ({HOW_TO_INSTALL})"}
    if check_builder() == "tensorrt":
        version = build_engine(folder / GRAPH, folder / ENGINE, profile, inputs)
        return {"built": True, "file": ENGINE, "with": f"tensorrt {version}"}
    version = build_in_cache(folder / GRAPH, folder / CACHE, options)
    return {"built": True, "file": CACHE, "with": f"onnxruntime {version}"}


class CpuRunner:
    """The exported graph in ONNX Runtime on the CPU, for inputs of any shape that the profile covers in parts.

    Args:
        folder: what `write` wrote.
        pad_token: what fills up rows that are shorter than the profile's shortest.
    """

    def __init__(self, folder: Path, pad_token: int):
        import onnx

        from ...runtimes.onnxruntime import OnnxRunner
        from .graph import rounded_on_cpu

        record = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        kinds = record["profile"]
        self.rows = (kinds["min"]["batch_size"], kinds["max"]["batch_size"])
        self.tokens = (kinds["min"]["sequence_length"], kinds["max"]["sequence_length"])
        self.pad_token = pad_token
        if record["precision"] == "bf16":
            self.run = _unoptimized(rounded_on_cpu(onnx.load(folder / GRAPH)))
        else:
            self.run = OnnxRunner(folder / GRAPH)

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        """The main output, in the shape that the model gives for these inputs.

        Raises:
            ValueError: they have more tokens than the profile.
        """
        length = tensors["input_ids"].shape[1]
        if length > self.tokens[1]:
            raise UserError(f"max_sequence_length: {self.tokens[1]} is shorter than the {length} tokens to compare on")
        parts = [self._part(part, length) for part in self._parts(tensors)]
        return np.concatenate(parts)

    def _parts(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(tensors["input_ids"]), self.rows[1]):
            yield {name: tensor[start : start + self.rows[1]] for name, tensor in tensors.items()}

    def _part(self, tensors: Mapping[str, torch.Tensor], length: int) -> np.ndarray:
        count = len(tensors["input_ids"])
        rows, columns = max(0, self.rows[0] - count), max(0, self.tokens[0] - length)
        filled = {}
        for name, tensor in tensors.items():
            value = self.pad_token if name == "input_ids" else 0
            tensor = torch.nn.functional.pad(tensor, (0, columns), value=value)
            filled[name] = torch.cat([tensor, tensor[-1:].expand(rows, -1)])
        result = main_output(self.run(filled))[:count]
        # Of an output per token, those that were filled in go again.
        return result[:, :length] if columns and result.ndim > 2 and result.shape[1] == length + columns else result


def _unoptimized(model):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]

    def run(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return dict(zip(names[1], session.run(None, {name: tensors[name].numpy() for name in names[0]})))

    return run


def _runner(export: Export, folder: Path) -> CpuRunner:
    return CpuRunner(folder, export.model.config.pad_token_id or 0)


def run(export: Export, folder: Path) -> np.ndarray:
    """The main output on the inputs of the export, on the CPU."""
    return _runner(export, folder)(export.inputs.tensors)


def load(export: Export, folder: Path, threads: int | None = None) -> CpuRunner:
    """The graph on the CPU as a function from a batch to its main output; the number of threads is onnxruntime's own."""
    return _runner(export, folder)


def evidence(export: Export, folder: Path) -> dict:
    """Random tokens at the ends of the profile, compared with the view; one row where the longest would be many.

    Of int8 they are recorded, not judged: its scales come from text, which random tokens are not.

    Raises:
        ParityError: a shape is over the tolerance.
    """
    profile, runner = _profile(export.model, export.options), _runner(export, folder)
    precision = precision_of(export.options)
    tolerance = Tolerance() if precision == "int8" else tolerance_of(export.options)
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys([profile.shape("min"), profile.shape("opt"), (profile.batch[0], profile.sequence[2])])
    found = []
    for rows, tokens in shapes:
        ids = torch.randint(0, export.view.config.vocab_size, (rows, tokens), generator=generator)
        tensors = {name: torch.zeros_like(ids) for name in export.inputs.tensors}
        tensors |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        comparison = compare(predict(export.view, tensors), runner(tensors))
        over = violations(comparison, tolerance)
        if over:
            raise ParityError(f"tensorrt: at {rows} x {tokens} tokens the graph differs from its model: {'; '.join(over)}")
        found.append({"shape": [rows, tokens], **comparison})
    return {"precision": precision, "run_on": "CPUExecutionProvider", "profile_shapes": found}


TENSORRT = register(
    Format(
        "tensorrt",
        "an ONNX graph for TensorRT (fp16, bf16, int8 or fp32) and how to build its engine",
        write=write,
        run=run,
        load=load,
        is_timed=False,  # an engine on a GPU is what counts
        packages=PACKAGES,
        extra=EXTRA,
        options=frozenset((*OPTIONS, "precision", "calibration", "build")),
        tolerance=tolerance_of,
        evidence=evidence,
        check=check,
    )
)
