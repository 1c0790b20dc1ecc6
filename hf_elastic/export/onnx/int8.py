"""int8 ONNX as formats of `export_subnet`: dynamic, static with calibration data, and weights alone."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...graphs.exporters import EXTRA, PACKAGES
from ...utils.files import write_atomically
from ...utils.progress import Bar
from ..calibration import calibration_rows, check_calibration
from ..formats import Export, Format, register
from ..outputs import main_output
from ..parity import INT8, ParityError
from ..scoring import check_drop
from . import format as onnx_formats
from .format import GRAPH, describe, generation_evidence, load_graph, run_graph, write_float
from .instructions import check_instructions, resolve_instructions
from .sensitivity import keep_in_float, rank_by_harm

# What was done, beside the graph; it becomes a part of parity.json.
RECORD = "quantization.json"
OPTIONS = onnx_formats.OPTIONS | {"calibration", "fallback"}
FALLBACKS = ("float",)
COMPUTES = ("float", "int8")
# Rows on which the harm of each layer is measured: one quantized graph per layer runs them all.
SENSITIVITY_ROWS = 32

Quantize = Callable[[Path, Path, Collection[str]], None]


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be had, before any work is done."""
    check_instructions(options.get("cpu_instructions") or "auto")
    for name, known in (("fallback", FALLBACKS), ("weights_compute", COMPUTES)):
        if options.get(name) is not None and options[name] not in known:
            raise UserError(f"{name}: {options[name]!r} is unknown; known: {', '.join(known)}")
    if options.get("optimize") == "O4":
        raise UserError("optimize: O4 is half precision, of which there is no int8; take O1, O2 or O3 for formats in int8")
    if options.get("calibration") is not None:
        check_calibration(options["calibration"])


def check_static(options: Mapping[str, Any]) -> None:
    """The same for the format that needs calibration data."""
    if options.get("calibration") is None:
        raise UserError("onnx-int8-static needs calibration: texts or tokenized rows like those that the model will see")
    check_options(options)


def _dynamic(export: Export, prepared: Path, target: Path, excluded: Collection[str]) -> None:
    from .quantize import quantize_dynamically

    quantize_dynamically(prepared, target, export.options.get("cpu_instructions"), excluded)


def _static(export: Export, prepared: Path, target: Path, excluded: Collection[str]) -> None:
    from ...runtimes.onnxruntime import OnnxRunner
    from .quantize import quantize_statically

    runner = OnnxRunner(prepared)
    feeds = (runner.feed(row) for row in calibration_rows(export))
    quantize_statically(prepared, target, feeds, export.options.get("cpu_instructions"), excluded)


def _weights(export: Export, prepared: Path, target: Path, excluded: Collection[str]) -> None:
    from .quantize import quantize_weights

    quantize_weights(prepared, target, export.options.get("weights_compute") or "float", excluded)


def write(kind: str, quantize: Callable, export: Export, folder: Path) -> None:
    """Quantize the float32 graph; where too much accuracy is lost and `fallback` allows it, keep some layers in float.

    Args:
        kind: the format's name.
        quantize: export, prepared graph, target, excluded nodes -> writes the target.
        export: the export.
        folder: where to.
    """
    from .quantize import prepare_graph, weighted_nodes

    record: dict[str, Any] = {"kind": kind}
    if kind != "onnx-int8-weights":
        record["cpu_instructions"] = resolve_instructions(export.options.get("cpu_instructions"))
    else:
        record["weights_compute"] = export.options.get("weights_compute") or "float"
    with _float_graph(export) as source, tempfile.TemporaryDirectory(dir=export.staging) as work:
        prepared = prepare_graph(source, Path(work) / "prepared.onnx")
        attempt = partial(quantize, export, prepared)
        attempt(folder / GRAPH, [])
        weighted = weighted_nodes(prepared)
        if export.options.get("fallback") == "float" and not _is_good(export, kind, folder / GRAPH):
            kept = _choose_float(export, kind, attempt, prepared, list(weighted))
            attempt(folder / GRAPH, kept)
            record["kept_in_float"] = [{"node": name, "weight": weighted[name]} for name in kept]
        record["layers"] = len(weighted)
    write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")
    describe(export, folder)


@contextlib.contextmanager
def _float_graph(export: Export) -> Iterator[Path]:
    """The float32 graph, which is written where it is not there already."""
    if "onnx" in export.written:
        yield export.written["onnx"] / GRAPH
        return
    with tempfile.TemporaryDirectory(dir=export.staging) as folder:
        yield write_float(export, Path(folder) / GRAPH)


def _choose_float(export: Export, kind: str, attempt: Quantize, prepared: Path, layers: list[str]) -> list[str]:
    """The nodes that stay in float32: ranked on calibration rows, as many as the held-out accuracy needs."""
    rows = calibration_rows(export)[:SENSITIVITY_ROWS]

    def outputs_of(path: Path) -> list[np.ndarray]:
        return [main_output(_runner(path)(row)) for row in rows]

    with tempfile.TemporaryDirectory(dir=export.staging) as folder, Bar(True) as bar:
        graph = Path(folder) / GRAPH

        def outputs_without(excluded: Collection[str]) -> list[np.ndarray]:
            attempt(graph, excluded)
            return outputs_of(graph)

        def is_good(excluded: Collection[str]) -> bool:
            attempt(graph, excluded)
            return _is_good(export, kind, graph)

        ranked = rank_by_harm(layers, outputs_without, outputs_of(prepared), bar)
        return keep_in_float(ranked, is_good, bar)


def _runner(path: Path):
    from ...runtimes.onnxruntime import OnnxRunner

    return OnnxRunner(path)


def _is_good(export: Export, kind: str, path: Path) -> bool:
    """Whether a graph keeps within `max_accuracy_drop` on the held-out rows."""
    runner = _runner(path)
    scores = export.held_out.score(lambda batch: main_output(runner(batch)))
    try:
        check_drop(kind, export.held_out, export.view_scores, scores, export.max_accuracy_drop)
    except ParityError:
        return False
    return True


def evidence(export: Export, folder: Path) -> dict[str, Any]:
    """What was quantized how, and of decoders how alike they generate."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return {"quantization": record, **generation_evidence(export, folder, enforce=False)}


def _register(
    name: str, description: str, quantize: Callable, options: Collection[str], check_options: Callable = check_options
) -> Format:
    return register(
        Format(
            name,
            description,
            write=partial(write, name, quantize),
            run=run_graph,
            load=load_graph,
            packages=PACKAGES,
            extra=EXTRA,
            options=OPTIONS | set(options),
            tolerance=INT8,
            evidence=evidence,
            check_options=check_options,
            check=onnx_formats.check,
        )
    )


ONNX_INT8 = _register("onnx-int8", "int8, activations as it runs", _dynamic, {"cpu_instructions"})
ONNX_INT8_STATIC = _register("onnx-int8-static", "int8, ranges from calibration", _static, {"cpu_instructions"}, check_static)
ONNX_INT8_WEIGHTS = _register("onnx-int8-weights", "only the weights in int8", _weights, {"weights_compute"})
