"""Optimum's optimization levels of an ONNX graph, in both majors of transformers.

- O1: onnxruntime's basic rewrites.
- O2: and its transformer operators: fused attention, layer norms with their residuals, GELU with its bias.
- O3: and GELU by its tanh approximation, which changes values.
- O4: and half precision, for GPUs. The CPU runs such a graph too, with casts to float32, which is how it is compared here.

On 4.57 `ORTOptimizer` does it. On transformers 5 the fusions are the exporter's own (`ort_fusions`), on a graph that was traced
with attention written out, which is what lets them find it. From O2 on only onnxruntime runs the graph.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from transformers import PretrainedConfig

from ..core.errors import UserError
from .exporters import ON_TRANSFORMERS_5

LEVELS = ("O1", "O2", "O3", "O4")


def check_level(level: str | None, model_type: str) -> None:
    """Raise ValueError for a level that does not exist, or that is not to be had for an architecture in this environment."""
    if level is None:
        return
    if level not in LEVELS:
        raise UserError(f"optimize: {level!r} is unknown; known: {', '.join(LEVELS)}")
    if not ON_TRANSFORMERS_5:
        from optimum.onnxruntime.utils import ORTConfigManager

        if model_type not in ORTConfigManager._conf:
            known = ", ".join(ORTConfigManager._conf)
            raise UserError(f"optimize: Optimum's ORTOptimizer does not know {model_type}; it knows: {known}")


def fuses(level: str | None) -> bool:
    """Whether a level has the transformer operators."""
    return level in LEVELS[1:]


def optimize_graph(path: Path, level: str, config: PretrainedConfig) -> None:
    """Rewrite the graph at `path`. On transformers 5 the exporter has fused it already, if the level says so.

    Raises:
        ValueError: the fused graph is broken.
    """
    path = path.resolve()
    with _elsewhere() if level == "O4" else contextlib.nullcontext():
        if ON_TRANSFORMERS_5:
            _with_onnxruntime(path, level)
        else:
            _with_optimum(path, level, config)
    _check_loads(path, level, config.model_type)


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """Another working directory for a while: onnxruntime leaves files there if it cannot tell every shape, as of a cache."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _check_loads(path: Path, level: str, model_type: str) -> None:
    """The exporter of transformers 5.23 fuses GPT-2's layer norms into graphs that nothing can load."""
    import onnxruntime

    try:
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types, which have no common base
        reason = " ".join(str(error).split())
        raise UserError(f"optimize: {level} breaks the graph of {model_type} here; leave it out or take O1 ({reason})") from error


def _with_optimum(path: Path, level: str, config: PretrainedConfig) -> None:
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer

    settings = AutoOptimizationConfig.with_optimization_level(level)
    settings.disable_shape_inference = level != "O4"  # half precision needs the types of onnxruntime's own operators
    optimizer = ORTOptimizer([path], config)
    # Zeros: onnxruntime reads the heads off each layer's graph. A config has one number for all, which need not be these.
    optimizer.normalized_config = SimpleNamespace(num_attention_heads=0, hidden_size=0)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        optimizer.optimize(settings, folder, file_suffix="")
        (Path(folder) / path.name).replace(path)


def _with_onnxruntime(path: Path, level: str) -> None:
    import onnx
    from onnxruntime.transformers.onnx_model_bert import BertOnnxModel
    from onnxruntime.transformers.optimizer import optimize_by_onnxruntime

    if level == "O1":
        optimized = optimize_by_onnxruntime(str(path), optimized_model_path=str(path.with_suffix(".basic")), opt_level=1)
        Path(optimized).replace(path)
        return
    if level in ("O3", "O4"):
        graph = BertOnnxModel(onnx.load(path))
        graph.gelu_approximation()
        if level == "O4":
            graph.convert_float_to_float16(keep_io_types=True)
        graph.save_model_to_file(str(path))
