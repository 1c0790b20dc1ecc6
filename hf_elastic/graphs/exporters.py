"""Which library draws the ONNX graph: the only module that knows the transformers major.

transformers 5 ships its own exporter (`transformers.exporters`, built on `torch.export`); on 4.57 Optimum's TorchScript
exporter does the same job. Both get the model object itself, so its weights may have any shape and any strides.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from packaging.version import Version
from transformers import PretrainedConfig, PreTrainedModel

from ..core.errors import MissingPackageError, UserError
from ..utils.files import staged_file
from .cache import PAST, CachedDecoder, cache_axes, flatten

ON_TRANSFORMERS_5 = Version(transformers.__version__).major >= 5
EXTRA = "hf-elastic[onnx]" if ON_TRANSFORMERS_5 else "hf-elastic[optimum]"
PACKAGES = ("onnx", "onnxruntime", "onnxscript" if ON_TRANSFORMERS_5 else "optimum.exporters.onnx")
# The oldest opset both exporters target natively: every onnxruntime, TensorRT and OpenVINO of the last years reads it.
OPSET = 18
OLDEST_OPSET = 7
# A protobuf message holds at most 2 GiB; the margin is for the graph around the weights.
LARGEST_SINGLE_FILE = 2**31 - 2**26
# Architectures of our own, which Optimum does not know, and what it calls the tasks of their heads.
OWN = ("transformer_xl", "elm")
TASKS = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}

Axes = dict[str, dict[int, str]]


def missing_extra(error: ImportError, what: str = "ONNX", extra: str = EXTRA) -> MissingPackageError:
    """The error to raise from `error`: it names what is missing and the extra that installs it."""
    return MissingPackageError(f"{what} needs {error.name or error}, which is not installed: run pip install '{extra}'")


def newest_opset() -> int:
    """The newest opset that the installed exporter and onnx know.

    Raises:
        ImportError: one of them is missing; it names the extra.
    """
    try:
        import onnx

        if ON_TRANSFORMERS_5:
            from onnxscript.version_converter._version_converter import SUPPORTED_MAX_ONNX_OPSET as newest
        else:
            from torch.onnx._constants import ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET as newest
    except ImportError as error:
        raise missing_extra(error) from error
    return min(newest, onnx.defs.onnx_opset_version())


def check_opset(opset: object) -> None:
    """Raise ValueError for an opset that no model can be written in, before any work is done."""
    newest = newest_opset()
    if isinstance(opset, bool) or not isinstance(opset, int) or not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"opset must be an integer from {OLDEST_OPSET} to {newest}, got {opset!r}; the default is {OPSET}")


def weight_file(path: Path) -> Path:
    """Where the weights of the graph at `path` go when they do not fit in it (Optimum's name for it)."""
    return path.with_name(f"{path.name}_data")


def write_graph(model: PreTrainedModel, inputs: dict, axes: Axes, path: Path, *, opset: int = OPSET, fuse: bool = False) -> None:
    """Trace `model` on `inputs` and write the graph to `path`, with the named `axes` of each input left open.

    Inputs with a cache, as `sample_step` gives them, make the graph one that takes and returns it. `fuse` fuses it into
    onnxruntime's own operators, where the exporter does that (transformers 5); Optimum does it afterwards.

    Raises:
        ValueError: an operator of the model is not in this opset.
    """
    if ON_TRANSFORMERS_5:
        _write_with_transformers(model, inputs, axes, path, opset, fuse)
    else:
        _write_with_optimum(model, inputs, axes, path, opset)


def too_old(opset: int, model: PreTrainedModel, why: object) -> UserError:
    """The error for an operator that an opset does not have."""
    reason = str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
    return UserError(f"opset: {opset} is too old for {type(model).__name__}: {reason}; the default is {OPSET}")


def _write_with_transformers(model: PreTrainedModel, inputs: dict, axes: Axes, path: Path, opset: int, fuse: bool) -> None:
    try:
        import onnx_ir
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        exporter = OnnxExporter()
    except ImportError as error:
        raise missing_extra(error) from error
    # DYNAMIC, unlike AUTO, refuses to fix an axis silently; unlike a named Dim it learns the longest sequence by itself.
    shapes = _nested({name: dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC) for name, open_axes in axes.items()}, inputs)
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=opset, ort_fusions="cpu" if fuse else None)
    sample = copy.deepcopy(inputs)  # the exporter casts and drops in place
    with eager_attention(model) if fuse else contextlib.nullcontext():
        if PAST in inputs:
            program = exporter.export(CachedDecoder(model).eval(), sample, config).program
        else:
            program = exporter.export(model, {**sample, "use_cache": False}, config).program
    if program.opset_imports[""] != opset:
        raise too_old(opset, model, f"the exporter has written opset {program.opset_imports['']}")
    _name_axes(program.graph, axes)
    weight_bytes = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    external_data = weight_file(path).name if weight_bytes > LARGEST_SINGLE_FILE else None
    onnx_ir.save(program, path, external_data=external_data)


@contextlib.contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention written out as its products: the exporter's fusions know it, and miss what becomes of the fused kernel."""
    held = (vars(module).get("config") for module in model.modules())
    configs = {id(config): config for config in held if isinstance(config, PretrainedConfig)}.values()
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def _nested(flat: dict, inputs: dict, prefix: str = "") -> dict:
    """Values by flat name in the nesting of `inputs`."""
    return {
        name: _nested(flat, value, f"{prefix}{name}.") if isinstance(value, dict) else flat[prefix + name]
        for name, value in inputs.items()
    }


def _name_axes(graph, axes: Axes) -> None:
    """Give the traced symbols (`s41`) of an `onnx_ir.Graph` the names in `axes`, on its inputs and outputs."""
    import onnx_ir

    names = {}
    for value in graph.inputs:
        for axis, name in axes[value.name].items():
            names[str(value.shape[axis])] = name
    for value in [*graph.inputs, *graph.outputs]:
        sizes = [size if isinstance(size, int) else names.get(str(size), str(size)) for size in value.shape]
        value.shape = onnx_ir.Shape(sizes)
    # The shapes in between still carry the old symbols, and every consumer infers them again.
    for node in graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _write_with_optimum(model: PreTrainedModel, inputs: dict, axes: Axes, path: Path, opset: int) -> None:
    try:
        from optimum.exporters.onnx import export
    except ImportError as error:
        raise missing_extra(error) from error
    from torch.onnx.errors import OnnxExporterError

    config = _optimum_config(model, inputs, axes)
    settings = vars(model.config)
    before = dict(settings)
    try:
        with _no_graph_dump():
            export(model, config, path, opset=opset, device=inputs["input_ids"].device.type)
    except OnnxExporterError as error:
        raise too_old(opset, model, error) from error
    finally:
        # Optimum turns `use_cache` off on the model it is given.
        settings.clear()
        settings.update(before)
    # Stores tied embeddings once: TorchScript has written the output layer's as a transposed copy.
    config.post_process_exported_models(path.parent, {"model": (model, config)}, [path.name])


@contextlib.contextmanager
def _no_graph_dump() -> Iterator[None]:
    """torch never turns its log of TorchScript off, and prints the whole graph where an operator is not in the opset."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_args: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def _optimum_config(model: PreTrainedModel, inputs: dict, axes: Axes):
    """Optimum's description of `model`'s graph, with exactly the given inputs.

    Optimum's own list differs from what a tokenizer returns (it adds `position_ids` to decoders), and one export contract
    for both majors is worth more here than its default. It also takes the sizes of the cache from the config, which has one
    number for all layers.
    """
    from optimum.exporters.tasks import TasksManager

    cached = PAST in inputs
    past = {"use_past": True, "use_past_in_inputs": True} if cached else {}
    if model.config.model_type in OWN:
        task = next((task for head, task in TASKS.items() if type(model).__name__.endswith(head)), "feature-extraction")
        return given_inputs(_own_class(task), inputs, axes)(model.config, task=task, **past)
    try:
        task = TasksManager.infer_task_from_model(model) + ("-with-past" if cached else "")
        constructor = TasksManager.get_exporter_config_constructor("onnx", model=model, task=task, library_name="transformers")
    except (KeyError, ValueError) as error:
        raise UserError(f"Optimum cannot export {type(model).__name__} ({model.config.model_type}): {error}") from error

    return functools.partial(given_inputs(constructor.func, inputs, axes), **constructor.keywords)(model.config, **past)


def _own_class(task: str) -> type:
    """Optimum's description of any encoder or decoder, complete enough where the inputs are given."""
    from optimum.exporters.onnx.config import TextDecoderOnnxConfig, TextEncoderOnnxConfig
    from optimum.utils import NormalizedTextConfig

    class Own(TextDecoderOnnxConfig if task == "text-generation" else TextEncoderOnnxConfig):
        """An architecture that Optimum has no class for."""

        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    return Own


def given_inputs(config_class: type, inputs: dict, axes: Axes) -> type:
    """Optimum's config class for an architecture, restricted to these inputs with these open axes."""
    cached = PAST in inputs

    class GivenInputs(config_class):
        """Optimum's config class for this architecture, restricted to the caller's inputs."""

        @property
        def inputs(self) -> Axes:
            return axes

        @property
        def outputs(self) -> Axes:
            return cache_axes(inputs)[1] if cached else super().outputs

        def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict:
            if framework == "np":
                return {name: tensor.numpy(force=True) for name, tensor in flatten(inputs).items()}
            if not cached:
                return dict(inputs)
            return {**inputs, PAST: [tuple(layer.values()) for layer in inputs[PAST].values()]}

    return GivenInputs


@contextlib.contextmanager
def staged_graph(path: Path) -> Iterator[Path]:
    """`staged_file` for a graph: an older, larger graph's weight file does not stay beside one that has none."""
    with staged_file(path) as staged:
        yield staged
        has_weights = weight_file(staged).exists()
    if not has_weights:
        weight_file(path).unlink(missing_ok=True)
