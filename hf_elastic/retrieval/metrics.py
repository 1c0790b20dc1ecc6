"""How good a run is, and whether one is better than another.

A run is what a search gives: the score of each document that was found, by query id and document id.
"""

from __future__ import annotations

import gzip
import math
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import regex

from ..core.errors import MissingPackageError, UserError
from ..utils.files import staged_file
from ..utils.options import check_integers
from .data import RetrievalData
from .rows import bad_line, read_lines

Run = dict[str, dict[str, float]]

METRICS = ("nDCG@10", "R@100", "RR@10")
SUCH_AS = f"known are such as {', '.join(METRICS)}"
ANSWER = "Answer"  # Answer@20: an answer is in one of the first 20
# Words, and signs that are no blanks, each by itself: the SimpleTokenizer of DPR (and DrQA).
TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
CHUNK = 2**22  # random signs at a time


@dataclass(frozen=True)
class Scores:
    """The metrics of one run.

    Attributes:
        per_query: value by metric and query id; 0 for queries for which nothing was found.
        means: value by metric.
        without_results: queries for which nothing was found (count).
        without_judgements: queries of the run that nothing is known about, which are left out (count).
    """

    per_query: dict[str, dict[str, float]]
    means: dict[str, float]
    without_results: int
    without_judgements: int


@dataclass(frozen=True)
class Comparison:
    """How much better a run is than another one.

    Attributes:
        difference: of the means, run minus baseline.
        p_value: two-sided; how often a difference as large as this one comes from exchanging the two runs by chance.
        permutations: how many ways to exchange them were tried (count).
        exact: whether these are all ways there are.
    """

    difference: float
    p_value: float
    permutations: int
    exact: bool


def check_metrics(metrics: Sequence[str], k: int | None = None) -> None:
    """Refuse what is no metric, before anything is searched for.

    Args:
        metrics: names of `ir_measures`, such as `nDCG@10`, `R@100`, `RR@10`, `AP` or `P(rel=2)@10`; or `Answer@20`, the top-k
            accuracy of `answer_accuracy`.
        k: how many documents a run will have for each query (count); None if that is not known.

    Raises:
        UserError: a name is unknown, there is none, or one looks at more than k documents.
        MissingPackageError: ir_measures is not installed.
    """
    measures, cutoffs = _parse(metrics)
    for name, measure in measures.items():
        cutoffs[name] = measure.params.get("cutoff", 0)
    for name, cutoff in cutoffs.items():
        if k is not None and cutoff > k:
            raise UserError(f"metrics: {name} looks at {cutoff} documents for each query, and k={k} are searched for")


def score_run(run: Mapping[str, Mapping[str, float]], data: RetrievalData, metrics: Sequence[str] = METRICS) -> Scores:
    """Score a run, as trec_eval does with `-c`: a query with judgements and without results counts as 0.

    Documents are ordered by their scores; which of two with the same score comes first is up to ir_measures.

    Args:
        run: the scores that were found.
        data: judgements, and answers for `Answer@k`.
        metrics: see `check_metrics`.

    Raises:
        UserError: a metric is unknown, or needs judgements or answers that the data lacks.
    """
    measures, cutoffs = _parse(metrics)
    per_query, means = {}, {}
    if measures:
        per_query, means = _judged_scores(run, data, measures)
    for name, k in cutoffs.items():
        if not data.answers:
            raise UserError(f"metrics: {name}: {data.name} has no answers")
        per_query[name] = answer_accuracy(run, data, k)
        means[name] = math.fsum(per_query[name].values()) / len(per_query[name])
    known = data.qrels if measures else data.answers
    return Scores(
        {name: per_query[name] for name in metrics},
        {name: means[name] for name in metrics},
        without_results=sum(not run.get(query) for query in known),
        without_judgements=sum(query not in known for query in run),
    )


def _parse(metrics: Sequence[str]) -> tuple[dict[str, object], dict[str, int]]:
    """Measures of ir_measures by name, and the k of each `Answer@k`."""
    try:
        import ir_measures
    except ImportError as error:
        raise MissingPackageError("metrics need ir_measures: run pip install 'hf-elastic[retrieval]'") from error
    if not metrics or isinstance(metrics, str):
        raise UserError(f"metrics: needed is a list of names, got {metrics!r}; {SUCH_AS}")
    measures, cutoffs = {}, {}
    for name in metrics:
        kind, _, k = name.partition("@")
        if kind == ANSWER:
            if not k.isdecimal() or int(k) < 1:
                raise UserError(f"metrics: {name!r}: {ANSWER}@k needs a number of documents, such as {ANSWER}@20")
            cutoffs[name] = int(k)
            continue
        try:
            measures[name] = ir_measures.parse_measure(name)
            supported = ir_measures.DefaultPipeline.supports(measures[name])
        except (NameError, ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
            raise UserError(f"metrics: {name!r} is none of ir_measures: {error}; {SUCH_AS}") from error
        # trec_eval ends the whole process at such numbers.
        if small := [f"{key}={value}" for key, value in measures[name].params.items() if key in ("cutoff", "rel") and value < 1]:
            raise UserError(f"metrics: {name!r}: {small[0]} must be at least 1")
        if not supported:
            raise UserError(f"metrics: {name!r}: no package that is installed can compute it; {SUCH_AS}")
    return measures, cutoffs


def _judged_scores(run: Mapping, data: RetrievalData, measures: Mapping[str, object]) -> tuple[dict, dict]:
    import ir_measures

    if not data.qrels:
        raise UserError(f"metrics: {', '.join(measures)}: {data.name} has no judgements; {ANSWER}@20 needs only answers")
    results = ir_measures.calc(list(measures.values()), data.qrels, dict(run))
    by_measure = {measure: {} for measure in measures.values()}
    for metric in results.per_query:
        by_measure[metric.measure][metric.query_id] = float(metric.value)
    per_query = {name: {query: by_measure[measure][query] for query in data.qrels} for name, measure in measures.items()}
    return per_query, {name: float(results.aggregated[measure]) for name, measure in measures.items()}


def answer_accuracy(run: Mapping[str, Mapping[str, float]], data: RetrievalData, k: int) -> dict[str, float]:
    """Whether one of the first k documents has one of the answers in its text: top-k accuracy of DPR (Karpukhin et al., 2020).

    Texts and answers are normalised (NFD, lower case) and cut into words and signs, as in DPR's `has_answer`; an answer must be
    there word for word. Titles do not count.

    Args:
        run: the scores that were found.
        data: the documents and the answers.
        k: how many documents (count).

    Returns:
        1.0 or 0.0 for each query with answers.
    """
    tops = {query: top(run.get(query, {}), k) for query in data.answers}
    documents = data.documents({document for found in tops.values() for document in found})
    return {
        query: float(any(has_answer(answers, documents[document].body) for document in tops[query] if document in documents))
        for query, answers in data.answers.items()
    }


def has_answer(answers: Collection[str], text: str) -> bool:
    """Whether one of the answers is in a text, see `answer_accuracy`; one without any word is in none."""
    words = _words(text)
    joined = f" {' '.join(words)} "  # tokens have no blanks
    return any(wanted and f" {' '.join(wanted)} " in joined for wanted in map(_words, answers))


@lru_cache(maxsize=10_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(TOKENS.findall(unicodedata.normalize("NFD", text).lower()))


def top(found: Mapping[str, float], k: int) -> list[str]:
    """The ids of the k documents with the highest scores, best first; of equal ones, those that come first."""
    return sorted(found, key=found.__getitem__, reverse=True)[:k]


def compare(run: Mapping[str, float], baseline: Mapping[str, float], *, permutations: int = 100_000, seed: int = 0) -> Comparison:
    """A paired randomisation test of two runs: Fisher's, two-sided (Smucker, Allan and Carterette, CIKM 2007).

    If both runs were equally good, each query's two values might as well be exchanged. All 2^n ways to do so are tried where that
    are no more than `permutations`, and else so many random ones, of which the true one is one more (so p is never 0).

    Args:
        run, baseline: the values of one metric by query id.
        permutations: the most that are tried (count).
        seed: of the random ones.

    Raises:
        UserError: the two do not have the same queries.
    """
    check_integers(1, permutations=permutations)
    if set(run) != set(baseline) or not run:
        raise UserError(f"the runs have {len(run)} and {len(baseline)} queries, and {len(set(run) & set(baseline))} in common")
    differences = np.array([run[query] - baseline[query] for query in run])
    mean = math.fsum(differences) / len(differences)
    differences = differences[differences != 0]  # the others change nothing
    count = len(differences)
    # Sums of the same numbers in another order differ by rounding.
    threshold = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    if 2**count <= permutations:
        signs = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        extreme = int((np.abs((1 - 2 * signs) @ differences) >= threshold).sum())
        return Comparison(mean, extreme / 2**count, 2**count, exact=True)
    random, extreme, step = np.random.default_rng(seed), 0, max(1, CHUNK // count)
    for start in range(0, permutations, step):
        shape = (min(step, permutations - start), count)
        flipped = random.integers(0, 2, shape, dtype=np.int8).astype(np.float64)
        extreme += int((np.abs(differences.sum() - 2 * (flipped @ differences)) >= threshold).sum())
    return Comparison(mean, (extreme + 1) / (permutations + 1), permutations, exact=False)


def write_run(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str) -> None:
    """Write a TREC run file, `query Q0 document rank score tag`, best first; it is there complete or not at all.

    Args:
        run: the scores.
        path: the file; gzipped if it ends in `.gz`.
        tag: the name of the run in the file.

    Raises:
        UserError: an id or the tag is empty or has blanks, which the format cannot hold, or a score is not finite.
    """
    for name in (tag, *run, *(document for found in run.values() for document in found)):
        if not name or name.split() != [name]:
            raise UserError(f"{path}: {name!r} cannot be in a run file, whose columns are separated by blanks")
    lines = []
    for query, found in run.items():
        for rank, document in enumerate(top(found, len(found)), 1):
            if not math.isfinite(found[document]):
                raise UserError(f"{path}: document {document!r} of query {query!r} has the score {found[document]}")
            lines.append(f"{query} Q0 {document} {rank} {float(found[document])!r} {tag}\n")
    text = "".join(lines).encode()
    with staged_file(path) as staged:
        staged.write_bytes(gzip.compress(text, mtime=0) if staged.suffix == ".gz" else text)


def read_run(path: str | Path) -> Run:
    """Read a TREC run file, gzipped or not; documents are in the order of their scores, of equal ones in that of the file.

    Raises:
        UserError: a line has not six columns, a score is no number, a document is there twice for a query, or there is nothing.
    """
    path, run = Path(path), {}
    for number, line in read_lines(path):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 6:
            raise bad_line(path, number, f"has {len(cells)} columns; a run has six: query Q0 document rank score tag")
        query, _, document, _, score, _ = cells
        found = run.setdefault(query, {})
        if document in found:
            raise bad_line(path, number, f"document {document!r} is there twice for query {query!r}")
        try:
            found[document] = float(score)
        except ValueError:
            raise bad_line(path, number, f"the score {score!r} is no number") from None
        if not math.isfinite(found[document]):
            raise bad_line(path, number, f"the score {score!r} is not finite")
    if not run:
        raise UserError(f"{path}: holds no run")
    return {query: {document: found[document] for document in top(found, len(found))} for query, found in run.items()}
