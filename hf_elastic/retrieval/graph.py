"""Queries on exported graphs: onnxruntime and OpenVINO under sentence-transformers' `encode`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.util import import_module_class
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from ..core.errors import UserError
from ..export.onnx.format import GRAPH
from ..graphs.openvino import IR
from ..utils.files import reading
from ..utils.sentence_transformers import MODULES, SETTINGS

TASK = "task"  # in the settings: what the tower encodes, where it is for queries only


class GraphModel(nn.Module):
    """A graph that gives hidden states, called as a model of transformers is.

    Args:
        run: takes arrays by name, and returns `last_hidden_state`, `float32[batch, length, hidden]`.
        config: of the model that the graph was made of.
    """

    main_input_name = "input_ids"
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, run: Callable[[Mapping], Mapping[str, np.ndarray]], config: PretrainedConfig):
        super().__init__()
        self.run, self.config = run, config

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, return_dict=True) -> BaseModelOutput:
        """The hidden states of ids `[batch, length]`."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        found = self.run({name: value for name, value in given.items() if value is not None})
        return BaseModelOutput(last_hidden_state=torch.from_numpy(found["last_hidden_state"]))


class GraphTransformer(Transformer):
    """sentence-transformers' own module over a graph, which lies beside the tokenizer."""

    def _load_model(self, model_name_or_path, transformer_task, config, backend, is_peft_model, **kwargs) -> GraphModel:
        return GraphModel(kwargs["run"], config)


def load_graph(folder: str | Path, threads: int | None = None) -> SentenceTransformer:
    """A query tower that `export_denser` wrote as a graph: encodes as any `SentenceTransformer`, on the CPU.

    That of an asymmetric model, or of one for queries, encodes queries only; `encode_document` raises sentence-transformers' own
    ValueError.

    Args:
        folder: that of a format, such as `my-denser/onnx-int8`.
        threads: CPU threads; default: what the runtime takes.

    Raises:
        UserError: no such graph.
        MissingPackageError: its runtime is not installed.
    """
    folder = Path(folder)
    if (path := folder / IR).is_file():
        from ..runtimes.openvino import OpenVINORunner as Runner
    elif (path := folder / GRAPH).is_file():
        from ..runtimes.onnxruntime import OnnxRunner as Runner
    else:
        raise UserError(f"{folder}: there is no {GRAPH} and no {IR} in it")
    with reading(folder / MODULES, "list of modules", "is no list of modules"):
        entries = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        parts = [(entry["type"], entry["path"]) for entry in entries]
    first = GraphTransformer.load(str(folder), model_kwargs={"run": Runner(path, threads)})
    rest = [import_module_class(kind, str(folder)).load(str(folder), subfolder=place) for kind, place in parts[1:]]
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    modules = [first, *rest]
    if (task := settings.get(TASK)) is not None:
        modules = [Router({task: modules}, default_route=task)]
    names = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
    return SentenceTransformer(modules=modules, device="cpu", **{name: settings.get(name) for name in names})
