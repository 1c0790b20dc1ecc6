"""What is evaluated, on what and how: the options of `evaluate.run` and of `hf-elastic retrieve evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.options import check_integers, read_name_or_mapping
from .data import RetrievalData, load_retrieval


@dataclass(kw_only=True)
class RetrievalDataConfig:
    """Which collection, with queries and judgements."""

    data: str = field(metadata={"help": "Folder or Hub data set in the layout of BEIR, MS MARCO or DPR, or one of judged pairs."})
    split: str | None = field(default=None, metadata={"help": "Which files, where there are several, such as test or dev.small."})
    corpus: str | None = field(default=None, metadata={"help": "File of the corpus; default: the one in the data's folder."})
    queries: str | None = field(default=None, metadata={"help": "File of the queries; default: the one in the data's folder."})
    qrels: str | None = field(default=None, metadata={"help": "File of the judgements; default: that of the split."})
    answers: str | None = field(default=None, metadata={"help": "File of the answers; default: the one in the data's folder."})
    drop_unknown: bool = field(
        default=False, metadata={"help": "Leave out judgements of documents and queries that the data lack; else refuse them."}
    )

    def load(self) -> RetrievalData:
        """Read it; raises as `load_retrieval` does."""
        files = {name: getattr(self, name) for name in ("corpus", "queries", "qrels", "answers")}
        return load_retrieval(self.data, self.split, drop_unknown=self.drop_unknown, **files)


@dataclass(kw_only=True)
class EvaluateRetrievalConfig(RetrievalDataConfig):
    """Which sizes to evaluate, and on what.

    Raises:
        UserError: neither a model nor a ranker or both, a ranker without a run, or a number that is too small.
    """

    model: str | None = field(default=None, metadata={"help": "SentenceTransformer to search with (folder or Hub id)."})
    index: str | None = field(
        default=None, metadata={"help": "Folder of the model's index of the corpus, which is searched instead of encoding it."}
    )
    ranker: str | None = field(default=None, metadata={"help": "CrossEncoder to rerank a run with, instead of a model."})
    run: str | None = field(default=None, metadata={"help": "TREC run file whose first documents the ranker reorders."})
    subnets: list[str] | None = field(
        default=None, metadata={"help": "Named sizes, or subnets as JSON, beside the full size; default: only that."}
    )
    metrics: list[str] = field(
        default_factory=lambda: ["nDCG@10", "R@100", "RR@10"],
        metadata={"help": "Names of ir_measures, and Answer@k: whether an answer is in the first k documents."},
    )
    k: int = field(default=100, metadata={"help": "Documents for each query (count)."})
    batch_size: int = field(default=32, metadata={"help": "Texts per forward (count)."})
    device: str | None = field(default=None, metadata={"help": "Device for torch, such as cpu or cuda; default: the best."})
    permutations: int = field(default=100_000, metadata={"help": "Most permutations of a randomisation test (count)."})
    seed: int = field(default=0, metadata={"help": "Seed of the randomisation test."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for results.json and a run file of each size."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what an evaluation has written to the folder."})

    def __post_init__(self):
        if (self.model is None) == (self.ranker is None):
            raise UserError("model, ranker: give one of them, a model to search with or a ranker to reorder a run with")
        if self.index is not None and self.ranker is not None:
            raise UserError("index: a ranker reorders a run, and searches in no index")
        if (self.run is None) != (self.ranker is None):
            raise UserError("run: a ranker needs a run file, and a model searches itself")
        if self.subnets is not None:
            self.subnets = [read_name_or_mapping("subnets", given) for given in self.subnets]
        self.metrics = [name for given in self.metrics for name in given.split()]
        check_integers(1, k=self.k, batch_size=self.batch_size, permutations=self.permutations)
        check_integers(0, seed=self.seed)
