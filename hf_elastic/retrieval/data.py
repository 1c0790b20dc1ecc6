"""A retrieval collection: documents, queries, and what is right for each query, from a folder or from the Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from .readers import Document, Qrels, chunks, corpus_file, is_pairs, read_answers, read_corpus, read_qrels, read_queries
from .rows import some_of, suffix_of

__all__ = [
    "CorpusFile", "Document", "Qrels", "RetrievalData", "chunks",
    "load_retrieval", "read_answers", "read_corpus", "read_qrels", "read_queries",
]  # fmt: skip

logger = logging.getLogger(__name__)

QRELS = re.compile(r"qrels[._-]?(?P<split>.*?)(\.trec|\.tsv|\.txt|\.jsonl)+(\.gz)?")
BEIR_QRELS = re.compile(r"(?P<split>.+?)\.(tsv|jsonl)(\.gz)?")  # in the folder qrels
QUERIES = re.compile(r"queries[._-]?(?P<split>.*?)\.(jsonl|tsv)(\.gz)?")
QUESTIONS = re.compile(r"(?P<split>.+?)\.(csv|json)(\.gz)?")  # DPR's
ANSWERS = re.compile(r"answers[._-]?(?P<split>.*?)\.jsonl(\.gz)?")
PAIRS = re.compile(r"(?P<split>.+?)\.tsv(\.gz)?")


@dataclass(frozen=True)
class CorpusFile:
    """A corpus on the disk: every iteration reads it anew, see `read_corpus`."""

    path: Path

    def __iter__(self) -> Iterator[Document]:
        return read_corpus(self.path)


@dataclass
class RetrievalData:
    """A collection.

    Attributes:
        corpus: the documents; can be iterated over again and again.
        queries: text by id; also queries that nothing is known about.
        qrels: relevance by query id and document id; empty where there are only answers.
        answers: right answers by query id; empty where there are only judgements.
        name: for tables and files.
    """

    corpus: Iterable[Document]
    queries: dict[str, str]
    qrels: Qrels = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    name: str = "data"

    def evaluated(self) -> dict[str, str]:
        """The queries with judgements or answers, which are the ones that are searched for in an evaluation."""
        return {name: text for name, text in self.queries.items() if name in self.qrels or name in self.answers}

    def documents(self, ids: Collection[str]) -> dict[str, Document]:
        """The documents of these ids, in one pass over the corpus; those that it lacks are left out."""
        return {document.id: document for document in self.corpus if document.id in ids} if ids else {}


def load_retrieval(
    path: str | Path,
    split: str | None = None,
    *,
    corpus: str | Path | None = None,
    queries: str | Path | None = None,
    qrels: str | Path | None = None,
    answers: str | Path | None = None,
    drop_unknown: bool = False,
) -> RetrievalData:
    """Find and read the files of a collection; the corpus is read through once to check it, and not kept.

    A folder may look like BEIR's (`corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`), MS MARCO's (`collection.tsv`,
    `queries.dev.small.tsv`, `qrels.dev.small.tsv`), DPR's (`psgs_w100.tsv`, `nq-dev.qa.csv` or `nq-dev.json`) or be one of judged
    pairs (`test.tsv` with the header `question label answer_sentence`). All files may be gzipped.

    Args:
        path: the folder, or the id of a data set on the Hub with such files.
        split: which files, where there are several: the rest of a name such as `qrels.dev.small.tsv`, or a word in it that no
            other file has. None where there is one.
        corpus, queries, qrels, answers: files to read instead of those that are found, relative to the folder or not.
        drop_unknown: what to do with judgements of documents that the corpus lacks, or of queries that have no text. Evaluations
            differ here: trec_eval and ir_measures count such documents as missed, BEIR too, and fails at such queries. Scores
            would be lower without a word, so they are refused; True leaves them out, as is right for a part of a corpus, and
            says how many.

    Raises:
        UserError: something is missing, more than one file fits, ids are unknown, or a file cannot be read; it names what.
        FileNotFoundError: there is no such folder or file, neither here nor on the Hub.
    """
    folder = _folder(str(path))
    name = Path(path).expanduser().resolve().name  # a snapshot of the Hub is in a folder with another one
    given = {"corpus": corpus, "queries": queries, "qrels": qrels, "answers": answers}
    files = {kind: None if file is None else _file(folder, kind, file) for kind, file in given.items()}
    found = _find(folder, split, files)
    if split is not None and not any(file is not None and _has_words(file.name, split) for file in found.values()):
        used = ", ".join(sorted({file.name for file in found.values() if file is not None}))
        raise UserError(f"{folder}: has no file of the split {split!r}, but {used}; leave split out")
    data = RetrievalData(
        CorpusFile(found["corpus"]),
        read_queries(found["queries"]),
        {} if found["qrels"] is None else read_qrels(found["qrels"]),
        {} if found["answers"] is None else read_answers(found["answers"]),
        name if split is None else f"{name}-{split}",
    )
    _check(data, found, drop_unknown)
    return data


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{path}: is a file; give the folder that has the corpus, queries and judgements")
    if path.startswith((".", "~", "/")) or path.count("/") > 1:
        raise FileNotFoundError(f"{path}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{path}: neither a folder here nor a data set that the Hub gives ({reason})") from error


def _file(folder: Path, kind: str, file: str | Path) -> Path:
    for path in (folder / Path(file).expanduser(), Path(file).expanduser()):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{kind}: {file}: no such file, neither in {folder} nor in the working directory")


def _find(folder: Path, split: str | None, files: Mapping[str, Path | None]) -> dict[str, Path | None]:
    """The files of a collection by kind; those that are given stay."""
    found = dict(files)
    if found["corpus"] is None and (pairs := _named(PAIRS, folder, is_pairs)):
        file = _choose(folder, "file of judged pairs", pairs, split)
        return {kind: found[kind] or (None if kind == "answers" else file) for kind in found}
    found["corpus"] = found["corpus"] or corpus_file(folder)
    if found["qrels"] is None and (named := _named(QRELS, folder) | _named(BEIR_QRELS, folder / "qrels")):
        found["qrels"] = _choose(folder, "file of judgements", named, split)
    if found["queries"] is None:
        named = _named(QUERIES, folder)
        if "" in named and not _fitting(named, split):
            found["queries"] = named[""]  # of all splits
        else:
            named = named or _named(QUESTIONS, folder) | _named(QUESTIONS, folder / "retriever" / "qas")
            found["queries"] = _choose(folder, "file of queries", named, split)
    if found["answers"] is None:
        named = _named(ANSWERS, folder)
        if suffix_of(found["queries"]) in (".csv", ".json"):
            found["answers"] = found["queries"]
        elif named:
            found["answers"] = named[""] if "" in named else _choose(folder, "file of answers", named, split)
    if found["qrels"] is None and suffix_of(found["queries"]) == ".json":
        found["qrels"] = found["queries"]
    if found["qrels"] is None and found["answers"] is None:
        raise UserError(
            f"{folder}: has neither judgements (qrels.tsv, qrels/test.tsv) nor answers (answers.jsonl, nq-dev.qa.csv)"
        )
    return found


def _named(pattern: re.Pattern, folder: Path, fits=lambda file: True) -> dict[str, Path]:
    """The files of a folder whose names match, by the name of their split."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {match["split"]: file for file in files if (match := pattern.fullmatch(file.name)) and file.is_file() and fits(file)}


def _fitting(named: Mapping[str, Path], split: str | None) -> list[Path]:
    """The files of a split: the one of just this name, else those whose names have its words in them."""
    if split is None:
        return [file for name, file in named.items() if name]
    if split in named:
        return [named[split]]
    return [file for name, file in named.items() if _has_words(name, split)]


def _has_words(name: str, split: str) -> bool:
    return re.search(rf"(^|[._-]){re.escape(split)}([._-]|$)", name) is not None


def _choose(folder: Path, kind: str, named: Mapping[str, Path], split: str | None) -> Path:
    fitting = _fitting(named, split) if split is not None else list(named.values())
    if len(fitting) == 1:
        return fitting[0]
    wanted = "" if split is None else f" of the split {split!r}"
    there = ", ".join(f"{file.name} ({name or 'of no split'})" for name, file in named.items()) or "none"
    problem = f"more than one {kind}{wanted}" if fitting else f"no {kind}{wanted}"
    raise UserError(f"{folder}: has {problem}; there are: {there}; choose with split or name the file")


def _check(data: RetrievalData, files: Mapping[str, Path | None], drop_unknown: bool) -> None:
    """Read the corpus through, and compare the ids of the judgements with what is there."""
    judged = {document for documents in data.qrels.values() for document in documents}
    missing, empty, count = set(judged), 0, 0
    for document in data.corpus:
        count += 1
        empty += not document.text
        missing.discard(document.id)
    if not count or not data.queries:
        raise UserError(f"{files['queries'] if count else files['corpus']}: holds no {'queries' if count else 'documents'}")
    silent = sum(not text.strip() for text in data.queries.values())
    for number, total, what in ((empty, count, "documents"), (silent, len(data.queries), "queries")):
        if number:
            logger.warning("%s: %d of %d %s have no text; they are encoded as an empty one", data.name, number, total, what)
    asked = data.qrels or data.answers
    strangers = [name for name in asked if name not in data.queries]
    problems = [
        f"{len(names)} of {total} judged {what} are not in {there.name} ({some_of(names)})"
        for names, total, what, there in (
            (strangers, len(asked), "queries", files["queries"]),
            (missing, len(judged), "documents", files["corpus"]),
        )
        if names
    ]
    if problems and not drop_unknown:
        raise UserError(f"{files['qrels'] or files['answers']}: {'; '.join(problems)}; drop_unknown leaves them out")
    for problem in problems:
        logger.warning("%s: %s; they are left out", data.name, problem)
    known = {
        query: {document: score for document, score in documents.items() if document not in missing}
        for query, documents in data.qrels.items()
        if query in data.queries
    }
    data.qrels = {query: documents for query, documents in known.items() if documents}
    data.answers = {query: answers for query, answers in data.answers.items() if query in data.queries}
    if not data.evaluated():
        raise UserError(f"{files['qrels'] or files['answers']}: nothing is left to evaluate")
