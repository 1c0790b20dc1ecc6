"""`hf-elastic retrieve align`: sizes that answer queries from an index that exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..retrieval import check_installed
from ..retrieval.align_config import AlignConfig
from ..utils.options import read_mapping, read_name_or_mapping
from .common import parse
from .data import check_device


@dataclass(kw_only=True)
class RetrieveAlignArguments:
    """Which model's sizes to align, and on what."""

    model: str = field(
        metadata={"help": "Model that encodes the documents (folder or Hub id): of sentence-transformers, or an ElasticDenser."}
    )
    texts: str = field(
        metadata={
            "help": "Unlabelled texts: a .txt file with one a line, best of queries; or documents as for retrieve index, of "
            "which the sentences are taken."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for the ElasticDenser."})
    index: str | None = field(
        default=None, metadata={"help": "Folder of the index that queries shall go to; refused if the model did not fill it."}
    )
    space: str | None = field(
        default=None,
        metadata={"help": "Mapping of axis to values, or 'default' for depth and feed-forward width; for a model without sizes."},
    )
    subnets: str | None = field(default=None, metadata={"help": "Mapping of name to size; for a model without sizes."})
    layer_order: str = field(
        default="ends", metadata={"help": "Layers that a depth keeps: ends (first, last, then the others) or first."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is in the folder."})
    device: str | None = field(default=None, metadata={"help": "Device for torch, such as cpu or cuda; default: the best."})

    def __post_init__(self):
        self.space = None if self.space is None else read_name_or_mapping("space", self.space)
        self.subnets = read_mapping("subnets", self.subnets)


def main(argv: list[str]) -> int:
    """Run the command."""
    args, config = parse([RetrieveAlignArguments, AlignConfig], argv, "retrieve align")
    run(args, config)
    return 0


def run(args: RetrieveAlignArguments, config: AlignConfig) -> dict[str, dict[str, float]]:
    """Align, save the model, and print how near each size is to the full one.

    Returns:
        What `align` does.
    """
    check_installed()
    from rich.console import Console
    from rich.table import Table

    from ..retrieval.align import align
    from ..retrieval.denser import ElasticDenser, elastic_sentence_transformer
    from ..retrieval.index import Index
    from ..retrieval.loading import load_denser
    from ..utils.folders import check_output

    inputs = {"model": args.model, "texts": args.texts, "index": args.index}
    check_output(args.output_dir, overwrite=args.overwrite, inputs={name: path for name, path in inputs.items() if path})
    texts = _read_texts(args.texts)
    model = load_denser(args.model, args.device and check_device(args.device))
    if args.index is not None:
        Index.load(args.index, model)
    if not isinstance(model, ElasticDenser):
        model = elastic_sentence_transformer(model, args.space, args.subnets, layer_order=args.layer_order)
    elif args.space is not None or args.subnets:
        raise UserError(f"space, subnets: {args.model} has its own; leave them out")
    found = align(model, texts, args.output_dir, config, overwrite=args.overwrite, show_progress=True)
    table = Table("size", "cosine to the full size, before", "after")
    for name, cosines in found.items():
        table.add_row(name, f"{cosines['before']:.3f}", f"{cosines['cosine']:.3f}")
    Console().print(table)
    print(f"written: {args.output_dir}")
    return found


def _read_texts(path: str) -> list[str]:
    from ..retrieval.align import sentences_of
    from ..retrieval.data import read_corpus
    from ..utils.files import reading

    if Path(path).suffix != ".txt":
        return list(sentences_of(read_corpus(path)))
    with reading(path, "file of texts", "is no text in UTF-8"):
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
