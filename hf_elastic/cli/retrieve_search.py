"""`hf-elastic retrieve search`: the best sizes of a denser and a ranker, and number of candidates, on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..core.errors import UserError
from ..retrieval import check_installed
from ..retrieval.evaluate_config import RetrievalDataConfig
from ..utils.options import check_integers, read_name_or_mapping
from .common import parse
from .data import check_device

FRONTIER, PICTURE = "frontier.json", "frontier.png"


@dataclass(kw_only=True)
class RetrieveSearchArguments(RetrievalDataConfig):
    """Which settings of two stages to try.

    Raises:
        UserError: a number is too small, or a size is neither a name nor JSON.
    """

    model: str = field(
        metadata={"help": "Model that encodes the queries, and whose documents are in the index: folder or Hub id."}
    )
    index: str = field(metadata={"help": "Folder of the index."})
    ranker: str | None = field(
        default=None, metadata={"help": "CrossEncoder that reorders what was found (folder or Hub id); default: none."}
    )
    output_dir: str = field(metadata={"help": "Folder for frontier.json and frontier.png."})
    denser_subnets: list[str] | None = field(
        default=None, metadata={"help": "Sizes that encode queries, named ones or JSON; default: full and all named ones."}
    )
    ks: list[int] | None = field(
        default=None,
        metadata={"help": "Candidates for the ranker (counts), 0 for no ranker; default: 0, and 10, 20, 50, 100 with a ranker."},
    )
    ranker_subnets: list[str] | None = field(
        default=None, metadata={"help": "Sizes that score candidates, named ones or JSON; default: full and all named ones."}
    )
    metric: str = field(default="nDCG@10", metadata={"help": "A name of ir_measures, or Answer@k."})
    top: int = field(default=10, metadata={"help": "Documents that a search returns (count)."})
    max_queries: int | None = field(default=None, metadata={"help": "Use only the first judged queries (count)."})
    repeats: int = field(default=20, metadata={"help": "Queries on which each setting is timed (count)."})
    batch_size: int = field(default=32, metadata={"help": "Texts per forward (count); a query is timed by itself."})
    device: str | None = field(default=None, metadata={"help": "Device for torch, such as cpu or cuda; default: the best."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what a search has written to the folder."})

    def __post_init__(self):
        for name in ("denser_subnets", "ranker_subnets"):
            if (given := getattr(self, name)) is not None:
                setattr(self, name, [read_name_or_mapping(name, one) for one in given])
        check_integers(1, top=self.top, repeats=self.repeats, batch_size=self.batch_size)
        check_integers(1, or_none=True, max_queries=self.max_queries)
        for k in self.ks or ():
            check_integers(0, ks=k)
        if self.ranker is None and self.ranker_subnets is not None:
            raise UserError("ranker_subnets: there is no ranker")


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([RetrieveSearchArguments], argv, "retrieve search"))
    return 0


def run(args: RetrieveSearchArguments):
    """Search, print a table, and write the frontier and its picture.

    Returns:
        The `Frontier`.
    """
    check_installed()
    from rich.console import Console

    from ..retrieval.index import Index
    from ..retrieval.loading import index_tower, load_denser, load_ranker
    from ..retrieval.metrics import check_metrics
    from ..retrieval.pipeline import CorpusTexts, RetrievalPipeline
    from ..retrieval.search import search_pipeline
    from ..utils.folders import check_output, filled

    check_output(args.output_dir, overwrite=args.overwrite)
    check_metrics([args.metric], args.top)
    device = args.device and check_device(args.device)
    data = args.load()
    queries = dict(list(data.evaluated().items())[: args.max_queries])
    qrels, answers = ({query: one[query] for query in queries if query in one} for one in (data.qrels, data.answers))
    data = replace(data, queries=queries, qrels=qrels, answers=answers)
    model = load_denser(args.model, device)
    size = (args.denser_subnets or [None])[0]
    index = Index.load(args.index, index_tower(model, size))
    ranker = None if args.ranker is None else load_ranker(args.ranker, device)
    options = {"denser_subnet": size, "batch_size": args.batch_size}
    pipeline = RetrievalPipeline(model, index, CorpusTexts(data.corpus), ranker, **options)
    names = ("denser_subnets", "ks", "ranker_subnets", "metric", "top", "repeats")
    frontier = search_pipeline(pipeline, data, **{name: getattr(args, name) for name in names}, show_progress=True)
    with filled(args.output_dir, overwrite=args.overwrite) as folder:
        frontier.save(folder / FRONTIER)
        frontier.plot(folder / PICTURE)
    Console().print(frontier.table())
    for warning in frontier.facts.get("warnings", ()):
        print(f"warning: {warning}")
    print(f"written: {args.output_dir}")
    return frontier
