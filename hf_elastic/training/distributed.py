"""Which arrangements of processes can train slices of shared weights, and which cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator, DistributedType
from torch import nn
from transformers.training_args import OptimizerNames

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from .arguments import ElasticTrainingArguments

WORKS = "FSDP version 2 over the whole model works: fsdp full_shard, fsdp_config {'version': 2}, without auto_wrap"


def check_arguments(args: ElasticTrainingArguments, choices: str | None = None) -> None:
    """Refuse what the arguments alone show to fail or be wrong later, and set what several processes need.

    Args:
        args: the arguments; changed in place.
        choices: axes whose names are modules of which each size runs one, None if there are none.

    Raises:
        UserError: several devices in one process, liger kernels, LOMO, DeepSpeed, gradients kept per size with several
            processes, FSDP that wraps single layers, `ddp_find_unused_parameters` off where a step leaves parameters unused, or
            several sizes of `choices` in a step with several processes; the message says why.
    """
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} GPUs in one process (DataParallel) would each use the first one's weights; start a process for each "
            "with accelerate launch, or set CUDA_VISIBLE_DEVICES to one"
        )
    if args.use_liger_kernel:
        raise UserError("use_liger_kernel: not supported, it replaces modules of the full size only; set it to false")
    if args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        raise UserError(f"optim: {args.optim.value} updates the weights in each size's backward pass; take one that has a step")
    if args.deepspeed:
        raise UserError("deepspeed: not supported, its engine steps once per backward; use DDP or FSDP version 2")
    if args.fsdp:
        _check_fsdp_config(args)
    if args.world_size == 1:
        return
    if args.gradient_surgery != "none" or args.gradient_cosine_steps:
        raise UserError(
            "gradient_surgery and gradient_cosine_steps need every size's gradient over the whole batch, but processes reduce "
            "only their sum; run them in one process"
        )
    if choices and args.sampling != "single_path":
        raise UserError(
            f"sampling: {args.sampling!r} in several processes: they reduce gradients in the backward pass of the largest size, "
            f"which has one {choices} in each layer, and those of the others would stay apart; take single_path"
        )
    if args.sampling == "single_path":
        if args.ddp_find_unused_parameters is False:
            raise UserError(
                "ddp_find_unused_parameters: false, but a single_path step leaves the parameters outside its size without a "
                "gradient, for which DDP would wait; leave it out, or use sandwich"
            )
        args.ddp_find_unused_parameters = True
        if args.gradient_checkpointing:
            # Reentrant checkpointing, the default of transformers 4.57, and unused parameters do not go together in DDP.
            options = args.gradient_checkpointing_kwargs or {}
            if options.get("use_reentrant"):
                raise UserError(
                    "gradient_checkpointing_kwargs: use_reentrant: true does not go with single_path in several processes; "
                    "set it to false"
                )
            args.gradient_checkpointing_kwargs = {**options, "use_reentrant": False}


def _check_fsdp_config(args: ElasticTrainingArguments) -> None:
    config = args.fsdp_config
    # transformers 5 takes the words of `fsdp` apart into `fsdp_config`, and wraps layers unless told not to.
    words = () if isinstance(args.fsdp, bool) else tuple(str(option) for option in args.fsdp)
    asked = config.get("auto_wrap_policy", "NO_WRAP")
    if "auto_wrap" in words or asked.upper() != "NO_WRAP" or config.get("transformer_layer_cls_to_wrap"):
        raise _wraps_layers()
    if isinstance(args.fsdp, bool):
        version = int(config.get("version", 2))
        args.fsdp_plugin_args["auto_wrap_policy"] = "NO_WRAP"
    else:  # transformers 4.57 knows no version, and accelerate looks for it in the environment
        version = int(config.get("version", os.environ.get("FSDP_VERSION", 1)))
        os.environ["FSDP_VERSION"] = str(version)
    if version != 2:
        raise _version_1()


def _version_1() -> UserError:
    return UserError(f"FSDP version 1 flattens weights, which then cannot be sliced; {WORKS}")


def _wraps_layers() -> UserError:
    return UserError(
        f"FSDP that wraps single layers gathers a layer's weights in its forward, which a smaller size never calls; {WORKS}"
    )


def prepare_accelerator(accelerator: Accelerator, args: ElasticTrainingArguments) -> None:
    """Refuse what only the accelerator knows, since `accelerate launch` configures it through the environment too.

    With FSDP, its `prepare` will shard an elastic model as one unit.

    Raises:
        UserError: DeepSpeed, FSDP version 1, FSDP that wraps single layers, checkpoints activations itself or loads the weights
            in one process only; FSDP where accelerate ignores it; or another kind of parallelism.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise UserError(f"{kind.value}: not supported; use DDP or FSDP version 2")
    if kind != DistributedType.FSDP:
        if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise UserError(f"fsdp: accelerate would silently use {kind.value} here; FSDP needs several accelerators, not CPUs")
        return
    plugin = accelerator.state.fsdp_plugin
    # Releases of accelerate before FSDP version 2 have no such field.
    if vars(plugin).get("fsdp_version", 1) != 2:
        raise _version_1()
    if plugin.auto_wrap_policy is not None:
        raise _wraps_layers()
    if plugin.activation_checkpointing:
        raise UserError("fsdp activation_checkpointing wraps single layers; use gradient_checkpointing instead")
    if plugin.cpu_ram_efficient_loading:
        raise UserError("fsdp cpu_ram_efficient_loading: every process needs the weights to find the sizes; set it to false")
    prepare = accelerator.prepare

    def prepare_whole(*args, **kwargs):
        with _one_unit([arg for arg in args if isinstance(arg, nn.Module)]):
            return prepare(*args, **kwargs)

    accelerator.prepare = prepare_whole


@contextmanager
def _one_unit(models: list[nn.Module]) -> Iterator[None]:
    """Hide embeddings, last norm and head from accelerate within.

    It would give each a sharding unit of its own, which gathers its weights in its forward; a smaller size never calls that.
    """
    found = [module for model in models for module in model.modules() if isinstance(module, ElasticPreTrainedModel)]
    # Shadow the methods on the instance: what else the model does with its embeddings stays as it is.
    hidden = {"get_input_embeddings": _nothing, "get_output_embeddings": _nothing, "base_model_prefix": "nothing"}
    before = [(type(elastic), elastic.base_model_prefix) for elastic in found]
    for elastic in found:
        vars(elastic).update(hidden)
    try:
        yield
    finally:
        for elastic, (_, prefix) in zip(found, before):
            for name in hidden:
                del vars(elastic)[name]
            elastic.base_model_prefix = prefix
    for elastic, (own, _) in zip(found, before):
        elastic.is_sharded = True
        if type(elastic) is not own:
            # FSDP derives a class in a module of torch's; saving writes down where a class comes from, and its code.
            type(elastic).__module__, type(elastic).__name__ = own.__module__, own.__name__


def _nothing() -> None:
    return None
