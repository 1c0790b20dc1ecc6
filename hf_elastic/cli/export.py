"""`hf-elastic export`: write a size as a standard checkpoint, ONNX, or another of the formats."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..core.errors import UserError
from ..export import FORMATS, export_subnet
from ..export.formats import select
from ..export.subnet import check_limit
from ..utils.options import read_mapping, read_name_or_mapping
from .common import parse
from .data import DataArguments, load_elastic, load_tokenizer
from .export_data import check_rows, read_calibration, read_held_out
from .export_report import report


@dataclass(kw_only=True)
class ExportArguments(DataArguments):
    """Which size to write, and how."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Score and time every format on the held-out rows of this data set: as for train; default: none."},
    )
    output_dir: str = field(metadata={"help": "Folder for the exported size."})
    subnet: str | None = field(
        default=None, metadata={"help": "A named size, or a subnet as JSON or a mapping; default: the full size."}
    )
    frontier: str | None = field(
        default=None, metadata={"help": "Instead of subnet: a frontier.json, whose best point within the limits is taken."}
    )
    limits: str | None = field(default=None, metadata={"help": 'For frontier: value -> bound, such as {"latency_ms": 10}.'})
    formats: list[str] = field(
        default_factory=lambda: ["safetensors"],
        metadata={"help": "; ".join(f"{one.name}: {one.description}" for one in FORMATS.values()) + "."},
    )
    opset: int | None = field(default=None, metadata={"help": "For ONNX: version of its operators; default: 18."})
    optimize: str | None = field(
        default=None,
        metadata={
            "help": "For ONNX: O1 basic rewrites, O2 and fused attention (onnxruntime only), O3 and approximate GELU, "
            "O4 and half precision (for GPUs); default: the plain graph, which any runtime reads."
        },
    )
    max_eval_rows: int | None = field(default=None, metadata={"help": "Score on the first so many rows only (count)."})
    max_accuracy_drop: float | None = field(
        default=None, metadata={"help": "Refuse a format that loses more accuracy than this (percentage points)."}
    )
    fallback: str | None = field(
        default=None,
        metadata={"help": "For ONNX in int8: 'float' keeps the layers that hurt most in float where too much accuracy is lost."},
    )
    calibration: str | None = field(
        default=None,
        metadata={"help": "Data for static int8: a text file, a folder, or a Hub id; default: training rows of dataset."},
    )
    calibration_rows: int = field(default=128, metadata={"help": "How many of them, drawn with the seed 0 (count)."})
    cpu_instructions: str | None = field(
        default=None,
        metadata={"help": "For ONNX in int8: auto (this CPU), avx2, avx512, avx512_vnni or arm64."},
    )
    weights_compute: str | None = field(
        default=None,
        metadata={"help": "For onnx-int8-weights: float, or int8: blocks of activations are quantized too; default: float."},
    )
    standard_only: bool = field(default=False, metadata={"help": "Refuse a size that plain transformers cannot load."})
    keep_vocabulary_of: str | None = field(
        default=None,
        metadata={"help": "A text file, one text per line (.gz too): drop the tokens that it does not need."},
    )
    precision: str | None = field(
        default=None, metadata={"help": "tensorrt: fp16 (default), bf16, int8 or fp32; the types are written into the graph."}
    )
    min_batch_size: int | None = field(default=None, metadata={"help": "tensorrt: fewest rows (count); default 1."})
    opt_batch_size: int | None = field(default=None, metadata={"help": "tensorrt: rows that it is tuned for; default 8."})
    max_batch_size: int | None = field(default=None, metadata={"help": "tensorrt: most rows; the same as min: static."})
    min_sequence_length: int | None = field(default=None, metadata={"help": "tensorrt: fewest tokens (count); default 1."})
    opt_sequence_length: int | None = field(default=None, metadata={"help": "tensorrt: tokens it is tuned for; default 128."})
    max_sequence_length: int | None = field(
        default=None, metadata={"help": "tensorrt: most tokens; default 512, or what the model takes. The same as min: static."}
    )
    build: bool = field(
        default=False, metadata={"help": "tensorrt: build the engine, where TensorRT and its GPU are; else stop before any work."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, write nothing."})

    def __post_init__(self):
        if self.subnet is not None and self.frontier is not None:
            raise UserError("give subnet or frontier, not both")
        self.subnet = read_name_or_mapping("subnet", self.subnet)
        self.limits = read_mapping("limits", self.limits)


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([ExportArguments], argv, "export")
    run(args)
    return 0


def format_options(args: ExportArguments) -> dict:
    """The options of formats that are set; each is a field of the same name."""
    known = frozenset().union(*(one.options for one in FORMATS.values()))
    values = {
        name: value
        for name, value in dataclasses.asdict(args).items()
        if name in known and value is not None and value is not False
    }
    chosen = [FORMATS[name] for name in args.formats if name in FORMATS]
    if any("calibration" in one.options for one in chosen) and (args.calibration or args.dataset):
        values["calibration"] = read_calibration(args)
    return values


def run(args: ExportArguments) -> dict | None:
    """Export.

    Returns:
        format -> its parity record; None on a dry run.
    """
    from ..search import Frontier
    from ..utils.files import check_output

    # The packages are checked before the data are read, which can take a while.
    select(args.formats)
    options = format_options(args)
    select(args.formats, options)
    check_rows(args)
    check_limit(args.max_accuracy_drop, args.dataset is not None, options)
    check_output(args.output_dir, overwrite=args.overwrite)
    if args.dry_run:
        return None
    subnet = args.subnet
    if args.frontier is not None:
        subnet = Frontier.load(args.frontier).best(**(args.limits or {})).subnet
    model, tokenizer = load_elastic(args.model), load_tokenizer(args.model)
    records = export_subnet(
        model,
        subnet,
        args.output_dir,
        args.formats,
        tokenizer=tokenizer,
        held_out=None if args.dataset is None else partial(read_held_out, args),
        max_accuracy_drop=args.max_accuracy_drop,
        overwrite=args.overwrite,
        standard_only=args.standard_only,
        keep_vocabulary_of=args.keep_vocabulary_of,
        **options,
    )
    kind = model.portability_of(subnet)
    print(f"{json.dumps(model.subnet(subnet).to_dict())} is {kind}")
    if kind == "elastic":
        print(f"it needs hf_elastic or trust_remote_code to load: {model.why_elastic(subnet)}")
        print(f"nearest standard size: {json.dumps(model.nearest_standard(subnet).to_dict())}")
    report(records, Path(args.output_dir))
    if args.keep_vocabulary_of is not None:
        _print_vocabulary(Path(args.output_dir) / "vocabulary.json")
    return records


def _print_vocabulary(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    print(
        f"vocabulary: {report['vocabulary_before']:,} -> {report['vocabulary_after']:,} tokens, "
        f"{report['parameters_saved']:,} parameters ({report['megabytes_saved']:.1f} MB) less; "
        f"{report['corpus_tokens_unchanged']:.0%} of "
        f"{report['corpus_tokens']:,} corpus tokens unchanged, largest difference of outputs {report['max_abs_difference']:.2g}"
    )
