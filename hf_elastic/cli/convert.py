"""`hf-elastic convert`: make a checkpoint elastic."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

from ..core.configuration_elastic import check_names
from ..core.conversion import DEFAULT_SPACE
from ..core.errors import UserError
from ..core.importance import FROM_DATA, IMPORTANCE, WITHOUT_DATA
from ..core.loading import load_config
from ..core.space import Space, Subnet
from ..data.task import TASKS
from ..utils.folders import check_output, filled
from ..utils.options import check_dtype, check_integers, read_mapping
from .common import parse
from .convert_data import calibration, load_tokenizer
from .data import Source


@dataclass
class ConvertArguments:
    """Where to write."""

    output_dir: str = field(metadata={"help": "Folder for the elastic checkpoint."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})
    dry_run: bool = field(default=False, metadata={"help": "Check everything that needs no download, write nothing."})


@dataclass(kw_only=True)
class ConvertConfig(Source):
    """What to convert, and into which sizes.

    Raises:
        UserError: an unknown task, options that do not go together, or a space or a subnet that cannot be.
    """

    model: str | None = field(default=None, metadata={"help": "Hub id or local folder of the stock checkpoint."})
    model_config: str | None = field(
        default=None,
        metadata={"help": "Instead of a model: a stock config (mapping, JSON or JSON file), for training from scratch."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Hub id or local folder of the tokenizer; default: the model's. none: without one, to search only."},
    )
    tokenizer_dataset: str | None = field(
        default=None, metadata={"help": "Without a tokenizer: train a byte-level BPE on this data set's training text."}
    )
    task: str = field(default="sequence-classification", metadata={"help": f"One of: {', '.join(TASKS)}."})
    space: str | None = field(
        default=None,
        metadata={
            "help": "axis -> list of values (mapping, JSON or JSON file); none: one size. Default: for a model depth and "
            "feed-forward width in quarters, for new weights one size."
        },
    )
    subnets: str | None = field(default=None, metadata={"help": "name -> subnet (mapping, JSON or JSON file)."})
    importance: str | None = field(
        default=None,
        metadata={
            "help": "Ranking of heads, neurons and channels: activation (what they give to the layers that read them, on texts), "
            "magnitude of the weights, taylor (their effect on the loss on `dataset`, for a fine-tuned checkpoint) or none. "
            f"Default: activation; without a tokenizer {WITHOUT_DATA}; for new weights none."
        },
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Data that rank, as for hf-elastic train; only importance taylor needs its labels."}
    )
    calibration: str | None = field(
        default=None,
        metadata={
            "help": "Texts for importance activation and layer_order influence: a text file with one in a line, or any data set. "
            "Default: those of dataset; without one, docstrings of Python's standard library and random tokens."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder in which relative data sets are looked up."})
    max_length: int = field(default=128, metadata={"help": "Longest input for a ranking (tokens)."})
    calibration_rows: int = field(default=1024, metadata={"help": "Training rows that a ranking looks at, at most (count)."})
    layer_order: str | None = field(
        default=None,
        metadata={
            "help": "Which layers a depth keeps: first, ends (first and last, then from the front), influence (those that change "
            "what they read most, on texts), or a JSON list of all. "
            "Default: influence where importance looks at data, else first."
        },
    )
    head_partition: bool = field(
        default=False,
        metadata={
            "help": "num_attention_heads partitions the hidden size anew and changes no parameter, instead of dropping heads of "
            "a fixed size."
        },
    )
    dtype: str = field(
        default="auto", metadata={"help": "Of the weights: auto (as in the checkpoint), float32, float16 or bfloat16."}
    )
    num_labels: int | None = field(default=None, metadata={"help": "Number of classes of a classification head (count)."})
    seed: int = field(default=0, metadata={"help": "Seed of new weights."})

    def __post_init__(self):
        if self.task not in TASKS:
            raise UserError(f"task: {self.task!r} is unknown; known: {', '.join(TASKS)}")
        check_dtype(self.dtype, "auto")
        if (self.model is None) == (self.model_config is None):
            raise UserError("give either model or model_config")
        self._check_ranking()
        if isinstance(self.layer_order, str) and self.layer_order.startswith("["):
            try:
                self.layer_order = json.loads(self.layer_order)
            except json.JSONDecodeError as error:
                raise UserError(f"layer_order: {self.layer_order!r} is not a JSON list ({error})") from error
        if self.space in (None, DEFAULT_SPACE) and self.model is not None:
            self.space = DEFAULT_SPACE
        elif self.space == "none":
            self.space = None
        else:
            self.space = read_mapping("space", self.space)
        self.subnets = read_mapping("subnets", self.subnets)
        self.model_config = read_mapping("model_config", self.model_config)
        if isinstance(self.space, dict):
            Space.from_dict(self.space)
        check_names(self.subnets or {})
        for subnet in (self.subnets or {}).values():
            Subnet(subnet)

    def _check_ranking(self) -> None:
        """Raise UserError for a ranking that lacks its data, or data that nothing looks at; fill in the default."""
        check_integers(1, max_length=self.max_length, calibration_rows=self.calibration_rows)
        if self.importance is None:
            self.importance = "none" if self.model is None else WITHOUT_DATA if self.tokenizer == "none" else "activation"
        if self.layer_order is None:
            self.layer_order = "influence" if self.importance in FROM_DATA else "first"
        if self.importance not in IMPORTANCE:
            raise UserError(f"importance: {self.importance!r} is unknown; known: {', '.join(IMPORTANCE)}")
        if self.model is None and (self.importance != "none" or self.layer_order == "influence"):
            raise UserError("model_config: new weights are not ranked; leave out importance and layer_order influence")
        if self.importance == "taylor" and (self.dataset is None or self.calibration is not None):
            raise UserError("importance taylor needs a dataset with labels, and takes no calibration")
        given = [name for name in ("dataset", "calibration") if getattr(self, name) is not None]
        if given and not self.uses_data:
            raise UserError(f"{given[0]}: importance {self.importance} and layer_order {self.layer_order} look at no data")
        if self.uses_data and self.tokenizer == "none":
            raise UserError(f"importance {self.importance} and layer_order {self.layer_order} need a tokenizer; it is none")

    @property
    def uses_data(self) -> bool:
        """Whether the ranking looks at data."""
        return self.importance in FROM_DATA or self.layer_order == "influence"


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([ConvertArguments, ConvertConfig], argv, "convert"))
    return 0


def run(args: ConvertArguments, config: ConvertConfig) -> None:
    """Convert and write; with `dry_run` only check."""
    import torch

    from ..export.checkpoint import save_elastic

    if args.dry_run:
        check_output(args.output_dir, overwrite=args.overwrite)
        with torch.device("meta"):  # shapes are all that a dry run needs
            if config.model is None:
                new_weights(config)
            elif os.path.isdir(config.model):
                check_sizes(config)
        return
    with filled(args.output_dir, overwrite=args.overwrite) as folder:
        model, tokenizer = make_elastic(config)
        save_elastic(model, folder, tokenizer)
    if config.space == DEFAULT_SPACE:
        print(f"space: none given, so {json.dumps(model.space.to_dict())}; --space none is one size")
    sizes = {"largest": model.space.largest, "smallest": model.space.smallest, **model.config.subnets}
    for name, subnet in sizes.items():
        print(f"{name}: {model.num_parameters_of(subnet):,} parameters, {model.subnet(subnet).to_dict()}")
    print(f"{model.space.size:,} sizes in {args.output_dir}")


def check_sizes(config: ConvertConfig) -> None:
    """Raise UserError for sizes that a checkpoint on this machine does not have; its weights are not read."""
    elastic_class, base_config = _architecture(config)
    base = elastic_class.stock_class(base_config)(base_config)
    order = "first" if config.layer_order == "influence" else config.layer_order
    elastic_class.from_base(base, config.space, config.subnets, "none", order, head_partition=config.head_partition)


def make_elastic(config: ConvertConfig):
    """The elastic model, of a checkpoint or with new weights, and its tokenizer or None."""
    import torch

    torch.manual_seed(config.seed)
    if config.model is None:
        model = new_weights(config)
        return model, load_tokenizer(config, model.config.vocab_size)
    elastic_class, base_config = _architecture(config)
    tokenizer = load_tokenizer(config, base_config.vocab_size)
    options = {} if config.num_labels is None else {"num_labels": config.num_labels}
    model = elastic_class.from_base(
        config.checkpoint,
        space=config.space,
        subnets=config.subnets,
        importance=config.importance,
        layer_order=config.layer_order,
        calibration=calibration(config, base_config, tokenizer),
        head_partition=config.head_partition,
        dtype=config.dtype,
        **options,
    )
    return model, tokenizer


def _architecture(config: ConvertConfig):
    """The elastic class for a checkpoint, and its stock config; raises UserError for one that cannot be elastic."""
    import hf_elastic

    elastic_class = getattr(hf_elastic, TASKS[config.task])
    elastic_class._check_architecture(base_config := load_config(config.checkpoint))
    return elastic_class, base_config


def new_weights(config: ConvertConfig):
    """The elastic model of a config."""
    import torch

    import hf_elastic

    model = from_scratch(getattr(hf_elastic, TASKS[config.task]), config)
    return model if config.dtype == "auto" else model.to(getattr(torch, config.dtype))


def from_scratch(elastic_class, config: ConvertConfig):
    """An elastic model with new weights; of a config whose layers differ, frozen at them.

    Raises:
        ValueError: no or an unknown model type, or sizes for a config that is one size already.
    """
    from transformers import AutoConfig

    from .. import ElasticConfig
    from ..core.layout import named_layer_order
    from ..core.partition import partition_heads
    from ..core.spec import spec_for
    from ..export.architecture import frozen_config

    fields = dict(config.model_config)
    if "model_type" not in fields:
        raise UserError("model_config: model_type is missing")
    if fields["model_type"] == ElasticConfig.model_type:  # one size of an architecture, such as a search has written
        if config.space is not None or config.subnets is not None or config.head_partition:
            raise UserError("model_config: an elastic config says its sizes itself; give no space, subnets or head_partition")
        return elastic_class(ElasticConfig(**fields))
    model_type = fields.pop("model_type")
    try:
        base_config = AutoConfig.for_model(model_type, **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, UserError) else UserError(f"model_config: {error}") from error
    frozen = frozen_config(base_config)
    if frozen is not None:
        if config.space is not None or config.subnets is not None or config.head_partition:
            raise UserError("model_config: its layers differ, so it is one size; give no space, subnets or head_partition")
        return elastic_class(frozen)
    order = named_layer_order(config.layer_order, base_config.num_hidden_layers)
    spec = spec_for(base_config.model_type, config.space, config.subnets)
    spec = partition_heads(spec).to_dict() if config.head_partition else None
    return elastic_class(ElasticConfig(base_config, spec, config.space, config.subnets, layer_order=order))
