"""TensorRT as a format of `export_subnet`: a graph that an engine can be built from as it is, and how to build it.

TensorRT needs an NVIDIA GPU, and has never run here. What this module can show without one, it does: every operator, type and
operator set is on TensorRT's published support list, the shapes are those of the profile, and the same file computes on a CPU
what the view does. What it cannot show (that an engine is built, how fast it is, what it computes) `tensorrt.json` says plainly.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import UserError
from ...core.modeling_elastic import ElasticPreTrainedModel
from ...data.head import MULTI
from ...graphs.exporters import EXTRA, PACKAGES, weight_file
from ...utils.lengths import longest_sequence
from ..calibration import calibration_rows
from ..format import Export, Format
from ..outputs import predict
from ..parity import FLOAT32, INT8, ParityError, Tolerance, compare, violations
from .build import HOW_TO_INSTALL, build_engine, build_in_cache, check_builder
from .profile import OPTIONS, Profile, profile_of, provider_options, trtexec_command
from .runner import DESCRIPTION, GRAPH, CpuRunner

ENGINE, CACHE = "model.engine", "engine_cache"
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


class TensorRTFormat(Format):
    """An ONNX graph with the types and shapes of an engine. The engine itself (`build`) has never been built or run here."""

    name = "tensorrt"
    description = "an ONNX graph for TensorRT (fp16, bf16, int8 or fp32) and how to build its engine"
    packages = PACKAGES
    extra = EXTRA
    options = frozenset((*OPTIONS, "precision", "build"))
    takes_calibration = True
    is_timed = False  # an engine on a GPU is what counts

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse an unknown precision; raise MissingPackageError for a build that cannot be done here."""
        precision_of(options)
        if options.get("build"):
            check_builder()

    def check(self, model: ElasticPreTrainedModel, options: Mapping[str, Any]) -> None:
        """Refuse shapes that the model does not take."""
        _profile(model, options)

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """That of the precision."""
        return PRECISIONS[precision_of(options)]

    def load(self, export: Export, folder: Path) -> CpuRunner:
        """The graph on the CPU."""
        return CpuRunner(folder, export.model.config.pad_token_id or 0)

    def write(self, export: Export, folder: Path) -> None:
        """Write `model.onnx`, `tensorrt.json` and, with the option `build`, an engine."""
        import onnx

        from ...graphs.onnx import export_onnx
        from .operators import check_operators

        precision, profile = precision_of(export.options), _profile(export.model, export.options)
        graph = folder / GRAPH
        export_onnx(export.view, export.inputs.tensors, graph)
        if weight_file(graph).exists():
            raise UserError("tensorrt: a size with more than 2 GB of weights cannot be prepared; export a smaller one")
        calibrated_on = _convert(export, graph, precision, profile)
        model = onnx.load(graph)
        record = _record(model, precision, profile)
        record["operators"] = check_operators(model)
        record["calibrated_on"] = calibrated_on
        record["engine"] = _build(export, folder, profile, list(record["inputs"]), record["onnxruntime"]["options"])
        (folder / DESCRIPTION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def evidence(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """Random tokens at the ends of the profile, compared with the view; one row where the longest would be many.

        Of int8 they are recorded, not judged: its scales come from text, which random tokens are not.

        Raises:
            ParityError: a shape is over the tolerance.
        """
        several = export.model.config.problem_type == MULTI
        profile, runner = _profile(export.model, export.options), self.load(export, folder)
        precision = precision_of(export.options)
        tolerance = Tolerance() if precision == "int8" else PRECISIONS[precision]
        generator = torch.Generator().manual_seed(0)
        shapes = dict.fromkeys([profile.shape("min"), profile.shape("opt"), (profile.batch[0], profile.sequence[2])])
        found = []
        for rows, tokens in shapes:
            ids = torch.randint(0, export.view.config.vocab_size, (rows, tokens), generator=generator)
            tensors = {name: torch.zeros_like(ids) for name in export.inputs.tensors}
            tensors |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            comparison = compare(predict(export.view, tensors), runner(tensors), several=several)
            over = violations(comparison, tolerance)
            if over:
                raise ParityError(f"tensorrt: at {rows} x {tokens} tokens the graph differs from its model: {'; '.join(over)}")
            found.append({"shape": [rows, tokens], **comparison})
        return {"precision": precision, "run_on": "CPUExecutionProvider", "profile_shapes": found}


def precision_of(options: Mapping[str, Any]) -> str:
    """The precision that the options ask for; default fp16.

    Raises:
        UserError: an unknown one.
    """
    precision = options.get("precision", "fp16")
    if precision not in PRECISIONS:
        raise UserError(f"precision: {precision!r} is unknown; known: {', '.join(PRECISIONS)}")
    return precision


def _profile(model: ElasticPreTrainedModel, options: Mapping[str, Any]) -> Profile:
    return profile_of(options, longest_sequence(model.base))


def _record(model, precision: str, profile: Profile) -> dict[str, Any]:
    """What `tensorrt.json` says of a graph."""
    from .operators import operator_table

    inputs = {value.name: _described(value) for value in model.graph.input}
    return {
        "precision": precision,
        "profile": profile.to_dict(),
        "static_shapes": profile.is_static,
        "inputs": inputs,
        "outputs": {value.name: _described(value) for value in model.graph.output},
        "opset": model.opset_import[0].version,
        "operators_checked_against": {key: operator_table()[key] for key in ("source", "tensorrt", "opsets")},
        "trtexec": shlex.join(trtexec_command(profile, list(inputs), GRAPH, ENGINE)),
        "onnxruntime": {
            "provider": "TensorrtExecutionProvider",
            "options": provider_options(profile, list(inputs), CACHE),
        },
        "needs": "TensorRT 10 or 11 (strongly typed networks, int64 inputs); ONNX Runtime built for it",
        "what_ran": {
            "cpu": f"{HOW_RUN[precision]}, in ONNX Runtime on the CPU, compared in parity.json",
            "tensorrt": "nothing: that an engine computes the same, and how fast, has to be measured on the GPU",
        },
    }


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
        from .quantize import quantize

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
    given = export.calibration is not None
    what = "rows of calibration" if given else "rows that the export is compared on, for want of calibration"
    runner = OnnxRunner(graph)
    return [runner.feed(row) for row in rows], f"{len(rows)} {what}"


def _build(export: Export, folder: Path, profile: Profile, inputs: list[str], options: Mapping[str, Any]) -> dict:
    """Build an engine, if that is asked for. Never run: there was no GPU with TensorRT."""
    if not export.options.get("build"):
        return {"built": False, "how": f"run the trtexec command, or export with --build ({HOW_TO_INSTALL})"}
    if check_builder() == "tensorrt":
        version = build_engine(folder / GRAPH, folder / ENGINE, profile, inputs)
        return {"built": True, "file": ENGINE, "with": f"tensorrt {version}"}
    version = build_in_cache(folder / GRAPH, folder / CACHE, options)
    return {"built": True, "file": CACHE, "with": f"onnxruntime {version}"}
