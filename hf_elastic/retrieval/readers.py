"""Files of corpora, queries, judgements and answers as BEIR, MS MARCO, TREC and DPR write them, plain or gzipped."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ..core.errors import UserError
from .rows import bad_line, read_cells, read_objects, suffix_of

Item = TypeVar("Item")
Qrels = dict[str, dict[str, int]]

CORPUS_FILES = ("corpus.jsonl", "corpus.tsv", "collection.tsv", "collection.jsonl", "psgs_w100.tsv")
PASSAGES = ["id", "text", "title"]  # header of DPR's psgs_w100.tsv, whose cells are quoted
PAIRS = ["question", "label", "answer_sentence"]  # header of judged pairs: corpus, queries and judgements in one file
TEXT_HEADERS = [["id", "text"], ["_id", "text"], ["qid", "query"], ["query-id", "text"], ["pid", "passage"]]
# What a header of judgements may call its columns.
JUDGEMENT_COLUMNS = {
    "query": ("query-id", "query_id", "qid", "topic", "query"),
    "document": ("corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "docno", "pid", "document"),
    "score": ("score", "relevance", "rel", "label"),
    "iteration": ("iteration", "iter", "q0"),
}


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        id: its name in judgements and runs.
        text: what is encoded: title, space, text, as BEIR has it; may be empty.
        title: what of `text` is the title.
    """

    id: str
    text: str
    title: str = ""

    @property
    def body(self) -> str:
        """The text without its title."""
        return self.text[len(self.title) :].lstrip()


def read_corpus(path: str | Path) -> Iterator[Document]:
    """The documents of a corpus, one after the other; only their ids are kept in memory, to find those that are there twice.

    Args:
        path: a folder with one of `CORPUS_FILES`, or a file. `.jsonl` has `_id` (or `id`), `text` and perhaps `title`. `.tsv`
            has `id<TAB>text` without quoting (MS MARCO), the quoted columns `id text title` (DPR; the header is needed), or
            judged pairs with the header `question label answer_sentence`, whose distinct sentences are numbered d0, d1, ...

    Raises:
        UserError: an id is empty or there twice, a column or key is missing, or as by `read_lines`; it names the line.
        FileNotFoundError: there is no such file, or none in the folder.
    """
    path, seen = corpus_file(path), set()
    for number, document in _documents(path):
        if not document.id:
            raise bad_line(path, number, "the document has an empty id")
        if document.id in seen:
            raise bad_line(path, number, f"the document id {document.id!r} is there twice")
        seen.add(document.id)
        yield document


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many documents, or others, that follow each other; the last one may be shorter."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def corpus_file(path: str | Path) -> Path:
    """The file of a corpus that a folder holds; a file is itself.

    Raises:
        FileNotFoundError: there is none.
        UserError: there are several.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    names = [name for known in CORPUS_FILES for name in (known, f"{known}.gz")]
    found = [folder / name for folder in (path, path / "wikipedia_split") for name in names if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{path}: holds no corpus; looked for {', '.join(CORPUS_FILES)} (.gz too)")
    if len(found) > 1:
        raise UserError(f"{path}: holds several corpora ({', '.join(file.name for file in found)}); name one of the files")
    return found[0]


def is_pairs(path: Path) -> bool:
    """Whether a file has judged pairs of questions and answer sentences."""
    return suffix_of(path) == ".tsv" and _header(path) == PAIRS


def _header(path: Path) -> list[str]:
    return [cell.lower() for cell in next(read_cells(path), (1, []))[1]]


def _documents(path: Path) -> Iterator[tuple[int, Document]]:
    if suffix_of(path) == ".jsonl":
        for number, row in read_objects(path):
            title = _string(path, number, row, ("title",), "") or ""
            yield number, _document(_id(path, number, row), _string(path, number, row, ("text",)), title)
    elif suffix_of(path) != ".tsv":
        raise UserError(f"{path}: cannot tell the format of a corpus from the name; allowed are .jsonl and .tsv (.gz too)")
    elif is_pairs(path):
        known = set()
        for number, (_, _, document, text, _) in _pairs(path):
            if document not in known:
                known.add(document)
                yield number, Document(document, text)
    elif _header(path) == PASSAGES:
        for number, (name, text, title) in _table(path, 3, [PASSAGES], quoted=True):
            yield number, _document(name, text, title)
    else:
        for number, (name, text) in _table(path, 2, TEXT_HEADERS):
            yield number, _document(name, text, "")


def _document(name: str, text: str, title: str) -> Document:
    title = title.strip()
    return Document(name, f"{title} {text}".strip(), title)


def read_queries(path: str | Path) -> dict[str, str]:
    """The texts of queries by their ids.

    Args:
        path: `.jsonl` with `_id` (or `id`, `qid`) and `text` (or `question`); `.tsv` with `id<TAB>text`, without quoting, or
            judged pairs, whose questions are numbered q0, q1, ...; `.csv` with DPR's quoted `question<TAB>answers`; `.json`
            with DPR's list of objects that have a `question`. Queries without ids are numbered from 0, as DPR does.

    Raises:
        UserError: an id is empty or there twice, a column or key is missing, or as by `read_lines`; it names the line.
    """
    path, queries = Path(path), {}
    for number, (name, text, _) in _questions(path):
        if text is None:
            raise bad_line(path, number, "has no text of a query; needed is the key 'text' or 'question'")
        if not name:
            raise bad_line(path, number, "the query has an empty id")
        if name in queries:
            raise bad_line(path, number, f"the query id {name!r} is there twice")
        queries[name] = text
    return queries


def read_answers(path: str | Path) -> dict[str, list[str]]:
    """The answers that are right for each query, from files as for `read_queries`; keys may be `answers` or `answer`.

    Raises:
        UserError: as by `read_queries`, or a query has no list of answers.
    """
    path, answers = Path(path), {}
    for number, (name, _, found) in _questions(path):
        if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
            raise bad_line(path, number, f"has no list of answers, but {str(found)[:40]!r}")
        if name in answers:
            raise bad_line(path, number, f"the query id {name!r} is there twice")
        answers[name] = found
    return answers


def _questions(path: Path) -> Iterator[tuple[int, tuple[str, str | None, object]]]:
    """Line, and id, text (None where there is none) and answers (None) of every query."""
    if suffix_of(path) in (".json", ".jsonl"):
        for place, (number, row) in enumerate(read_objects(path)):
            name = _id(path, number, row) if {"_id", "id", "qid"} & set(row) else str(place)
            text = _string(path, number, row, ("text", "question"), None)
            yield number, (name, text, row.get("answers", row.get("answer")))
    elif suffix_of(path) == ".csv":
        for place, (number, (text, answers)) in enumerate(_table(path, 2, [["question", "answers"]], quoted=True)):
            yield number, (str(place), text, _literal(answers))
    elif suffix_of(path) != ".tsv":
        raise UserError(f"{path}: cannot tell the format of queries from the name; allowed: .jsonl, .json, .tsv, .csv (.gz too)")
    elif is_pairs(path):
        known = {}
        for number, (query, text, _, _, _) in _pairs(path):
            known.setdefault(query, (number, (query, text, None)))
        yield from known.values()
    else:
        yield from ((number, (name, text, None)) for number, (name, text) in _table(path, 2, TEXT_HEADERS))


def read_qrels(path: str | Path) -> Qrels:
    """The judgements of each query: document id -> relevance, 0 for not relevant.

    Args:
        path: tab-separated `query-id corpus-id score` with this header (BEIR; the columns may stand in any order) or without;
            `qid 0 docid relevance` (TREC, MS MARCO), separated by blanks or tabs; two columns `qid docid` (relevance 1);
            judged pairs; `.jsonl` with the keys of BEIR's header; or DPR's `.json`, whose `positive_ctxs` have relevance 1.

    Raises:
        UserError: columns or a header that do not fit, a relevance that is no integer, two different ones of one document, or
            as by `read_lines`; it names the line.
    """
    path, qrels = Path(path), {}
    for number, (query, document, score) in _judgements(path):
        known = qrels.setdefault(query, {}).setdefault(document, score)
        if known != score:
            raise bad_line(path, number, f"document {document!r} of query {query!r} has relevance {score}, and {known} before")
    return qrels


def _judgements(path: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
    if suffix_of(path) == ".json":
        for place, (number, row) in enumerate(read_objects(path)):
            contexts = row.get("positive_ctxs") or []
            if not isinstance(contexts, list) or not all(isinstance(context, dict) for context in contexts):
                raise bad_line(path, number, f"its 'positive_ctxs' are no list of objects, but {str(contexts)[:40]!r}")
            for context in contexts:
                yield number, (str(place), _id(path, number, context, ("passage_id", "psg_id")), 1)
    elif suffix_of(path) == ".jsonl":
        for number, row in read_objects(path):
            query, document = (_id(path, number, row, JUDGEMENT_COLUMNS[what]) for what in ("query", "document"))
            score = next((row[key] for key in JUDGEMENT_COLUMNS["score"] if key in row), None)
            if isinstance(score, bool) or not (isinstance(score, int) or (isinstance(score, float) and score.is_integer())):
                raise bad_line(path, number, f"the relevance {score!r} is no integer")
            yield number, (query, document, int(score))
    elif is_pairs(path):
        yield from ((number, (query, document, label)) for number, (query, _, document, _, label) in _pairs(path))
    else:
        places = None
        for number, cells in read_cells(path):
            cells = [cell.strip() for cell in cells] if len(cells) > 1 else cells[0].split()
            if places is None:
                places, width, is_header = _columns(path, number, cells)
                if is_header:
                    continue
            if len(cells) != width:
                raise bad_line(path, number, f"has {len(cells)} columns, those before it {width}")
            score = cells[places["score"]] if "score" in places else "1"
            yield number, (cells[places["query"]], cells[places["document"]], _integer(path, number, "relevance", score))


def _columns(path: Path, number: int, cells: list[str]) -> tuple[dict[str, int], int, bool]:
    """Where the columns of judgements are, how many there are, and whether the first line is a header; judged from that line."""
    names = {name: what for what, known in JUDGEMENT_COLUMNS.items() for name in known}
    places = {names[cell.lower()]: place for place, cell in enumerate(cells) if cell.lower() in names}
    if {"query", "document"} <= set(places) and len(places) == len(cells):
        return places, len(cells), True
    orders = {2: ("query", "document"), 3: ("query", "document", "score"), 4: ("query", "iteration", "document", "score")}
    if len(cells) not in orders or (len(cells) > 2 and not _is_integer(cells[-1])):
        allowed = "'query document score', 'query 0 document score' or 'query document', or the header 'query-id corpus-id score'"
        raise bad_line(path, number, f"is {' '.join(cells)[:60]!r}; needed is {allowed}")
    return {what: place for place, what in enumerate(orders[len(cells)])}, len(cells), False


def _pairs(path: Path) -> Iterator[tuple[int, tuple[str, str, str, str, int]]]:
    """Line, and query id, question, document id, sentence and label of every judged pair."""
    queries, documents = {}, {}
    for number, (question, label, sentence) in _table(path, 3, [PAIRS]):
        query = queries.setdefault(question, f"q{len(queries)}")
        document = documents.setdefault(sentence, f"d{len(documents)}")
        yield number, (query, question, document, sentence, _integer(path, number, "label", label))


def _table(path: Path, width: int, headers: list[list[str]], *, quoted: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file that has so many columns and perhaps one of the headers."""
    for place, (number, cells) in enumerate(read_cells(path, quoted=quoted)):
        if place == 0 and [cell.lower() for cell in cells] in headers:
            continue
        if len(cells) != width:
            known = " or ".join(" ".join(header) for header in headers)
            raise bad_line(path, number, f"has {len(cells)} tab-separated columns, needed are {width}: {known}")
        yield number, cells


def _id(path: Path, number: int, row: Mapping, keys: tuple[str, ...] = ("_id", "id", "qid")) -> str:
    found = next((row[key] for key in keys if key in row), None)
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise bad_line(path, number, f"needs an id in {' or '.join(map(repr, keys))}, a text or a whole number; has {found!r}")
    return _whole(path, number, str(found))


def _string(path: Path, number: int, row: Mapping, keys: tuple[str, ...], default: object = ...) -> str | None:
    """The text under the first of the keys that is there; `default` (an error) where there is none, or it is null."""
    found = next((row[key] for key in keys if row.get(key) is not None), default)
    if found is default and default is not ...:
        return default
    if not isinstance(found, str):
        has = f"has keys {', '.join(map(repr, row))}" if found is ... else f"has {found!r}"
        raise bad_line(path, number, f"needs a text in {' or '.join(map(repr, keys))}; {has}")
    return _whole(path, number, found)


def _whole(path: Path, number: int, text: str) -> str:
    """Refuse half a surrogate pair, which JSON can escape and no tokenizer or file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_line(path, number, f"has half a surrogate pair at character {error.start + 1} of {text[:40]!r}") from error
    return text


def _literal(text: str) -> object:
    """A list as Python writes it; None if it is no literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that its documentation names
        return None


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 20


def _integer(path: Path, number: int, what: str, text: str) -> int:
    if not _is_integer(text):
        raise bad_line(path, number, f"the {what} {text!r} is no integer")
    return int(text)
