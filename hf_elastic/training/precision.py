"""Whether bfloat16 pays on the machine at hand."""

from __future__ import annotations

import torch
from torch.utils.benchmark import Timer
from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

TOKENS, WIDTH, INNER = 256, 384, 768  # of the products that are timed
MIN_SECONDS = 0.05  # of timing in each precision


def prefers_bf16(use_cpu: bool) -> bool:
    """Whether training is faster in bfloat16 than in float32: on a GPU that has it, on a CPU that multiplies faster in it."""
    return bf16_speedup() > 1 if use_cpu else torch.cuda.is_bf16_supported(including_emulation=False)


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
