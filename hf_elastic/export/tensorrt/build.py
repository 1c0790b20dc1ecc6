"""Building an engine, with the `tensorrt` package or through ONNX Runtime's provider, where either is installed.

Neither can run without an NVIDIA GPU; the tests drive this module with a stand-in for the package that records the calls.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import MissingPackageError, UserError
from .profile import KINDS, Profile

PROVIDER = "TensorrtExecutionProvider"
HOW_TO_INSTALL = (
    "pip install tensorrt, or onnxruntime-gpu with the TensorRT libraries, on a machine with an NVIDIA GPU; "
    "without --build, the export writes the graph and the trtexec command to run there"
)


def check_builder() -> str:
    """What an engine would be built with here: "tensorrt" or "onnxruntime".

    Raises:
        ImportError: neither is installed; the message says what to install.
    """
    if importlib.util.find_spec("tensorrt") is not None:
        return "tensorrt"
    import onnxruntime

    if PROVIDER in onnxruntime.get_available_providers():
        return "onnxruntime"
    raise MissingPackageError(f"build: neither tensorrt nor onnxruntime's {PROVIDER} is installed here: {HOW_TO_INSTALL}")


def build_engine(graph: Path, engine: Path, profile: Profile, inputs: Sequence[str]) -> str:
    """Build a strongly typed engine with the `tensorrt` package (10 or later). Never run against the real package.

    Args:
        graph: the ONNX file.
        engine: the file to write.
        profile: the shapes.
        inputs: names of the graph's inputs, each `[batch, sequence]`.

    Returns:
        The version of TensorRT, with which alone the engine runs.

    Raises:
        UserError: the parser does not take the graph, or no engine can be built; with TensorRT's own words.
    """
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        found = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise UserError(f"build: TensorRT {tensorrt.__version__} does not take the graph: {found}")
    config = builder.create_builder_config()
    if not profile.is_static:
        shapes = builder.create_optimization_profile()
        for name in inputs:
            shapes.set_shape(name, *(profile.shape(kind) for kind in KINDS))
        config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"build: TensorRT {tensorrt.__version__} could not build an engine; its log says why")
    engine.write_bytes(plan)
    return tensorrt.__version__


def build_in_cache(graph: Path, cache: Path, options: Mapping[str, Any]) -> str:
    """Build an engine by loading the graph into ONNX Runtime's provider, which leaves it in its cache. Never run.

    Returns:
        The version of ONNX Runtime.

    Raises:
        UserError: the provider did not start, or left no engine.
    """
    import onnxruntime

    cache.mkdir()
    here = {name: str(cache) if name.endswith("_path") else value for name, value in options.items()}
    session = onnxruntime.InferenceSession(str(graph), providers=[(PROVIDER, here)])
    if session.get_providers()[0] != PROVIDER or not list(cache.glob("*.engine")):
        raise UserError(f"build: {PROVIDER} did not start: onnxruntime ran the graph on {session.get_providers()[0]}")
    return onnxruntime.__version__
