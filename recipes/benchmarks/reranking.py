"""What a ranker's sizes are worth that are trained together, and each alone.

    python recipes/benchmarks/reranking.py run --data-dir DATA_DIR [--seeds 0 1 2] [--pairs 12000] [--bf16] [--models DIR]
    python recipes/benchmarks/reranking.py table

No cross encoder is at hand, so MiniLM is trained as one: to say how alike MiniLM as an encoder finds a question of nq_oracle and
a passage, the right one or one of BM25's first (squared error); once as an ElasticRanker of 6, 3, 2 and 1 layers, and once for
each size alone. Then the first 100 documents of BM25 are put into its
order: for msmarco_dl19 those of the data, for scifact those of `bm25s` for the first queries. Latency is that of 100 candidates
of one query. A record that is there is kept.
DIR keeps the rankers, for `hf-elastic retrieve search`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments, SentenceTransformer
from sentence_transformers.cross_encoder.losses import MSELoss

from hf_elastic.data.minilm import minilm_path
from hf_elastic.retrieval.align import LengthBatches
from hf_elastic.retrieval.data import RetrievalData, load_retrieval
from hf_elastic.retrieval.evaluate import evaluate_reranking
from hf_elastic.retrieval.export import export_ranker
from hf_elastic.retrieval.losses import ElasticLoss
from hf_elastic.retrieval.metrics import Run, read_run
from hf_elastic.retrieval.negatives import bm25, hard_negatives
from hf_elastic.retrieval.ranker import ElasticRanker, elastic_cross_encoder
from hf_elastic.utils.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "reranking"
METRIC, FULL, LENGTH, BATCH, NEGATIVES, RATE = "nDCG@10", "6 layers", 128, 32, 4, 2e-4
SIZES = {FULL: 6, "3 layers": 3, "2 layers": 2, "1 layer": 1}


def first_stages(data_dir: Path, queries: int) -> dict[str, tuple[RetrievalData, Run]]:
    """Each collection, and what BM25 finds in it."""
    folder = data_dir / "retrieval"
    passages = load_retrieval(folder / "msmarco_dl19", "pooled")
    facts = load_retrieval(folder / "scifact", "test")
    asked = dict(list(facts.evaluated().items())[:queries])
    facts = replace(facts, queries=asked, qrels={query: facts.qrels[query] for query in asked})
    return {
        "msmarco_dl19": (passages, read_run(folder / "msmarco_dl19" / "run.bm25.txt.gz")),
        "scifact": (facts, bm25(facts)),
    }


def rows_of(data_dir: Path, count: int, seed: int) -> Dataset:
    """Questions, passages, and how alike the full MiniLM finds them, from 0 to 1."""
    data = load_retrieval(data_dir / "retrieval" / "nq_oracle")
    mined = hard_negatives(data, bm25(data), num_negatives=NEGATIVES, output_format="labeled-pair", range_min=0).to_list()
    pairs = [(one["anchor"], one["positive"]) for one in random.Random(seed).sample(mined, min(count, len(mined)))]
    teacher = SentenceTransformer(str(minilm_path()), device="cpu")
    vectors = []
    for texts in zip(*pairs):  # each text is encoded once
        known = list(dict.fromkeys(texts))
        place = {text: row for row, text in enumerate(known)}
        vectors.append(teacher.encode(known, convert_to_tensor=True)[[place[text] for text in texts]])
    alike = (vectors[0] * vectors[1]).sum(1).clamp(0, 1).tolist()
    questions, passages = zip(*pairs)
    return Dataset.from_dict({"question": questions, "text": passages, "label": alike})


def untrained(seed: int) -> ElasticRanker:
    """All sizes, with the head that the seed draws."""
    torch.manual_seed(seed)
    base = CrossEncoder(str(minilm_path()), num_labels=1, max_length=LENGTH, device="cpu")
    named = {name: {"num_hidden_layers": depth} for name, depth in SIZES.items() if name != FULL}
    return elastic_cross_encoder(base, {"num_hidden_layers": sorted(SIZES.values())}, named)


def train(model: CrossEncoder, rows: Dataset, loss: torch.nn.Module, seed: int, bf16: bool) -> CrossEncoder:
    """One epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        args = CrossEncoderTrainingArguments(
            scratch, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=RATE, warmup_steps=0.1, seed=seed,
            bf16=bf16, batch_sampler=LengthBatches, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        CrossEncoderTrainer(model, args, train_dataset=rows, loss=loss).train()
    return model


def together(rows: Dataset, seed: int, bf16: bool, folder: Path | None) -> dict[str, CrossEncoder]:
    """The sizes of one ranker, as plain cross encoders."""
    model = untrained(seed)
    # Labels are a teacher's scores already; a pull of logits, at its full weight, would drown an error of probabilities.
    loss = ElasticLoss(model, MSELoss(model, torch.nn.Sigmoid()), sampling="all", alignment_weight=0.0, seed=seed)
    train(model, rows, loss, seed, bf16)
    if folder is not None:
        model.save_pretrained(str(folder / f"ranker-{seed}"))
    return {name: model.tower(None if name == FULL else name) for name in SIZES}


def alone(rows: Dataset, seed: int, bf16: bool, folder: Path | None) -> dict[str, CrossEncoder]:
    """A plain cross encoder of each size, trained by itself; none is kept."""
    model, found = untrained(seed), {}
    for name in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            export_ranker(model, None if name == FULL else name, scratch)
            one = CrossEncoder(scratch, device="cpu", max_length=LENGTH)
        found[name] = train(one, rows, MSELoss(one, torch.nn.Sigmoid()), seed, bf16)
    return found


WAYS = (together, alone)


def latencies(models: dict[str, CrossEncoder], stages: dict, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Milliseconds for 100 candidates by size and collection: the sizes take turns, on one query a round."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for collection, (data, run) in stages.items():
        times: dict[str, list[float]] = {name: [] for name in models}
        for query, text in list(data.evaluated().items())[: rounds + 1]:
            documents = [one.text for one in data.documents(set(list(run[query])[:100])).values()]
            for name, model in models.items():
                started = time.perf_counter()
                model.rank(text, documents, batch_size=BATCH)
                times[name].append(1000 * (time.perf_counter() - started))
        for name, values in times.items():
            found[name][collection] = statistics.median(values[1:])
    return found


def run(args: argparse.Namespace) -> None:
    """Make every record that is not there."""
    torch.set_num_threads(args.threads)
    stages = first_stages(args.data_dir, args.queries)
    for seed in args.seeds:
        for way in (one for one in WAYS if one.__name__ in args.ways):
            path = args.output / f"{way.__name__}-{seed}.json"
            if path.is_file():
                continue
            started = time.perf_counter()
            models = way(rows_of(args.data_dir, args.pairs, seed), seed, args.bf16, args.models)
            record = {
                "pairs": args.pairs,
                "bf16": args.bf16,
                "threads": args.threads,
                "seconds": round(time.perf_counter() - started, 1),
            }
            record["ms"] = latencies(models, stages)
            record["sizes"] = {name: {} for name in models}
            for collection, (data, found) in stages.items():
                for name, model in models.items():
                    results = evaluate_reranking(model, data, found, metrics=[METRIC], permutations=1)
                    record["BM25"] = record.get("BM25", {}) | {collection: results.sizes[0].scores.means[METRIC]}
                    record["sizes"][name][collection] = results.sizes[1].scores.means[METRIC]
            write_atomically(path, json.dumps(record, indent=2) + "\n")
            print(f"{path.stem}: {record['seconds']} s", flush=True)


def table(args: argparse.Namespace) -> None:
    """Print the records."""
    records: dict[str, list[dict]] = {}
    for path in sorted(args.output.glob("*.json")):
        records.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text(encoding="utf-8")))
    first = next(iter(records.values()))[0]
    collections = list(first["BM25"])
    shown = Table(
        "trained", "size", *(f"{METRIC}, {one}" for one in collections), *(f"ms, {one}" for one in collections), "seeds"
    )
    shown.add_row("BM25", "", *(f"{first['BM25'][one]:.3f}" for one in collections), *("" for _ in collections), "")
    for way, runs in records.items():
        for size in SIZES:
            cells = []
            for one in collections:
                values = [record["sizes"][size][one] for record in runs]
                spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
            cells += [f"{statistics.median(record['ms'][size][one] for record in runs):.0f}" for one in collections]
            shown.add_row(way, size, *cells, str(len(runs)))
    Console(width=150).print(shown)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=12000)
    parser.add_argument("--queries", type=int, default=30, help="Of scifact (count).")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="Train in bfloat16, on processors that are faster in it.")
    parser.add_argument("--ways", nargs="+", default=[one.__name__ for one in WAYS], help="Trainings to make.")
    parser.add_argument("--models", type=Path, help="Folder for the rankers; default: they are not kept.")
    args = parser.parse_args()
    {"run": run, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
