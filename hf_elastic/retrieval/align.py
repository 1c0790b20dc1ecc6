"""`align`: sizes of a query tower are pulled to the vectors of a document tower, which an index may hold already."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from sklearn.linear_model import RidgeCV
from transformers.trainer import TRAINER_STATE_NAME

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from ..training.checkpoints import checkpoints
from ..utils.files import reading, write_atomically
from ..utils.folders import check_output, claimed, filled
from .align_config import AlignConfig
from .data import Document
from .denser import ElasticDenser
from .encode import EncodedCorpus, encode_corpus, processes_of
from .encode_config import EncodingConfig
from .fingerprint import document_modules, fingerprint_of
from .heads import SizeHeads
from .losses import ElasticLoss
from .readers import chunks

POOL = 50  # batches among which texts are sorted by length
FITTED = 8000  # texts, at most, to which heads are fitted after the training
STRENGTHS = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # of the ridge, for vectors of length 1
HELD_OUT = 500  # texts on which the result is measured, or a tenth of fewer
RECORD = "alignment.json"  # beside checkpoints, what they were trained on; in the result, how near each size has come


def align(
    model: ElasticDenser,
    texts: Sequence[str],
    output_dir: str | Path,
    config: AlignConfig | None = None,
    *,
    targets: SentenceTransformer | np.ndarray | torch.Tensor | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Pull each size's vectors of texts to those of the document tower, which stays as it is, and save the model.

    All sizes are trained together; at the end the linear head of each one is corrected by ridge regression.

    The texts need no labels; like queries are best, and sentences of the documents are good. What they are pulled to is computed
    once, into OUTPUT_DIR.vectors, and checkpoints go to OUTPUT_DIR.training: a killed run goes on with the same call, and both
    folders are deleted when it is done. The loss is `1 - cosine`, averaged over the sizes; where the similarity of the model is
    no angle (euclidean), the mean squared distance.

    Pulling a small tower's vectors to those of a fixed one, and one of another width through a linear head: LEAF
    (arXiv 2509.12539); all sizes at once is ours.

    Args:
        model: asymmetric or for queries alone, with named sizes; of the latter the full size is trained too.
        texts: unlabelled; those that are there twice count once.
        output_dir: a new or empty folder, unless `overwrite`.
        config: the options.
        targets: in the query mode, and only there: the model with the document tower, or what it says of each text as a query,
            `float[texts, dimension]`; of a text that is there twice the first row counts.
        overwrite: replace what is in `output_dir`.
        show_progress: show bars.

    Returns:
        name of a size -> {"cosine": mean to the document tower, "before": the same before} on texts that were held out, also
        written to `alignment.json` there.

    Raises:
        UserError: a symmetric model or one without named sizes, too few texts, targets of another model or of another number or
            dimension, ones that are no vectors, a folder that is not empty, or checkpoints of another run.
    """
    config = AlignConfig() if config is None else config
    if model.mode == "symmetric" or not model.subnets:
        raise UserError(
            f"model: {model.mode}, with {len(model.subnets)} named sizes; needed is an asymmetric one, or one for queries, that "
            "names sizes"
        )
    if (model.mode == "query") != (targets is not None):
        raise UserError("targets: vectors, or a model with a document tower, go with a model for queries alone, which needs them")
    given, rows = len(texts), {}
    for row, text in enumerate(texts):
        if text.strip():
            rows.setdefault(text, row)
    texts = list(rows)
    if len(texts) < 10:
        raise UserError(f"texts: {len(texts)} that differ; needed are at least 10")
    of_vectors = targets is not None and not isinstance(targets, SentenceTransformer)
    if of_vectors:
        target = _checked(np.asarray(targets), given, model.aligned_to.parts["dimension"])[list(rows.values())]
    elif targets is not None:
        model.aligned_to.check(fingerprint_of(targets), "the model for queries")
    check_output(output_dir, overwrite=overwrite)
    vectors, training = Path(f"{output_dir}.vectors"), Path(f"{output_dir}.training")
    if not of_vectors:
        encoded = full_vectors(model if targets is None else targets, texts, vectors, config, show_progress)
        target = np.concatenate([shard.vectors() for shard in encoded.shards]).astype(np.float32)
    held_out = min(HELD_OUT, len(texts) // 10)
    sizes = [*([FULL] if model.mode == "query" else []), *model.subnets]
    cosines = {name: {"before": _cosine(model, name, texts[:held_out], target[:held_out])} for name in sizes}
    is_first = processes_of(model).is_main_process
    training.mkdir(parents=True, exist_ok=True)
    with claimed(training) if is_first else nullcontext():
        if is_first:
            _check_record(training / RECORD, model, texts, target)
        _train(model, rows_of(texts[held_out:], target[held_out:]), training, config, show_progress)
        fit_heads(model, texts[held_out:][:FITTED], target[held_out:][:FITTED])
        for name, found in cosines.items():
            found["cosine"] = _cosine(model, name, texts[:held_out], target[:held_out])
        if is_first:
            with filled(output_dir, overwrite=overwrite) as folder:
                model.save_pretrained(str(folder))
                (folder / RECORD).write_text(json.dumps(cosines, indent=2) + "\n", encoding="utf-8")
    if is_first:
        if not of_vectors:
            shutil.rmtree(vectors)
        shutil.rmtree(training)
    return cosines


def full_vectors(
    model: SentenceTransformer, texts: Sequence[str], folder: Path, config: AlignConfig, show_progress: bool
) -> EncodedCorpus:
    """What the document tower of a model says of texts as queries, in files from which a killed run goes on."""
    tower = SentenceTransformer(
        modules=document_modules(model),
        device=str(model.device),
        prompts={"document": model.prompts.get("query") or ""},
        truncate_dim=model.truncate_dim,
    )
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    encoding = EncodingConfig(batch_size=config.per_device_train_batch_size)
    return encode_corpus(tower, documents, folder, encoding, show_progress=show_progress)


def sentences_of(documents: Iterable[Document]) -> Iterator[str]:
    """The sentences of documents that are neither very short nor very long: 20 to 300 characters."""
    for document in documents:
        yield from (text for text in re.split(r"(?<=[.?!])\s+", document.text) if 20 <= len(text) <= 300)


def rows_of(texts: Sequence[str], vectors: np.ndarray) -> Dataset:
    """Texts, and as labels what they are pulled to, `[texts, dimension]`."""
    features = Features({"text": Value("string"), "label": List(Value("float32"), length=vectors.shape[1])})
    return Dataset.from_dict({"text": list(texts), "label": list(vectors)}, features=features)


def fit_heads(model: ElasticDenser, texts: Sequence[str], target: np.ndarray) -> None:
    """Correct the head of each size by the linear map of its pooled vectors that brings it nearest to `target`.

    Ridge regression of what the head leaves, as strong as is best for texts that it has not seen (leave-one-out). Training
    alone would need many more steps for it, most of all at the shallowest sizes; ridge before the training made it slower.

    Args:
        model: with heads, or nothing is done.
        texts: as queries.
        target: `float[texts, dimension]`, of any length unless the similarity of the model is euclidean.
    """
    heads = next((module for module in model.modules() if isinstance(module, SizeHeads)), None)
    if not (keeps_length := model.similarity_fn_name == "euclidean"):
        target = target / np.linalg.norm(target, axis=1, keepdims=True)
    for name in heads.widths if heads is not None else ():
        until_pooling = SentenceTransformer(modules=list(model.tower("query", name))[:2], device=str(model.device))
        pooled = torch.from_numpy(until_pooling.encode(list(texts), prompt=model.prompts.get("query"))).float()
        head, length = heads.head_of(name), float(pooled.norm(dim=1).mean())
        with torch.no_grad():
            given = head(pooled.to(head.weight)).float().cpu()
            scale = 1.0 if keeps_length else float(given.norm(dim=1).mean())
            fit = RidgeCV(STRENGTHS).fit((pooled / length).numpy(), target - (given / scale).numpy())
            weight, bias = torch.from_numpy(fit.coef_ / length), torch.from_numpy(fit.intercept_)
            head.weight.copy_(head.weight / scale + weight.to(head.weight))
            head.bias.copy_(head.bias / scale + bias.to(head.bias))


class LengthBatches(DefaultBatchSampler):
    """Batches of texts of about the same length, in random order: hardly anything is computed for padding.

    As `group_by_length` of transformers, but long batches do not all come first.
    """

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.sampler), generator=generator).tolist()
        lengths = [len(text) for text in self.sampler["text"]]
        batches = []
        for pool in chunks(order, POOL * self.batch_size):
            batches += chunks(sorted(pool, key=lengths.__getitem__), self.batch_size)
        rest = batches.pop() if len(batches[-1]) < self.batch_size else []  # accelerate wants the short one at the end
        yield from (batches[place] for place in torch.randperm(len(batches), generator=generator).tolist())
        if rest and not self.drop_last:
            yield rest


def _train(model: ElasticDenser, rows: Dataset, folder: Path, config: AlignConfig, show_progress: bool) -> None:
    model.elastic.get_input_embeddings().requires_grad_(config.train_embeddings)
    # In the labels is what the document tower says, so that no step encodes it again.
    distance = EmbedDistillLoss(model, distance_metric="mse" if model.similarity_fn_name == "euclidean" else "cosine")
    loss = ElasticLoss(
        model, distance, sampling=config.sampling, subnets=list(model.subnets), alignment_weight=0.0, seed=config.seed
    )
    names = (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "warmup_steps", "bf16", "save_steps",
        "logging_steps", "seed",
    )  # fmt: skip
    args = SentenceTransformerTrainingArguments(
        str(folder),
        **{name: getattr(config, name) for name in names},
        lr_scheduler_type="cosine",
        batch_sampler=LengthBatches,
        prompts={"text": model.prompts.get("query") or ""},
        save_total_limit=1,
        report_to=[],
        disable_tqdm=not show_progress,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
    )
    trainer = SentenceTransformerTrainer(model, args, train_dataset=rows, loss=loss)
    whole = [str(path) for path in checkpoints(str(folder)) if (path / TRAINER_STATE_NAME).is_file()]  # it is written last
    trainer.train(resume_from_checkpoint=whole[-1] if whole else None)
    model.elastic.get_input_embeddings().requires_grad_(True)


def _checked(targets: np.ndarray, texts: int, dimension: int) -> np.ndarray:
    """Vectors for texts `float32[texts, dimension]`.

    Raises:
        UserError: they are not that, or one has no direction.
    """
    if targets.shape != (texts, dimension):
        shape = " x ".join(map(str, targets.shape))
        raise UserError(
            f"vectors: an array of {shape}; needed is one of {texts} x {dimension}, a row for each text of as many dimensions as "
            "the documents have"
        )
    if not np.issubdtype(targets.dtype, np.floating):
        raise UserError(f"vectors: an array of {targets.dtype}; needed are floating-point numbers")
    targets = targets.astype(np.float32)
    norms = np.linalg.norm(targets, axis=1)
    if not (whole := np.isfinite(norms) & (norms > 0)).all():
        raise UserError(f"vectors: row {int(np.flatnonzero(~whole)[0])} holds a value that is no number, or zeros alone")
    return targets


def _check_record(path: Path, model: ElasticDenser, texts: Sequence[str], target: np.ndarray) -> None:
    """Write what checkpoints are trained on; refuse those of something else."""
    facts = {
        "model": model.elastic.base.name_or_path,
        "sizes": json.loads(json.dumps(model.subnets)),
        "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "vectors": hashlib.sha256(np.ascontiguousarray(target)).hexdigest(),
    }
    if not checkpoints(str(path.parent)):
        return write_atomically(path, json.dumps(facts, indent=2) + "\n")
    with reading(path, "record of an alignment", "is no record of an alignment"):
        there = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in facts.items() if there[name] != value]
    if changed:
        raise UserError(f"output_dir: {path.parent} has checkpoints of other {', '.join(changed)}; choose another folder")
    return None


def _cosine(model: ElasticDenser, name: str, texts: list[str], full: np.ndarray) -> float:
    found = model.encode_query(texts, subnet=name, convert_to_numpy=True).astype(np.float32)  # a half would not be of length 1
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(full, axis=1)
    return float(np.mean((found * full).sum(1) / np.maximum(lengths, 1e-12)))
