"""Where a training runs, and whether bfloat16 pays there."""

from __future__ import annotations

from argparse import ArgumentTypeError

import torch
from torch.utils.benchmark import Timer
from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.utils import is_torch_bf16_gpu_available, logging

from ..core.errors import UserError

logger = logging.get_logger(__name__)

KNOWN = ("auto", "true", "false")
TOKENS, WIDTH, INNER = 256, 384, 768  # of the products that are timed
MIN_SECONDS = 0.05  # of timing in each precision


def read_bf16(value: bool | str, use_cpu: bool, fp16: bool) -> bool:
    """What the option `bf16` says: "auto" is bfloat16 where it pays, "true", "no" and the like are what the command line has.

    It pays on a GPU that has it, and on a CPU that multiplies faster in it. fp16 is a choice against it.

    Raises:
        UserError: it is none of them.
    """
    if str(value).lower() != "auto":
        try:
            return string_to_bool(value if isinstance(value, bool) else str(value))
        except ArgumentTypeError as error:
            raise UserError(f"bf16: {value!r} is unknown; known: {', '.join(KNOWN)}") from error
    if fp16:
        return False
    if use_cpu:
        return bf16_speedup() > 1
    # transformers also counts GPUs that only emulate it.
    has_it = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return has_it and is_torch_bf16_gpu_available()


def describe(args: TrainingArguments) -> str:
    """Where and in which precision these arguments train."""
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    return f"training on {args.device.type} in {precision}"


def bf16_speedup() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16: forward, and gradient of the weights.

    CPUs with AMX are several times faster in it; those that emulate it are slower, and those with AVX512-BF16 alone are one or
    the other. Measured rather than looked up, with the number of threads of this process: it takes some tenths of a second.
    """

    def seconds(dtype: torch.dtype) -> float:
        given = {"tokens": torch.ones(TOKENS, WIDTH, dtype=dtype), "weight": torch.ones(INNER, WIDTH, dtype=dtype)}
        timer = Timer("(tokens @ weight.T).T @ tokens", globals=given, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=MIN_SECONDS).median

    return seconds(torch.float32) / seconds(torch.bfloat16)


def warn_of_slow_bf16(args: TrainingArguments) -> None:
    """Say so if these arguments train in bfloat16 on a CPU that is faster in float32."""
    if args.bf16 and args.device.type == "cpu" and args.process_index == 0:
        speedup = bf16_speedup()
        if speedup < 1:
            logger.warning(f"bf16: this CPU multiplies matrices {1 / speedup:.1f} times as fast in float32; set bf16 to false")
