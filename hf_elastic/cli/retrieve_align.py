"""`hf-elastic retrieve align`: sizes that answer queries from an index that exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..retrieval import check_installed
from ..retrieval.align_config import AlignConfig
from ..utils.options import read_mapping, read_name_or_mapping
from .common import parse
from .data import check_device


@dataclass(kw_only=True)
class RetrieveAlignArguments:
    """Which model's sizes to align, and on what.

    Raises:
        UserError: not one of `model` and `vectors`, or vectors without what they need.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Model that encodes the documents (folder or Hub id): of sentence-transformers, or an ElasticDenser."},
    )
    query_model: str | None = field(
        default=None,
        metadata={
            "help": "Model whose sizes shall encode the queries, of any backbone and width: of sentence-transformers, a plain "
            "encoder, or an ElasticDenser for queries; default: the model that encodes the documents."
        },
    )
    vectors: str | None = field(
        default=None,
        metadata={
            "help": "Instead of the model: a file, .npy or .safetensors, with the vector that it gives for each line of the "
            "texts (.txt) as a query."
        },
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
        if (self.model is None) == (self.vectors is None):
            raise UserError("model, vectors: give one of them, the model that encodes the documents or its vectors of the texts")
        if self.vectors is not None and None in (self.query_model, self.index):
            raise UserError("vectors: they go with query_model, and with the index whose model has given them")
        if self.vectors is not None and Path(self.texts).suffix != ".txt":
            raise UserError(f"texts: {self.texts} with vectors; needed is a .txt file, with a line for each vector")
        self.space = None if self.space is None else read_name_or_mapping("space", self.space)
        self.subnets = read_mapping("subnets", self.subnets)


def main(argv: list[str]) -> int:
    """Run the command."""
    args, config = parse([RetrieveAlignArguments, AlignConfig], argv, "retrieve align")
    run(args, config)
    return 0


def run(args: RetrieveAlignArguments, config: AlignConfig) -> dict[str, dict[str, float]]:
    """Align, save the model, and print how near each size is to the document tower.

    Returns:
        What `align` does.
    """
    check_installed()
    from rich.console import Console
    from rich.table import Table

    from ..retrieval.align import align
    from ..retrieval.denser import ElasticDenser, elastic_sentence_transformer
    from ..retrieval.fingerprint import fingerprint_of
    from ..retrieval.index import Index
    from ..retrieval.index.index import read_record
    from ..retrieval.loading import load_denser
    from ..utils.folders import check_output

    inputs = {name: getattr(args, name) for name in ("model", "query_model", "vectors", "texts", "index")}
    check_output(args.output_dir, overwrite=args.overwrite, inputs={name: path for name, path in inputs.items() if path})
    texts, device = _read_texts(args.texts), args.device and check_device(args.device)
    documents = None if args.model is None else load_denser(args.model, device)
    base, mode = documents, {}
    if args.query_model is not None:
        aligned_to = read_record(Path(args.index))[1] if documents is None else fingerprint_of(documents)
        base, mode = load_denser(args.query_model, device), {"mode": "query", "aligned_to": aligned_to}
    if not isinstance(base, ElasticDenser):
        model = elastic_sentence_transformer(base, args.space, args.subnets, layer_order=args.layer_order, **mode)
    elif args.space is not None or args.subnets:
        raise UserError(f"space, subnets: {args.query_model or args.model} has its own; leave them out")
    else:
        model = base
    index = None if args.index is None else Index.load(args.index, model)
    targets = None
    if mode:
        targets = _read_vectors(args.vectors) if documents is None else documents
        model.similarity_fn_name = documents.similarity_fn_name if index is None else index.config.metric
    found = align(model, texts, args.output_dir, config, targets=targets, overwrite=args.overwrite, show_progress=True)
    table = Table("size", "cosine to the document tower, before", "after")
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


def _read_vectors(path: str) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ..utils.files import reading

    try:
        with reading(path, "file of vectors", "is no file of vectors"):
            if Path(path).suffix == ".npy":
                vectors = np.load(path, allow_pickle=False)
            elif Path(path).suffix == ".safetensors":
                vectors = [one.float().numpy() for one in load_file(path).values()]  # numpy has no bfloat16
                vectors = vectors[0] if len(vectors) == 1 else vectors
            else:
                raise UserError(f"vectors: {path} is neither .npy nor .safetensors")
    except (SafetensorError, EOFError) as error:
        raise UserError(f"{path} is no file of vectors: {error}") from error
    if not isinstance(vectors, np.ndarray):
        raise UserError(f"vectors: {path} holds {len(vectors)} arrays; needed is one")
    return vectors
