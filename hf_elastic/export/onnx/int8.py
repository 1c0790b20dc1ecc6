"""int8 ONNX as formats of `export_subnet`: dynamic, static with calibration data, and weights alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...utils.files import write_atomically
from ...utils.progress import Bar
from ..calibration import calibration_rows
from ..format import Export, float_folder
from ..parity import INT8, ParityError, Tolerance
from ..scoring import check_drop
from .format import GRAPH, OPTIONS, OnnxFormat, describe, load_graph, write_float
from .generation import generation_evidence
from .instructions import check_instructions, resolve_instructions
from .sensitivity import keep_in_float, rank_by_harm

# What was done, beside the graph; it becomes a part of parity.json.
RECORD = "quantization.json"
FALLBACKS = ("float",)
COMPUTES = ("float", "int8")
# Rows on which the harm of each layer is measured: one quantized graph per layer runs them all.
SENSITIVITY_ROWS = 32

# Target and names of the nodes that stay in float -> writes the target.
Attempt = Callable[[Path, Collection[str]], None]


class OnnxInt8Format(OnnxFormat):
    """Weights in int8, activations as the graph runs; the base of the other two."""

    name = "onnx-int8"
    description = "int8, activations as it runs"
    options = OPTIONS | {"fallback", "cpu_instructions"}
    hub_name = "model_quantized"
    takes_calibration = True  # for the sensitivity of layers

    def quantize(self, export: Export, prepared: Path, target: Path, excluded: Collection[str]) -> None:
        """Write a quantized graph.

        Args:
            export: the export.
            prepared: the float32 graph, as `prepare_graph` wrote it.
            target: the file to write.
            excluded: names of nodes that stay in float32.
        """
        from .quantize import quantize_dynamically

        quantize_dynamically(prepared, target, export.options.get("cpu_instructions"), excluded)

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the record says of how it was quantized."""
        return {"cpu_instructions": resolve_instructions(options.get("cpu_instructions"))}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse unknown values, and half precision under int8."""
        super().check_options(options)
        check_instructions(options.get("cpu_instructions", "auto"))
        for name, known in (("fallback", FALLBACKS), ("weights_compute", COMPUTES)):
            if name in options and options[name] not in known:
                raise UserError(f"{name}: {options[name]!r} is unknown; known: {', '.join(known)}")
        if options.get("optimize") == "O4":
            raise UserError("optimize: O4 is half precision, of which there is no int8; take O1, O2 or O3 for formats in int8")

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """Decisions have to stay, values may move."""
        return INT8

    def write(self, export: Export, folder: Path) -> None:
        """Quantize the float32 graph; where too much accuracy is lost and `fallback` allows it, keep some layers in float."""
        from .quantize import prepare_graph, weighted_nodes

        record: dict[str, Any] = {"kind": self.name, **self.settings(export.options)}
        with (
            float_folder(export, OnnxFormat.name, write_float) as source,
            tempfile.TemporaryDirectory(dir=export.staging) as work,
        ):
            prepared = prepare_graph(source / GRAPH, Path(work) / "prepared.onnx")
            attempt = partial(self.quantize, export, prepared)
            attempt(folder / GRAPH, [])
            weighted = weighted_nodes(prepared)
            if export.options.get("fallback") == "float" and not self._is_good(export, folder / GRAPH):
                kept = self._choose_float(export, attempt, prepared, list(weighted))
                attempt(folder / GRAPH, kept)
                record["kept_in_float"] = [{"node": name, "weight": weighted[name]} for name in kept]
            record["layers"] = len(weighted)
        write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")
        describe(export, folder)

    def evidence(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """What was quantized how, and of decoders how alike they generate."""
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {"quantization": record, **generation_evidence(export, folder / GRAPH, enforce=False)}

    def _choose_float(self, export: Export, attempt: Attempt, prepared: Path, layers: list[str]) -> list[str]:
        """The nodes that stay in float32: ranked on calibration rows, as many as the held-out accuracy needs."""
        rows = calibration_rows(export)[:SENSITIVITY_ROWS]

        def outputs_of(path: Path) -> list[np.ndarray]:
            predict = load_graph(path)
            return [predict(row) for row in rows]

        with tempfile.TemporaryDirectory(dir=export.staging) as folder, Bar(True) as bar:
            graph = Path(folder) / GRAPH

            def outputs_without(excluded: Collection[str]) -> list[np.ndarray]:
                attempt(graph, excluded)
                return outputs_of(graph)

            def is_good(excluded: Collection[str]) -> bool:
                attempt(graph, excluded)
                return self._is_good(export, graph)

            ranked = rank_by_harm(layers, outputs_without, outputs_of(prepared), bar)
            return keep_in_float(ranked, is_good, bar)

    def _is_good(self, export: Export, path: Path) -> bool:
        """Whether a graph keeps within `max_accuracy_drop` on the held-out rows."""
        scores = export.held_out.score(load_graph(path))
        try:
            check_drop(self.name, export.held_out, export.view_scores, scores, export.max_accuracy_drop)
        except ParityError:
            return False
        return True


class OnnxInt8StaticFormat(OnnxInt8Format):
    """Weights in int8, activations with the ranges that calibration data take."""

    name = "onnx-int8-static"
    description = "int8, ranges from calibration"
    needs_calibration = True

    def quantize(self, export: Export, prepared: Path, target: Path, excluded: Collection[str]) -> None:
        """Write a graph with fixed ranges."""
        from ...runtimes.onnxruntime import OnnxRunner
        from .quantize import quantize_statically

        runner = OnnxRunner(prepared)
        feeds = (runner.feed(row) for row in calibration_rows(export))
        quantize_statically(prepared, target, feeds, export.options.get("cpu_instructions"), excluded)


class OnnxInt8WeightsFormat(OnnxInt8Format):
    """Only the weights in int8, in blocks."""

    name = "onnx-int8-weights"
    description = "only the weights in int8"
    options = OPTIONS | {"fallback", "weights_compute"}

    def quantize(self, export: Export, prepared: Path, target: Path, excluded: Collection[str]) -> None:
        """Write a graph whose activations stay in float."""
        from .quantize import quantize_weights

        quantize_weights(prepared, target, self.settings(export.options)["weights_compute"], excluded)

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the products are computed in."""
        return {"weights_compute": options.get("weights_compute", "float")}
