"""How a size is exported: the options of `export_subnet`, of `hf-elastic export` and of its recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import UserError
from .calibration import check_calibration
from .format import HUB, LAYOUTS, Format
from .formats import FORMATS, select


@dataclass
class ExportConfig:
    """Which formats to write, and how.

    Raises:
        UserError: an unknown format or none, an option that none of them takes, or a value that one of them refuses.
        MissingPackageError: a format needs a package that is not installed; the message names the extra.
    """

    formats: list[str] = field(
        default_factory=lambda: ["safetensors"],
        metadata={"help": "; ".join(f"{one.name}: {one.description}" for one in FORMATS.values()) + "."},
    )
    dtype: str | None = field(
        default=None, metadata={"help": "safetensors: float32, float16 or bfloat16, rounded if need be; default: the model's."}
    )
    layout: str = field(
        default="folders",
        metadata={
            "help": "folders: one for each format. hub: onnx/model.onnx and onnx/model_quantized.onnx beside config and "
            "tokenizer, where text-embeddings-inference and transformers.js look for them."
        },
    )
    standard_only: bool = field(default=False, metadata={"help": "Refuse a size that plain transformers cannot load."})
    max_accuracy_drop: float | None = field(
        default=None,
        metadata={"help": "Refuse a format that loses more accuracy on the held-out rows than this (percentage points)."},
    )
    opset: int | None = field(default=None, metadata={"help": "For ONNX: version of its operators; default: 18."})
    optimize: str | None = field(
        default=None,
        metadata={
            "help": "For ONNX: O1 basic rewrites, O2 and fused attention (onnxruntime only), O3 and approximate GELU, "
            "O4 and half precision (for GPUs); default: the plain graph, which any runtime reads."
        },
    )
    fallback: str | None = field(
        default=None,
        metadata={"help": "For ONNX in int8: 'float' keeps the layers that hurt most in float where too much accuracy is lost."},
    )
    cpu_instructions: str | None = field(
        default=None, metadata={"help": "For ONNX in int8: auto (this CPU), avx2, avx512, avx512_vnni or arm64; default: auto."}
    )
    weights_compute: str | None = field(
        default=None,
        metadata={"help": "For onnx-int8-weights: float, or int8: blocks of activations are quantized too; default: float."},
    )
    precision: str | None = field(
        default=None,
        metadata={"help": "tensorrt: fp16, bf16, int8 or fp32; the types are written into the graph; default: fp16."},
    )
    min_batch_size: int | None = field(default=None, metadata={"help": "tensorrt: fewest rows (count); default: 1."})
    opt_batch_size: int | None = field(default=None, metadata={"help": "tensorrt: rows that it is tuned for; default: 8."})
    max_batch_size: int | None = field(
        default=None, metadata={"help": "tensorrt: most rows; the same as min: static; default: 32."}
    )
    min_sequence_length: int | None = field(default=None, metadata={"help": "tensorrt: fewest tokens (count); default: 1."})
    opt_sequence_length: int | None = field(default=None, metadata={"help": "tensorrt: tokens it is tuned for; default: 128."})
    max_sequence_length: int | None = field(
        default=None,
        metadata={"help": "tensorrt: most tokens; the same as min: static; default: 512, or what the model takes."},
    )
    build: bool = field(
        default=False, metadata={"help": "tensorrt: build the engine, where TensorRT and its GPU are; else stop before any work."}
    )

    def __post_init__(self):
        chosen = self.chosen
        for option in self.options:
            if not any(option in one.options for one in chosen):
                raise UserError(f"{option}: {_option_of([o for o in FORMATS.values() if option in o.options], chosen)}")
        if self.max_accuracy_drop is not None and not self.max_accuracy_drop >= 0:
            raise UserError(f"max_accuracy_drop must be 0 or more percentage points, got {self.max_accuracy_drop!r}")
        if self.layout not in LAYOUTS:
            raise UserError(f"layout: {self.layout!r} is unknown; known: {', '.join(LAYOUTS)}")
        if self.layout == HUB:
            _check_hub(chosen)
        for one in chosen:
            one.check_options(self.options)
        if self.fallback is not None and self.max_accuracy_drop is None:
            raise UserError("fallback: what exceeds max_accuracy_drop stays in float, so it needs max_accuracy_drop")

    @property
    def chosen(self) -> list[Format]:
        """The formats, in the order in which they are written."""
        return select(self.formats)

    @property
    def options(self) -> dict[str, Any]:
        """What is set of the options of the formats."""
        known = frozenset().union(*(one.options for one in FORMATS.values()))
        return {name: value for name, value in vars(self).items() if name in known and value is not None and value is not False}

    def check_data(self, calibration: Sequence | None, *, has_held_out: bool) -> None:
        """Refuse data that the formats do not take, and the lack of data that they need.

        Args:
            calibration: texts, pairs of texts, or tokenized rows.
            has_held_out: whether there are labelled rows to score the formats on.

        Raises:
            UserError: which data, and what for.
        """
        if self.max_accuracy_drop is not None and not has_held_out:
            raise UserError("max_accuracy_drop needs labelled rows to find the accuracy on: give a data set")
        chosen = self.chosen
        if calibration is None:
            for one in chosen:
                if one.needs_calibration:
                    raise UserError(f"{one.name} needs calibration: texts or tokenized rows like those that the model will see")
            return
        if not any(one.takes_calibration for one in chosen):
            raise UserError(f"calibration: {_option_of([one for one in FORMATS.values() if one.takes_calibration], chosen)}")
        check_calibration(calibration)


def _check_hub(chosen: Sequence[Format]) -> None:
    """Refuse formats that have no place in the layout of the Hub, or have the same one."""
    names: dict[str, str] = {}
    for one in chosen:
        if not one.in_root and one.hub_name is None:
            raise UserError(f"layout: {HUB} has no place for {one.name}: it takes ONNX, and the checkpoint")
        if one.hub_name in names:
            raise UserError(f"layout: {HUB} has one {one.hub_name}.onnx: choose {names[one.hub_name]} or {one.name}")
        if one.hub_name is not None:
            names[one.hub_name] = one.name
    if not names:
        raise UserError(f"layout: {HUB} is about graphs in ONNX, and none of the formats is one")


def _option_of(takers: Sequence[Format], chosen: Sequence[Format]) -> str:
    return f"an option of {', '.join(one.name for one in takers)}; formats: {', '.join(one.name for one in chosen)}"
