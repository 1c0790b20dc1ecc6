"""`hf-elastic export`: write a size as a standard checkpoint, ONNX, or another of the formats."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from ..export import FORMATS, export_subnet
from ..export.formats import select
from ..files import read_mapping
from .common import parse
from .data import load_elastic, load_tokenizer


@dataclass
class ExportArguments:
    """Which size to write, and how."""

    model: str = field(metadata={"help": "Folder or Hub id of an elastic checkpoint, or of an adapter for one."})
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
            "O4 and half precision (GPU); default: the plain graph, which any runtime reads."
        },
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
    calibration_corpus: str | None = field(
        default=None, metadata={"help": "tensorrt int8: a text file to calibrate on, one text per line (.gz too)."}
    )
    build: bool | None = field(
        default=None, metadata={"help": "tensorrt: build the engine, where TensorRT and its GPU are; else stop before any work."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, write nothing."})

    def __post_init__(self):
        if self.subnet is not None and self.frontier is not None:
            raise ValueError("give subnet or frontier, not both")
        if not isinstance(self.subnet, str) or self.subnet.lstrip().startswith("{"):
            self.subnet = read_mapping("subnet", self.subnet)
        self.limits = read_mapping("limits", self.limits)


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([ExportArguments], argv, "export", "Write a size of an elastic model for use elsewhere.")
    run(args)
    return 0


def format_options(args: ExportArguments) -> dict:
    """The options of formats that are set; each is a field of the same name."""
    known = frozenset().union(*(one.options for one in FORMATS.values()))
    return {name: value for name, value in dataclasses.asdict(args).items() if name in known and value is not None}


def run(args: ExportArguments) -> dict | None:
    """Export.

    Returns:
        format -> its parity record; None on a dry run.
    """
    from ..files import check_output
    from ..search import Frontier

    options = format_options(args)
    select(args.formats, options)
    check_output(args.output_dir, overwrite=args.overwrite)
    if args.dry_run:
        return None
    subnet = args.subnet
    if args.frontier is not None:
        subnet = Frontier.load(args.frontier).best(**(args.limits or {})).subnet
    model = load_elastic(args.model)
    records = export_subnet(
        model,
        subnet,
        args.output_dir,
        args.formats,
        tokenizer=load_tokenizer(args.model),
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
    for name, record in records.items():
        where = FORMATS[name].folder(Path(args.output_dir))
        difference, agreement = record["max_abs_difference"], record["argmax_agreement"]
        print(f"{name}: {where}, largest difference {difference:.2g}, same decision {agreement:.1%}")
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
