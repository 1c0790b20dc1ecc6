"""Which int8 arithmetic a CPU does without saturating: settings of the quantizer by instruction set."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from ...core.errors import UserError

CPU_INFO = Path("/proc/cpuinfo")
# Linux names of the dot products that add four int8 products in 32 bits; without them x86 adds pairs in 16 bits.
DOT_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni"}
AUTO = "auto"


@dataclass(frozen=True)
class WeightSettings:
    """How weights become int8; activations are always unsigned.

    Attributes:
        signed: int8 with a zero point of 0; unsigned ones have a zero point of their own.
        reduce_range: 7 bits, so that the 16-bit sum of two products cannot saturate.
    """

    signed: bool
    reduce_range: bool


# The types are those of Optimum's `AutoQuantizationConfig`. It leaves `reduce_range` to the user; onnxruntime's documentation
# recommends it for signed weights on a CPU with AVX-512 and no VNNI, where a saturated sum costs accuracy silently.
INSTRUCTIONS = {
    "avx2": WeightSettings(signed=False, reduce_range=False),
    "avx512": WeightSettings(signed=True, reduce_range=True),
    "avx512_vnni": WeightSettings(signed=True, reduce_range=False),
    "arm64": WeightSettings(signed=True, reduce_range=False),
}


def check_instructions(name: str) -> None:
    """Raise ValueError for an instruction set that is not known."""
    if name != AUTO and name not in INSTRUCTIONS:
        raise UserError(f"cpu_instructions: {name!r} is unknown; known: {', '.join((AUTO, *INSTRUCTIONS))}")


def resolve_instructions(name: str | None = None) -> str:
    """The instruction set to quantize for.

    Args:
        name: one of `INSTRUCTIONS`; "auto" or None for that of this CPU.

    Raises:
        ValueError: the name is unknown.
    """
    name = name or AUTO
    check_instructions(name)
    return detect_instructions() if name == AUTO else name


def detect_instructions(cpu_info: Path = CPU_INFO, machine: str | None = None) -> str:
    """The instruction set of this CPU.

    Where the system lists no flags, what torch found decides; it does not tell VNNI, so the answer is the careful one.

    Args:
        cpu_info: Linux' list of flags.
        machine: architecture; None for this one's.
    """
    if (machine or platform.machine()).lower() in ("aarch64", "arm64"):
        return "arm64"
    flags = _flags(cpu_info)
    if flags & DOT_PRODUCT_FLAGS:
        return "avx512_vnni"
    if "avx512f" in flags or (not flags and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return "avx512"
    return "avx2"


def _flags(cpu_info: Path) -> set[str]:
    if not cpu_info.is_file():
        return set()
    for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return set(value.split())
    return set()
