"""What is evaluated: sizes of an elastic model as views, a stock checkpoint, or an exported graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticForCausalLM, ElasticPreTrainedModel
from ..graphs.openvino import IR
from ..measure.digests import INCIDENTAL, SAMPLES_PER_TENSOR, model_digest
from ..measure.workload import Workload, exported_call, load_graph, model_call
from ..utils.lengths import check_length

# File of a graph -> the runtime that it is run with.
GRAPHS = {"model.onnx": "onnxruntime", IR: "openvino"}


@dataclass(frozen=True)
class Candidate:
    """One size.

    Attributes:
        name: for the table; the same for the same size in every run.
        subnet: its axes; None where there is no elastic model.
        parameters: how many it has (count).
        model: what lm-eval calls: `model(ids).logits`, with `config` and `device`.
        generates: whether it can generate text.
        call: given a workload, what is timed.
    """

    name: str
    subnet: dict | None
    parameters: int
    model: PreTrainedModel | GraphModel
    generates: bool
    call: Callable[[Workload], Callable[[], object]]


@dataclass(frozen=True)
class Candidates:
    """Sizes of one model.

    Attributes:
        sizes: each once.
        digest: short hash of the architecture and the weights.
    """

    sizes: list[Candidate]
    digest: str


class GraphModel:
    """An exported graph that is called like a causal language model, without a cache.

    Args:
        folder: what `hf-elastic export` wrote with `--formats onnx`, `openvino` or one of their kinds of int8.
        threads: CPU threads; None takes the runtime's default.

    Raises:
        MissingPackageError: onnxruntime or OpenVINO is not installed; it names the extra.
        UserError: it is no causal language model.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path, threads: int | None = None):
        written = AutoConfig.from_pretrained(folder)
        check_causal(str(folder), written)
        self.file = find_graph(folder)
        self.runtime = GRAPHS[self.file.name]
        self.config = stock_config(written)
        self.num_parameters = build_empty(written).num_parameters()
        self._run = load_graph(self.runtime, self.file, threads)

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        """The logits `float[batch, sequence, vocabulary]` of `int64[batch, sequence]`; padding on the right changes no others."""
        output = self._run({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
        return SimpleNamespace(logits=torch.from_numpy(output["logits"]))


def elastic_candidates(model: ElasticPreTrainedModel, names: Sequence[str | Mapping] | None = None) -> Candidates:
    """Sizes of an elastic model, all on its one copy of the weights.

    Args:
        model: the supernet.
        names: named sizes and subnets; None for the largest, the smallest and every named one.

    Raises:
        UserError: it is no causal language model, or an unknown name or impossible size.
    """
    if not isinstance(model, ElasticForCausalLM):
        raise UserError(f"model: {type(model).__name__} is no causal language model, which the tasks need")
    names = ["largest", "smallest", *model.config.subnets] if names is None else names
    subnets = {}
    for name in names:
        subnets.setdefault(model.subnet(name), name if isinstance(name, str) else json.dumps(dict(name)))
    sizes = []
    for subnet, name in subnets.items():
        view = model.view(subnet)
        sizes.append(Candidate(name, subnet.to_dict(), model.num_parameters_of(subnet), view, True, torch_call(view)))
    return Candidates(sizes, model_digest(model))


def stock_candidates(name: str, device: str) -> Candidates:
    """A stock checkpoint.

    Raises:
        UserError: it is no causal language model.
        OSError: no such checkpoint.
    """
    check_causal(name, AutoConfig.from_pretrained(name))
    model = AutoModelForCausalLM.from_pretrained(name).to(device).eval()
    digest = hashlib.sha256(_config_text(model.config).encode())
    for parameter_name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)].to("cpu", torch.float64)
        digest.update(f"{parameter_name} {tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    size = Candidate("full", None, model.num_parameters(), model, True, torch_call(model))
    return Candidates([size], digest.hexdigest()[:16])


def find_graph(folder: str | Path) -> Path | None:
    """The file of the graph in a folder, if there is one."""
    return next((path for path in (Path(folder) / name for name in GRAPHS) if path.is_file()), None)


def graph_candidates(folder: Path, threads: int | None = None) -> Candidates:
    """An exported graph.

    Raises:
        MissingPackageError, UserError: as for `GraphModel`.
    """
    model = GraphModel(folder, threads)
    size = Candidate(folder.name, None, model.num_parameters, model, False, graph_call(model))
    digest = hashlib.sha256(_config_text(model.config).encode())
    for path in sorted(model.file.parent.glob(f"{model.file.stem}.*")):  # and its weights: .onnx_data, .onnx.data or .bin
        digest.update(path.read_bytes())
    return Candidates([size], digest.hexdigest()[:16])


def torch_call(model: PreTrainedModel) -> Callable[[Workload], Callable[[], object]]:
    """What is timed of a torch model."""
    return lambda workload: model_call(workload, model, random_input(workload, model))


def graph_call(model: GraphModel) -> Callable[[Workload], Callable[[], object]]:
    """What is timed of a graph; raises UserError if it cannot run the workload's input."""

    def call(workload: Workload) -> Callable[[], object]:
        run = exported_call(replace(workload, runtime=model.runtime), model.file, random_input(workload, model))
        try:
            run()
        except Exception as error:  # onnxruntime's own types, which have no common base
            raise UserError(f"sequence_length: the graph cannot run {workload.sequence_length} tokens: {error}") from error
        return run

    return call


def random_input(workload: Workload, model: PreTrainedModel | GraphModel) -> dict[str, torch.Tensor]:
    """Random tokens "batch length" without padding, drawn as `Workload.make_input` draws those of an elastic model.

    Raises:
        UserError: a torch model has no positions for so many.
    """
    if isinstance(model, PreTrainedModel):
        check_length("sequence_length", workload.sequence_length, model)
    generator = torch.Generator().manual_seed(workload.seed)
    shape = (workload.batch_size, workload.sequence_length)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def check_causal(name: str, config: PretrainedConfig) -> None:
    """Raise UserError unless a checkpoint was saved with a causal language model's head."""
    saved = (config.architectures or ["nothing"])[0]
    mapping = AutoModelForCausalLM._model_mapping
    classes = mapping.get(type(config), ())
    causal = [found.__name__ for found in (classes if isinstance(classes, (list, tuple)) else [classes])]
    if saved not in causal:
        raise UserError(f"model: {name} holds a {saved}, which is no causal language model; the tasks need one")


def stock_config(config: PretrainedConfig) -> PretrainedConfig:
    """The architecture's own config, which says how long an input may be."""
    return config.base_config if config.model_type == "elastic" else config


def build_empty(config: PretrainedConfig) -> PreTrainedModel:
    """A model with no storage behind its weights, to count them."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _config_text(config: PretrainedConfig) -> str:
    return json.dumps(
        {key: value for key, value in config.to_dict().items() if key not in INCIDENTAL}, sort_keys=True, default=str
    )
