"""Whether bfloat16 pays on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

TOKENS, WIDTH, INNER = 256, 384, 768  # of the products that are timed
REPEATS = 3


def prefers_bf16(use_cpu: bool) -> bool:
    """Whether training is faster in bfloat16 than in float32: on a GPU that has it, on a CPU that multiplies faster in it."""
    return bf16_speedup() > 1 if use_cpu else torch.cuda.is_bf16_supported()


def bf16_speedup() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16: forward, and gradient of the weights.

    CPUs with AMX or AVX512-BF16 are several times faster in it. On others it is emulated, and several times slower. Measured
    rather than looked up, with the number of threads of this process: it takes some hundredths of a second.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        tokens, weight = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(INNER, WIDTH, dtype=dtype)
        outputs = torch.ones(TOKENS, INNER, dtype=dtype)
        seconds[dtype] = _seconds(torch.mm, tokens, weight.T) + _seconds(torch.mm, outputs.T, tokens)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def warn_of_slow_bf16(args: TrainingArguments) -> None:
    """Say so if these arguments train in bfloat16 on a CPU that is faster in float32."""
    if args.bf16 and args.device.type == "cpu" and args.process_index == 0:
        speedup = bf16_speedup()
        if speedup < 1:
            logger.warning(f"bf16: this CPU multiplies matrices {1 / speedup:.1f} times as fast in float32; set bf16 to false")


def _seconds(run: Callable, *args) -> float:
    """Median time of a call, after one that is not timed."""
    run(*args)
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(*args)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
