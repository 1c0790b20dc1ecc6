"""Which shapes an engine takes, and how that is said to trtexec, to ONNX Runtime and to TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import UserError
from ...utils.options import check_integers

KINDS = ("min", "opt", "max")
BATCH, SEQUENCE = "batch_size", "sequence_length"
DEFAULT_BATCH = (1, 8, 32)
DEFAULT_SEQUENCE = (1, 128, 512)
OPTIONS = tuple(f"{kind}_{axis}" for axis in (BATCH, SEQUENCE) for kind in KINDS)


@dataclass(frozen=True)
class Profile:
    """The smallest, the best-tuned and the largest shape of an engine; where all are one, its shapes are static.

    Attributes:
        batch: rows, (min, opt, max).
        sequence: tokens, (min, opt, max).
    """

    batch: tuple[int, int, int]
    sequence: tuple[int, int, int]

    @property
    def fixed(self) -> dict[str, int]:
        """Name -> size of the axes that have only one."""
        axes = {BATCH: self.batch, SEQUENCE: self.sequence}
        return {name: sizes[0] for name, sizes in axes.items() if sizes[0] == sizes[2]}

    @property
    def is_static(self) -> bool:
        """Whether there is one shape only."""
        return len(self.fixed) == 2

    def shape(self, kind: str) -> tuple[int, int]:
        """(rows, tokens) of "min", "opt" or "max"."""
        position = KINDS.index(kind)
        return self.batch[position], self.sequence[position]

    def spec(self, kind: str, inputs: Sequence[str]) -> str:
        """The shapes of all inputs as trtexec and ONNX Runtime write them: `input_ids:1x16,attention_mask:1x16`."""
        rows, tokens = self.shape(kind)
        return ",".join(f"{name}:{rows}x{tokens}" for name in inputs)

    def to_dict(self) -> dict:
        """As in `tensorrt.json`."""
        return {kind: {BATCH: self.shape(kind)[0], SEQUENCE: self.shape(kind)[1]} for kind in KINDS}


def profile_of(options: Mapping[str, Any], longest: int) -> Profile:
    """The profile that the options ask for, the rest filled in between.

    Args:
        options: any of `min_batch_size`, `opt_batch_size`, `max_batch_size` (rows), and the same of `sequence_length` (tokens).
        longest: the most tokens that the model takes.

    Raises:
        ValueError: a value is no positive whole number, min > opt or opt > max, or more tokens than the model takes.
    """
    defaults = (1, min(DEFAULT_SEQUENCE[1], longest), min(DEFAULT_SEQUENCE[2], longest))
    profile = Profile(_range(options, BATCH, DEFAULT_BATCH), _range(options, SEQUENCE, defaults))
    if profile.sequence[2] > longest:
        raise UserError(f"max_{SEQUENCE}: {profile.sequence[2]} is longer than the model, which takes {longest} tokens")
    return profile


def _range(options: Mapping[str, Any], axis: str, defaults: tuple[int, int, int]) -> tuple[int, int, int]:
    given = {kind: options.get(f"{kind}_{axis}") for kind in KINDS}
    check_integers(1, or_none=True, **{f"{kind}_{axis}": value for kind, value in given.items()})
    known = [value for value in given.values() if value is not None]
    # What is not given makes room for what is: a default never contradicts a choice.
    low = given["min"] if given["min"] is not None else min([defaults[0], *known])
    high = given["max"] if given["max"] is not None else max([defaults[2], *known])
    best = given["opt"] if given["opt"] is not None else min(max(defaults[1], low), high)
    if not low <= best <= high:
        raise UserError(f"{axis}: min {low}, opt {best} and max {high} must not fall")
    return low, best, high


def trtexec_command(profile: Profile, inputs: Sequence[str], graph: str, engine: str) -> list[str]:
    """The command line that builds the engine, run in the folder of the graph; for TensorRT 10 and 11.

    Precision flags (`--fp16`, `--int8`) are not used: they are gone in TensorRT 11, and the graph has its types. trtexec of
    TensorRT 10 needs `--stronglyTyped` to keep to them; that of 11 always does.
    """
    command = ["trtexec", f"--onnx={graph}", f"--saveEngine={engine}", "--stronglyTyped"]
    if not profile.is_static:
        command += [f"--{kind}Shapes={profile.spec(kind, inputs)}" for kind in KINDS]
    return [*command, "--skipInference"]


def provider_options(profile: Profile, inputs: Sequence[str], cache: str) -> dict[str, Any]:
    """Options of ONNX Runtime's `TensorrtExecutionProvider`.

    `trt_fp16_enable` and `trt_int8_enable` are off on purpose: with TensorRT 10 and later the provider then builds a strongly
    typed network, which keeps to the types of the graph.
    """
    options: dict[str, Any] = {
        "device_id": 0,
        "trt_fp16_enable": False,
        "trt_int8_enable": False,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": cache,
    }
    if not profile.is_static:
        options |= {f"trt_profile_{kind}_shapes": profile.spec(kind, inputs) for kind in KINDS}
    return options
