"""`hf-elastic export`: write a size as a standard checkpoint, ONNX, or another of the formats."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from ..core.errors import UserError
from ..export.config import ExportConfig
from ..export.vocabulary.corpus import read_texts
from ..utils.folders import check_output, filled
from ..utils.options import check_integers, read_mapping, read_name_or_mapping
from .common import parse
from .data import DataArguments, load_elastic, load_tokenizer


@dataclass(kw_only=True)
class ExportArguments(DataArguments):
    """Which size to write, and with which data."""

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
    max_eval_rows: int | None = field(
        default=None, metadata={"help": "Score on the first so many rows only (count); default: all."}
    )
    calibration: str | None = field(
        default=None,
        metadata={
            "help": "Data for static int8 and alike_heads: a text file, a folder, or a Hub id; default: training rows of dataset."
        },
    )
    calibration_rows: int = field(default=128, metadata={"help": "How many of them, drawn with the seed 0 (count)."})
    keep_vocabulary_of: str | None = field(
        default=None,
        metadata={"help": "A text file, one text per line (.gz too): drop the tokens that it does not need, before the export."},
    )
    alike_heads: float | None = field(
        default=None,
        metadata={
            "help": "Before the export: of a layer's heads with alike contexts, linear CKA above this (ELM: 0.9), one counts; "
            "fewer, wider heads partition the same channels. No parameter changes; train the size afterwards. Default: all count."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, write nothing."})

    def __post_init__(self):
        if self.subnet is not None and self.frontier is not None:
            raise UserError("give subnet or frontier, not both")
        self.subnet = read_name_or_mapping("subnet", self.subnet)
        self.limits = read_mapping("limits", self.limits)
        check_integers(1, or_none=True, max_eval_rows=self.max_eval_rows)
        check_integers(1, calibration_rows=self.calibration_rows)
        if self.alike_heads is not None and not 0 < self.alike_heads < 1:
            raise UserError(f"alike_heads: {self.alike_heads} is not between 0 and 1")


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([ExportArguments, ExportConfig], argv, "export"))
    return 0


def run(args: ExportArguments, config: ExportConfig) -> dict | None:
    """Export.

    Returns:
        format -> its parity record; None on a dry run.
    """
    from ..export.subnet import export_subnet
    from .export_data import merge_heads, read_calibration, read_held_out
    from .export_report import report, report_vocabulary

    calibration = None
    if any(one.takes_calibration for one in config.chosen) and (args.calibration or args.dataset):
        calibration = read_calibration(args)
    config.check_data(calibration, has_held_out=args.dataset is not None)
    output = check_output(args.output_dir, overwrite=args.overwrite)
    corpus = None if args.keep_vocabulary_of is None else read_texts("keep_vocabulary_of", args.keep_vocabulary_of)
    if args.dry_run:
        return None
    subnet = args.subnet
    if args.frontier is not None:
        from ..search import Frontier

        subnet = Frontier.load(args.frontier).best(**(args.limits or {})).subnet
    with filled(output, overwrite=args.overwrite) as folder:
        model, tokenizer = load_elastic(args.checkpoint), load_tokenizer(args.checkpoint)
        model.resolve(subnet)
        if args.alike_heads is not None:
            subnet = merge_heads(args, model, subnet, tokenizer)
        held_out = None if args.dataset is None else read_held_out(args, model, tokenizer)
        if corpus is not None:
            model, tokenizer, held_out, saved = prune(args, model, subnet, tokenizer, corpus, held_out)
        data = {"tokenizer": tokenizer, "held_out": held_out, "calibration": calibration}
        records = export_subnet(model, subnet, folder, config, **data)
        if corpus is not None:
            (folder / "vocabulary.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    kind = model.portability_of(subnet)
    print(f"{json.dumps(model.subnet(subnet).to_dict())} is {kind}")
    if kind == "elastic":
        print(f"it needs hf_elastic or trust_remote_code to load: {model.why_elastic(subnet)}")
        print(f"nearest standard size: {json.dumps(model.nearest_standard(subnet).to_dict())}")
    report(records, output, config.layout)
    if corpus is not None:
        report_vocabulary(saved)
    return records


def prune(args: ExportArguments, model, subnet, tokenizer, corpus: list[str], held_out):
    """The step before an export: model, tokenizer and held-out rows with the vocabulary of a corpus, and what that saved.

    What it costs a classifier counts as a loss of accuracy; the tokens of a language model are others, so its score starts here.
    """
    from ..export.vocabulary.pruning import prune_and_compare
    from .export_data import read_held_out

    smaller, smaller_tokenizer, saved = prune_and_compare(model, subnet, tokenizer, corpus)
    if held_out is not None:
        scores = {}
        if not held_out.is_language_model:
            views = {"reference_scores": model.view(subnet), "full_scores": model.view()}
            scores = {name: held_out.score_of(view) for name, view in views.items()}
        held_out = replace(read_held_out(args, smaller, smaller_tokenizer), **scores)
    return smaller, smaller_tokenizer, held_out, saved
