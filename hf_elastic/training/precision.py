"""Whether bfloat16 pays on the machine at hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

TOKENS, WIDTH, INNER = 256, 384, 768  # of the products that are timed


def prefers_bf16(use_cpu: bool) -> bool:
    """Whether training is faster in bfloat16 than in float32: on a GPU that has it, on a CPU that multiplies faster in it."""
    return bf16_speedup() > 1 if use_cpu else torch.cuda.is_bf16_supported(including_emulation=False)


def bf16_speedup() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16: forward, and gradient of the weights.

    CPUs with AMX or AVX512-BF16 are several times faster in it. On others it is emulated, and several times slower. Measured
    rather than looked up, with the number of threads of this process: it takes some tenths of a second.
    """
    from ..search.measure import measure_latency

    def products(dtype: torch.dtype) -> Callable[[], object]:
        tokens, weight = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(INNER, WIDTH, dtype=dtype)
        return lambda: (tokens @ weight.T).T @ tokens

    taken = measure_latency({"float32": products(torch.float32), "bfloat16": products(torch.bfloat16)}, repeats=3, warmup=1)
    return taken["float32"].median_ms / taken["bfloat16"].median_ms


def warn_of_slow_bf16(args: TrainingArguments) -> None:
    """Say so if these arguments train in bfloat16 on a CPU that is faster in float32."""
    if args.bf16 and args.device.type == "cpu" and args.process_index == 0:
        speedup = bf16_speedup()
        if speedup < 1:
            logger.warning(f"bf16: this CPU multiplies matrices {1 / speedup:.1f} times as fast in float32; set bf16 to false")
