"""The model type "elastic" in Optimum: `optimum-cli export onnx --model ELASTIC --task TASK OUT` (transformers 4.57).

What is exported is the size that the checkpoint selects (`subnet` in its config) or is frozen at; without either, the full one.
A standard size is exported as the stock model that it is; any other as the stock class with tensors of its own sizes.

`optimum-cli` has no entry points: it imports the files of `optimum/commands/register` that are there. A wheel with such a file
makes `optimum` importable where Optimum is not, and libraries then take it for installed. So who wants it asks for it, once:

    python -m hf_elastic.export.onnx.optimum_plugin     # beside Optimum's own; says where

A program that calls Optimum itself calls `register()`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ...core import modeling_elastic as elastic
from ...graphs.cache import Cache, cache_axes, open_head_axes, sample_step
from ...graphs.exporters import given_inputs, missing_extra
from ...utils.files import write_atomically

# The file that `optimum-cli` imports when it starts. Only what loads a model needs it; `--help` and the like stay fast.
PLUGIN = """# Written by python -m hf_elastic.export.onnx.optimum_plugin: optimum-cli learns of elastic checkpoints.
import sys
from importlib.util import find_spec

if "export" in sys.argv[1:] and find_spec("hf_elastic") is not None:
    from hf_elastic.export.onnx.optimum_plugin import register

    register()
"""
# Where the shapes of the cache travel from the loaded model to the description of its graph; private, so never written.
CACHE_OF_SIZE = "_cache_of_size"


class Loader:
    """Loads an elastic checkpoint as the module of one size, in place of an Auto class."""

    elastic_class: ClassVar[type[elastic.ElasticPreTrainedModel]] = elastic.ElasticModel

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> PreTrainedModel:
        """The size that the checkpoint at `path` runs: a stock class, with the stock config if it is standard, else ours."""
        model = cls.elastic_class.from_pretrained(path, **kwargs).eval()
        size = model.extract(model.config.subnet) if model.frozen_cut is None else model
        if not isinstance(size, elastic.ElasticPreTrainedModel):
            return size
        module = size.base
        if isinstance(size, elastic.ElasticForCausalLM):
            step = sample_step(module, {"input_ids": torch.zeros((1, 1), dtype=torch.int64)})
            vars(size.config)[CACHE_OF_SIZE] = step  # the config itself would pass it on to the base config
        module.config = size.config
        return module


def _loader(elastic_class: type[elastic.ElasticPreTrainedModel]) -> type[Loader]:
    """A loader for a head. Optimum finds it by its name in this module."""
    return type(f"{elastic_class.__name__}Loader", (Loader,), {"elastic_class": elastic_class})


ElasticForMaskedLMLoader = _loader(elastic.ElasticForMaskedLM)
ElasticForCausalLMLoader = _loader(elastic.ElasticForCausalLM)
ElasticForSequenceClassificationLoader = _loader(elastic.ElasticForSequenceClassification)
ElasticForTokenClassificationLoader = _loader(elastic.ElasticForTokenClassification)
ElasticForQuestionAnsweringLoader = _loader(elastic.ElasticForQuestionAnswering)
ElasticForMultipleChoiceLoader = _loader(elastic.ElasticForMultipleChoice)

LOADERS = {
    "feature-extraction": Loader,
    "fill-mask": ElasticForMaskedLMLoader,
    "text-generation": ElasticForCausalLMLoader,
    "text-classification": ElasticForSequenceClassificationLoader,
    "token-classification": ElasticForTokenClassificationLoader,
    "question-answering": ElasticForQuestionAnsweringLoader,
    "multiple-choice": ElasticForMultipleChoiceLoader,
}


def register() -> None:
    """Make Optimum load and export elastic checkpoints.

    Raises:
        ImportError: Optimum is not installed; it names the extra.
    """
    try:
        from optimum.exporters.onnx import model_configs  # noqa: F401 - registers those of the stock architectures
        from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise missing_extra(error) from error
    TasksManager.create_register("onnx")("elastic", *LOADERS, "text-generation-with-past")(ElasticOnnxConfig)
    for task, loader in LOADERS.items():
        TasksManager._CUSTOM_CLASSES["pt", "elastic", task] = (__name__, loader.__name__)


def install(folder: Path | None = None) -> Path:
    """Let `optimum-cli` find this module.

    Args:
        folder: where Optimum looks for plugins; None for the folder of its own.

    Returns:
        The file that was written. Deleting it undoes this.

    Raises:
        ImportError: Optimum is not installed; it names the extra.
    """
    if folder is None:
        try:
            from optimum.commands import optimum_cli
        except ImportError as error:
            raise missing_extra(error) from error
        folder = Path(optimum_cli.__file__).parent / "register"
    path = folder / "register_hf_elastic.py"
    write_atomically(path, PLUGIN)
    return path


class ElasticOnnxConfig:
    """Builds Optimum's description of the stock architecture's graph, for a size that is not standard.

    Optimum calls it like one of its own config classes; what it gets is an instance of the stock architecture's.
    """

    SUPPORTS_PAST = True

    def __new__(cls, config: PretrainedConfig, task: str = "feature-extraction", use_past: bool = False, **kwargs: Any):
        """The description for `config`, an `ElasticConfig`."""
        from optimum.exporters.tasks import TasksManager

        constructor = TasksManager.get_exporter_config_constructor(
            "onnx",
            model_type=config.base_config.model_type,
            task=f"{task}-with-past" if use_past else task,
            library_name="transformers",
        )
        settings = {**constructor.keywords, **kwargs, "task": task}
        if not use_past:
            return constructor.func(config.base_config, **settings)
        # Optimum knows one number of layers and heads, the base config's; the cache of this size is another.
        step: dict[str, torch.Tensor | Cache] = config.__dict__[CACHE_OF_SIZE]
        settings.update(use_past=True, use_past_in_inputs=True)

        class AnyFirstCache(given_inputs(constructor.func, step, cache_axes(step)[0])):
            """Lets `ORTModelForCausalLM` begin with an empty cache of the base config's sizes."""

            def post_process_exported_models(self, path, models, files):
                done = super().post_process_exported_models(path, models, files)
                open_head_axes(Path(path) / files[0], step)
                return done

        return functools.partial(AnyFirstCache, **settings)(config.base_config)


if __name__ == "__main__":
    print(f"optimum-cli export onnx takes elastic checkpoints now: {install()}")
