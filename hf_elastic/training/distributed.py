"""Which arrangements of processes can train slices of shared weights, and which cannot."""

from __future__ import annotations

from .arguments import ElasticTrainingArguments

WRAPPERS = "one fully_shard over the whole model (no auto_wrap)"


def check_processes(args: ElasticTrainingArguments) -> None:
    """Refuse at start what would fail or be wrong later.

    Raises:
        ValueError: several devices in one process, DeepSpeed, FSDP version 1, FSDP that wraps single layers, or gradients kept
            per size with several processes; the message says what works instead.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process (DataParallel) would each use the first one's weights; start a process for each "
            "with accelerate launch, or set CUDA_VISIBLE_DEVICES to one"
        )
    if args.deepspeed:
        raise ValueError("deepspeed: not supported, its engine steps once per backward; use DDP or FSDP version 2")
    if args.world_size > 1 and (args.gradient_surgery != "none" or args.gradient_cosine_steps):
        raise ValueError(
            "gradient_surgery and gradient_cosine_steps need every size's gradient over the whole batch, but processes reduce "
            "only their sum; run them in one process"
        )
