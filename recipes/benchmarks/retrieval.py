"""What small query towers find in an index of the full MiniLM.

    python recipes/benchmarks/retrieval.py run --data-dir DATA_DIR --work WORK [--seeds 0 1 2] [--texts 60000]
    python recipes/benchmarks/retrieval.py table --output recipes/benchmarks/results/retrieval     prints what is recorded

DATA_DIR has retrieval/ and glue/. Sizes have 3, 2 and 1 of the 6 layers. Documents are encoded once, by the full size, and every
method encodes the queries only. Untrained: the first layers ("truncated"), or the first and the last ("ends"), each also with a
linear map that ridge regression fits to the full vectors. Trained, on unlabelled texts (sentences of GLUE's training rows and of
the documents; no query, no judgement): all sizes at once ("ours"), each size alone, and sentence-transformers' AdaptiveLayerLoss
around the same loss. A seed draws texts, order and dropout. Each method writes a record: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, EmbedDistillLoss

from hf_elastic.data.minilm import minilm_path
from hf_elastic.retrieval.align import LengthBatches, align, rows_of, sentences_of
from hf_elastic.retrieval.align_config import AlignConfig
from hf_elastic.retrieval.data import load_retrieval
from hf_elastic.retrieval.denser import ElasticDenser, elastic_sentence_transformer
from hf_elastic.retrieval.evaluate import encode_documents
from hf_elastic.retrieval.metrics import score_run
from hf_elastic.utils.files import write_atomically

COLLECTIONS = {"scifact": "test", "cranfield": None, "cisi": None, "nq_oracle": None, "msmarco_dl19": "pooled"}
SIZES = {"3 layers": {"num_hidden_layers": 3}, "2 layers": {"num_hidden_layers": 2}, "1 layer": {"num_hidden_layers": 1}}
METRIC = "nDCG@10"
RIDGE_TEXTS = 8000
ADAPTIVE_RATE = 3e-4  # all of the model is trained, its embeddings too
Encode = Callable[[list[str]], np.ndarray]


def full_model() -> SentenceTransformer:
    """The fixed model, which the index belongs to."""
    return SentenceTransformer(str(minilm_path()), device="cpu")


def make_denser(sizes: dict = SIZES, layer_order: str = "ends") -> ElasticDenser:
    """An untrained denser over it."""
    return elastic_sentence_transformer(full_model(), {"num_hidden_layers": [1, 2, 3, 6]}, sizes, layer_order=layer_order)


class Bench:
    """Collections with their documents encoded, and the texts to train on.

    Args:
        data_dir: the data.
        work: folder for vectors and checkpoints.
        texts: how many to train on (count).
    """

    def __init__(self, data_dir: Path, work: Path, texts: int):
        self.data = {name: load_retrieval(data_dir / "retrieval" / name, split) for name, split in COLLECTIONS.items()}
        self.work, self.count, self.data_dir = work, texts, data_dir
        self.documents = {name: self._documents(name) for name in self.data}

    def _documents(self, name: str) -> tuple[list[str], np.ndarray]:
        path = self.work / f"{name}.npz"
        if not path.is_file():
            ids, vectors = encode_documents(full_model(), self.data[name])
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, ids=np.array(ids), vectors=vectors)
        found = np.load(path)
        return found["ids"].tolist(), found["vectors"]

    def texts(self, seed: int) -> list[str]:
        """Unlabelled sentences, half of them of the documents."""
        generator = random.Random(seed)
        glue = [
            text
            for task in ("cola", "mnli", "mrpc", "qnli", "rte", "sst2")
            for line in (self.data_dir / "glue" / task / "train.tsv").read_text(encoding="utf-8").splitlines()
            for text in line.split("\t")[1:]
        ]
        own = []
        for data in self.data.values():
            pieces = list(sentences_of(data.corpus))
            own += generator.sample(pieces, min(len(pieces), self.count // (2 * len(self.data))))
        texts = [*generator.sample(glue, self.count - len(own)), *own]
        generator.shuffle(texts)
        return list(dict.fromkeys(text for text in texts if len(text) > 8))

    def score(self, encode: Encode) -> dict[str, float]:
        """nDCG@10 by collection of what encodes queries."""
        found = {}
        for name, data in self.data.items():
            queries, (ids, documents) = data.evaluated(), self.documents[name]
            scores = _unit(encode(list(queries.values()))) @ _unit(documents).T
            best = np.argsort(-scores, axis=1, kind="stable")[:, :100]
            run = {one: {ids[row]: float(line[row]) for row in rows} for one, line, rows in zip(queries, scores, best)}
            found[name] = score_run(run, data, [METRIC]).means[METRIC]
        return found

    def scores_of(self, model: ElasticDenser) -> dict[str, dict[str, float]]:
        """The same by size."""
        return {name: self.score(lambda texts, name=name: model.encode_query(texts, subnet=name)) for name in model.subnets}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def untrained(bench: Bench, layer_order: str) -> dict[str, dict[str, float]]:
    """The sizes as they are."""
    return bench.scores_of(make_denser(layer_order=layer_order))


def ridge(bench: Bench, layer_order: str, seed: int) -> dict[str, dict[str, float]]:
    """The sizes as they are, and a linear map of their vectors to the full ones, as strong as fits a tenth of the texts best."""
    model, texts = make_denser(layer_order=layer_order), bench.texts(seed)[:RIDGE_TEXTS]
    full, held = _unit(model.encode(texts)), len(texts) // 10
    found = {}
    for name in SIZES:
        small = np.pad(_unit(model.encode_query(texts, subnet=name)), ((0, 0), (0, 1)), constant_values=1.0)
        fits = []
        for strength in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
            gram = small[held:].T @ small[held:] + strength * np.eye(small.shape[1])
            weight = np.linalg.solve(gram, small[held:].T @ full[held:])
            fits.append((float((_unit(small[:held] @ weight) * full[:held]).sum(1).mean()), weight))
        weight = max(fits, key=lambda fit: fit[0])[1]

        def encode(queries: list[str], name=name, weight=weight) -> np.ndarray:
            vectors = _unit(model.encode_query(queries, subnet=name))
            return vectors @ weight[:-1] + weight[-1]

        found[name] = bench.score(encode)
    return found


def ours(bench: Bench, sizes: dict, seed: int, config: AlignConfig) -> dict[str, dict[str, float]]:
    """Sizes that were aligned together."""
    model = make_denser(sizes)
    folder = bench.work / f"ours-{bench.count}-{'-'.join(sizes).replace(' ', '')}-{seed}"
    align(model, bench.texts(seed), folder, config, overwrite=True)
    return bench.scores_of(model)


def adaptive(bench: Bench, seed: int, config: AlignConfig) -> dict[str, dict[str, float]]:
    """sentence-transformers' AdaptiveLayerLoss around the same loss; a size is its first layers."""
    model, texts = full_model(), bench.texts(seed)
    rows = rows_of(texts, full_model().encode(texts, batch_size=64))
    loss = AdaptiveLayerLoss(model, EmbedDistillLoss(model, distance_metric="cosine"))
    names = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "warmup_steps")
    shared = {name: getattr(config, name) for name in names}
    args = SentenceTransformerTrainingArguments(
        str(bench.work / f"adaptive-{seed}"), **shared, learning_rate=ADAPTIVE_RATE, lr_scheduler_type="cosine", seed=seed,
        batch_sampler=LengthBatches, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    SentenceTransformerTrainer(model, args, train_dataset=rows, loss=loss).train()
    found = {}
    for name, size in SIZES.items():
        cut = copy.deepcopy(model)
        cut[0].model.encoder.layer = cut[0].model.encoder.layer[: size["num_hidden_layers"]]
        found[name] = bench.score(lambda queries, cut=cut: cut.encode_query(queries))
    return found


def methods(bench: Bench, seeds: list[int], config: Callable[[int], AlignConfig]) -> dict[str, Callable[[], dict]]:
    """Name of a record -> what makes it."""
    found = {
        "full-0": lambda: {"6 layers": bench.score(full_model().encode_query)},
        "truncated-0": lambda: untrained(bench, "first"),
        "ends-0": lambda: untrained(bench, "ends"),
    }
    for seed in seeds:
        found[f"truncated, ridge map-{seed}"] = lambda seed=seed: ridge(bench, "first", seed)
        found[f"ends, ridge map-{seed}"] = lambda seed=seed: ridge(bench, "ends", seed)
        found[f"ours-{seed}"] = lambda seed=seed: ours(bench, SIZES, seed, config(seed))
    for seed in seeds:
        found[f"AdaptiveLayerLoss-{seed}"] = lambda seed=seed: adaptive(bench, seed, config(seed))
        found[f"alone-{seed}"] = lambda seed=seed: {
            name: ours(bench, {name: size}, seed, config(seed))[name] for name, size in SIZES.items()
        }
    return found


def run(args: argparse.Namespace) -> None:
    """Make every record that is not there."""
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench(args.data_dir, args.work, args.texts)

    def config(seed: int) -> AlignConfig:
        return AlignConfig(seed=seed, num_train_epochs=args.epochs, learning_rate=args.learning_rate)

    for name, make in methods(bench, args.seeds, config).items():
        path = args.output / f"{name}.json"
        if path.is_file() or (args.only and name.rpartition("-")[0] not in args.only):
            continue
        started = time.perf_counter()
        record = {"sizes": make(), "seconds": round(time.perf_counter() - started, 1)}
        record |= {"texts": args.texts, "epochs": args.epochs, "learning_rate": args.learning_rate}
        write_atomically(path, json.dumps(record, indent=2) + "\n")
        print(f"{name}: {record['seconds']} s", flush=True)


def table(args: argparse.Namespace) -> None:
    """Print the records: means over seeds, and the share of the full size's value, averaged over the collections."""
    records: dict[str, list[dict]] = {}
    for path in sorted(args.output.glob("*.json")):
        records.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text())["sizes"])
    full = records.pop("full")[0]["6 layers"]
    shown = Table("method", "size", *COLLECTIONS, "share of full", "seeds")
    shown.add_row("full", "6 layers", *(f"{full[name]:.3f}" for name in COLLECTIONS), "100%", "1")
    for method, runs in records.items():
        for size in SIZES:
            means = {name: statistics.mean(run[size][name] for run in runs) for name in COLLECTIONS}
            shares = [statistics.mean(run[size][name] / full[name] for name in COLLECTIONS) for run in runs]
            spread = f" +- {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
            share = f"{100 * statistics.mean(shares):.1f}%{spread}"
            shown.add_row(method, size, *(f"{means[name]:.3f}" for name in COLLECTIONS), share, str(len(runs)))
    Console(width=160).print(shown)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--work", type=Path, help="Folder for vectors and checkpoints.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "retrieval")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--texts", type=int, default=60_000)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=AlignConfig.learning_rate)
    parser.add_argument("--only", nargs="+", help="Methods to run.")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    {"run": run, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
