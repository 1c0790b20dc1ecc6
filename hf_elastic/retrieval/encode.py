"""Vectors of a collection of documents, written part by part, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from ..core.errors import UserError
from ..utils.files import WORKPLACE, full_disk_is_one_error, reading, staged_file, write_atomically
from ..utils.folders import claimed
from ..utils.progress import Bar
from .data import Document, chunks, read_corpus
from .encode_config import EncodingConfig
from .fingerprint import Fingerprint, dimension_of, document_modules, document_prompt, fingerprint_of, token_limit

RECORD, SHARDS = "encoding.json", "shard-{:06d}.safetensors"
BATCHES = 4  # between two steps of the progress bar
LEFT = "finished parts are kept, and the same command goes on"


@dataclass(frozen=True)
class Scan:
    """What one reading of a collection tells.

    Attributes:
        count: how many documents it has.
        content: sha256 of all ids and texts.
    """

    count: int
    content: str


@dataclass(frozen=True)
class Shard:
    """Documents that follow each other in a collection, encoded.

    Attributes:
        path: a safetensors file with `vectors`, [documents, dimension].
        ids: of the documents.
        content: sha256 of their ids and texts.
        cut: how many were longer than the model reads.
        empty: how many had no text.
    """

    path: Path
    ids: list[str]
    content: str
    cut: int
    empty: int

    def vectors(self) -> np.ndarray:
        """Read the vectors."""
        with safe_open(self.path, "np") as file:
            return file.get_tensor("vectors")


@dataclass(frozen=True)
class EncodedCorpus:
    """All documents of a collection, encoded.

    Attributes:
        shards: in the order of the collection.
        encoded: how many documents this process has encoded; the others were there or are of other processes.
        seconds: how long that took.
    """

    shards: list[Shard]
    encoded: int
    seconds: float

    def __len__(self) -> int:
        return sum(len(shard.ids) for shard in self.shards)

    def summary(self) -> str:
        """Counts, in one line."""
        rate = f" at {self.encoded / self.seconds:,.0f} per second" if self.encoded and self.seconds else ""
        cut, empty = (sum(getattr(shard, name) for shard in self.shards) for name in ("cut", "empty"))
        return f"{len(self):,} documents, {self.encoded:,} encoded now{rate}; {cut:,} cut to the model's length, {empty:,} empty"


def encode_corpus(
    model: SentenceTransformer,
    corpus: str | Path | Sequence[Document],
    work_dir: str | Path,
    config: EncodingConfig | None = None,
    *,
    scan: Scan | None = None,
    show_progress: bool = False,
) -> EncodedCorpus:
    """Encode a collection that may be larger than memory.

    The collection is read once before anything is encoded: faults are found at the start, and the time left can be estimated.
    Then it is read again, a shard at a time. Each shard is one file, which is there completely or not at all and says which
    texts it is of; what is there is not encoded again. Under `accelerate launch` every process encodes its own
    shards. A text that is longer than the model reads is cut and counted. An empty one is encoded as the empty text and counted.

    Args:
        model: encodes the documents.
        corpus: as for `read_corpus`, or the documents.
        work_dir: a folder for the shards, with a record of what they belong to.
        config: the options.
        scan: what `scan_corpus` has found, if it was called before.
        show_progress: show a bar with documents per second and the time left.

    Returns:
        All shards, in every process.

    Raises:
        UserError: the folder holds vectors of another tower or collection, of other options, or something else; a shard is
            damaged; or as by `scan_corpus` and `fingerprint_of`.
        OSError: the disk is full.
    """
    config, folder, state = config or EncodingConfig(), Path(work_dir), processes_of(model)
    scan, is_first = scan or scan_corpus(corpus), state.is_main_process
    with claimed(folder) if is_first else nullcontext(), full_disk_is_one_error(folder, LEFT):
        if is_first:
            _check_record(folder, config, scan, fingerprint_of(model))
        state.wait_for_everyone()
        with Bar(show_progress and is_first, "documents") as bar:
            bar.start("encoding", 0, scan.count)
            found = _encode_shards(model, corpus, folder, config, bar)
        state.wait_for_everyone()  # the folder stays claimed until all have written and read
    return found


def processes_of(model: SentenceTransformer) -> PartialState:
    """The processes that `accelerate launch` has started, joined on the model's kind of device.

    Of processes on CPUs accelerate has to be told; each would do all of the work otherwise.
    """
    return PartialState(cpu=model.device.type == "cpu")


def scan_corpus(corpus: str | Path | Sequence[Document]) -> Scan:
    """Read a collection once, and find its faults.

    Raises:
        UserError: an id is there twice, there is no document, or as by `read_corpus`.
    """
    ids, digest = set(), hashlib.sha256()
    for number, document in enumerate(_documents(corpus), 1):
        ids.add(document.id)
        if len(ids) < number:
            raise UserError(f"corpus: document {number:,} has the id {document.id!r} of one before it")
        digest.update(_bytes(document))
    if not ids:
        raise UserError("corpus: there is no document in it")
    return Scan(len(ids), digest.hexdigest())


def _documents(corpus: str | Path | Sequence[Document]) -> Iterable[Document]:
    return read_corpus(corpus) if isinstance(corpus, (str, Path)) else corpus


def _check_record(folder: Path, config: EncodingConfig, scan: Scan, fingerprint: Fingerprint) -> None:
    """Write what the shards of a folder belong to; refuse one whose shards belong to something else."""
    path = folder / RECORD
    facts = {"shard_size": config.shard_size, "dtype": config.dtype, "documents": scan.count, "corpus": scan.content}
    if not path.exists():
        if others := sorted(one.name for one in folder.iterdir() if not one.name.startswith(WORKPLACE)):
            raise UserError(f"work_dir: {folder} holds something else ({others[0]}); choose another folder")
        return write_atomically(path, json.dumps({**facts, "fingerprint": asdict(fingerprint)}, indent=2) + "\n")
    with reading(path, "record of vectors", "is no record of vectors"):
        record = json.loads(path.read_text(encoding="utf-8"))
        there, owner = {name: record[name] for name in facts}, Fingerprint(**record["fingerprint"])
    for name, value in there.items():
        if value != facts[name]:
            raise UserError(f"work_dir: {folder} has vectors with {name} {value!r}, not {facts[name]!r}; choose another folder")
    owner.check(fingerprint, f"the folder of vectors {folder}")
    return None


def _encode_shards(
    model: SentenceTransformer,
    corpus: str | Path | Sequence[Document],
    folder: Path,
    config: EncodingConfig,
    bar: Bar,
) -> EncodedCorpus:
    """Encode the shards of this process that are not there; returns all of them once those of the others are there too."""
    state, encoded, seconds = processes_of(model), 0, 0.0
    contents: list[str] = []
    for number, documents in enumerate(chunks(_documents(corpus), config.shard_size)):
        path, content = folder / SHARDS.format(number), _content(documents)
        contents.append(content)
        if path.exists():
            _read_shard(path, content)
            bar.advance(len(documents))
        elif number % state.num_processes == state.process_index:
            started = time.monotonic()
            _write_shard(model, documents, path, content, config, bar)
            encoded, seconds = encoded + len(documents), seconds + time.monotonic() - started
        else:  # of another process, about as far
            bar.advance(len(documents))
    state.wait_for_everyone()
    paths = (folder / SHARDS.format(number) for number in range(len(contents)))
    return EncodedCorpus([_read_shard(path, content) for path, content in zip(paths, contents)], encoded, seconds)


def _content(documents: Sequence[Document]) -> str:
    return hashlib.sha256(b"".join(map(_bytes, documents))).hexdigest()


def _bytes(document: Document) -> bytes:
    return json.dumps([document.id, document.text]).encode()


def _write_shard(
    model: SentenceTransformer, documents: Sequence[Document], path: Path, content: str, config: EncodingConfig, bar: Bar
) -> None:
    texts = [document.text if document.text.strip() else "" for document in documents]
    longest_first = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    vectors, step = np.empty((len(texts), dimension_of(model)), config.dtype), config.batch_size * BATCHES
    for start in range(0, len(texts), step):
        rows = longest_first[start : start + step]
        part = [texts[row] for row in rows]
        vectors[rows] = model.encode_document(part, batch_size=config.batch_size, show_progress_bar=False, convert_to_numpy=True)
        bar.advance(len(rows))
    facts = {
        "content": content,
        "vectors": hashlib.sha256(vectors).hexdigest(),
        "ids": [document.id for document in documents],
        "cut": _count_cut(model, texts),
        "empty": sum(not text for text in texts),
    }
    with staged_file(path) as staged:
        save_file({"vectors": vectors}, staged, {"shard": json.dumps(facts)})


def _count_cut(model: SentenceTransformer, texts: Sequence[str]) -> int:
    """How many texts have more tokens than the model reads."""
    limit, tokenizer = token_limit(model), getattr(document_modules(model)[0], "tokenizer", None)
    if limit is None or tokenizer is None:
        return 0
    prompt = document_prompt(model)
    rows = tokenizer([prompt + text for text in texts], truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(row) > limit for row in rows)


def _read_shard(path: Path, content: str) -> Shard:
    """A shard that is there, without its vectors.

    Raises:
        UserError: it is damaged, or of other documents.
    """
    try:
        with reading(path, "file of vectors", "is no file of vectors"), safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["shard"])
            digest = hashlib.sha256(np.ascontiguousarray(file.get_tensor("vectors"))).hexdigest()
            shard = Shard(path, facts["ids"], facts["content"], facts["cut"], facts["empty"])
            damaged = digest != facts["vectors"]
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and the same command makes it again") from error
    if damaged:
        raise UserError(f"{path} is damaged, its sha256 differs; delete it, and the same command makes it again")
    if shard.content != content:
        raise UserError(f"work_dir: {path} is of other documents, the corpus has changed; choose another folder")
    return shard
