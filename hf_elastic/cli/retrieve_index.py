"""`hf-elastic retrieve index`: encode a collection of documents and write an index."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..retrieval import check_installed
from ..retrieval.encode_config import EncodingConfig
from ..retrieval.index.config import IndexConfig
from ..utils.options import read_name_or_mapping
from .common import parse
from .data import check_device


@dataclass(kw_only=True)
class RetrieveIndexArguments(EncodingConfig):
    """Which documents to index with which model, and where the index goes."""

    model: str = field(metadata={"help": "Model that encodes the documents: a folder or a Hub id."})
    corpus: str = field(metadata={"help": "Documents: a BEIR folder, or a .jsonl or .tsv file (.gz too)."})
    output_dir: str = field(metadata={"help": "Folder for the index."})
    work_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the vectors, which stay there; default: OUTPUT_DIR.vectors, deleted when the index is done."
        },
    )
    subnet: str | None = field(
        default=None, metadata={"help": "Size that encodes the documents, of a symmetric ElasticDenser; default: full."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an index that is in the folder."})
    device: str | None = field(default=None, metadata={"help": "Device for torch, such as cpu or cuda; default: the best."})


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([RetrieveIndexArguments, IndexConfig], argv, "retrieve index"))
    return 0


def run(args: RetrieveIndexArguments, config: IndexConfig):
    """Encode and index; print counts.

    Returns:
        The `EncodedCorpus`.
    """
    check_installed()
    from accelerate import PartialState

    from ..retrieval.build import build_index
    from ..retrieval.loading import document_tower, load_denser
    from ..utils.folders import check_output

    check_output(args.output_dir, overwrite=args.overwrite)
    places = {"output_dir": args.output_dir, "work_dir": args.work_dir, "overwrite": args.overwrite}
    size = None if args.subnet is None else read_name_or_mapping("subnet", args.subnet)
    model = document_tower(load_denser(args.model, args.device and check_device(args.device)), size)
    encoded = build_index(model, args.corpus, config=config, encoding=args, show_progress=True, **places)
    if PartialState().is_main_process:
        print(encoded.summary())
        print(f"written: {args.output_dir}")
    return encoded
