"""`hf-elastic retrieve query`: search an index."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..retrieval import check_installed
from ..utils.options import check_integers, read_name_or_mapping
from .common import parse
from .data import check_device

SHOWN = 5  # queries in the table


@dataclass(kw_only=True)
class RetrieveQueryArguments:
    """What to look for in which index.

    Raises:
        UserError: not one of `query` and `queries`, or a number that is too small.
    """

    model: str = field(
        metadata={"help": "Model that encodes the queries, and whose documents are in the index: folder or Hub id."}
    )
    index: str = field(metadata={"help": "Folder of the index."})
    query: str | None = field(default=None, metadata={"help": "One query."})
    queries: str | None = field(default=None, metadata={"help": "File of queries: .tsv with id and text, or .jsonl (.gz too)."})
    subnet: str | None = field(
        default=None, metadata={"help": "Size that encodes the queries, of an elastic model; default: full."}
    )
    k: int = field(default=10, metadata={"help": "Documents for each query (count)."})
    batch_size: int = field(default=32, metadata={"help": "Queries that are encoded at once (count)."})
    output: str | None = field(default=None, metadata={"help": "TREC run file to write; default: none, only the table."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a run file that is there."})
    device: str | None = field(default=None, metadata={"help": "Device for torch, such as cpu or cuda; default: the best."})

    def __post_init__(self):
        if (self.query is None) == (self.queries is None):
            raise UserError("query, queries: give one of them, a text or a file")
        check_integers(1, k=self.k, batch_size=self.batch_size)


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([RetrieveQueryArguments], argv, "retrieve query"))
    return 0


def run(args: RetrieveQueryArguments) -> dict[str, dict[str, float]]:
    """Search, print a table of the first queries, and write a run file.

    Returns:
        The scores by document id by query id, best first.
    """
    check_installed()
    from rich.console import Console
    from rich.table import Table

    from ..retrieval.data import read_queries
    from ..retrieval.index import Index
    from ..retrieval.loading import index_tower, load_denser
    from ..retrieval.metrics import write_run

    if args.output is not None and Path(args.output).exists() and not args.overwrite:
        raise UserError(f"output: {args.output} is there already; add --overwrite to replace it, or choose another file")
    queries = {"query": args.query} if args.queries is None else read_queries(args.queries)
    if not queries:
        raise UserError(f"queries: there is none in {args.queries}")
    model = load_denser(args.model, args.device and check_device(args.device))
    size = {} if args.subnet is None else {"subnet": read_name_or_mapping("subnet", args.subnet)}
    index = Index.load(args.index, index_tower(model, **size))
    vectors = model.encode_query(list(queries.values()), batch_size=args.batch_size, show_progress_bar=False, **size)
    found = {query: dict(zip(ids, map(float, scores))) for query, ids, scores in zip(queries, *index.search(vectors, args.k))}
    table = Table("query", "rank", "document", "score")
    for query in list(queries)[:SHOWN]:
        for rank, (document, score) in enumerate(found[query].items(), 1):
            table.add_row(f"{query}: {queries[query]}"[:60] if rank == 1 else "", str(rank), document, f"{score:.4f}")
    Console().print(table)
    if len(queries) > SHOWN:
        print(f"and {len(queries) - SHOWN:,} more queries")
    if args.output is not None:
        write_run(found, args.output, tag=args.subnet or "full")
        print(f"written: {args.output}")
    return found
