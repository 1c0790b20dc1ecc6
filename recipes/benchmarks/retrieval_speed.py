"""How fast the towers of `retrieval.py` are, in torch and as int8 graphs, and what int8 costs.

    python recipes/benchmarks/retrieval_speed.py queries --data-dir DATA_DIR --work WORK --denser WORK/ours-0 [--threads 1]
    python recipes/benchmarks/retrieval_speed.py documents --data-dir DATA_DIR [--threads 1]
    python recipes/benchmarks/retrieval_speed.py table
    python recipes/benchmarks/retrieval_speed.py picture --output PICTURE.png

`queries` measures milliseconds from text to vector, tokenisation included, for one query and for 32, of queries of scifact and
cranfield in the order of the collections; and nDCG@10 in the index of the full size. `documents` measures documents per second.
All that is compared takes turns, round by round, in one process; each figure is the median of the rounds, and each ratio the
median of the ratios within a round. WORK has the vectors of documents that `retrieval.py run` makes, and the models it trains.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from retrieval import METRIC, SIZES, Bench, full_model, make_denser
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from hf_elastic.retrieval.data import load_retrieval
from hf_elastic.retrieval.encode import encode_corpus
from hf_elastic.retrieval.encode_config import EncodingConfig
from hf_elastic.retrieval.export import export_denser
from hf_elastic.retrieval.graph import load_graph
from hf_elastic.retrieval.loading import load_denser
from hf_elastic.utils.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "retrieval_speed"
BATCHES = (1, 32)
FULL = "6 layers"


def take_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds by name and round; a first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                found[name].append(time.perf_counter() - started)
    return found


def towers(denser_dir: Path, scratch: Path, threads: int) -> dict[str, SentenceTransformer]:
    """Every tower that encodes queries, by name of the size and what runs it."""
    denser = load_denser(denser_dir)
    found = {}
    for name in (None, *SIZES):
        folder = scratch / (name or "full").replace(" ", "")
        export_denser(denser, name, folder, ["onnx-int8"])
        found[f"{name or FULL}, torch"] = denser.tower("query", name)
        found[f"{name or FULL}, int8"] = load_graph(folder / "onnx-int8", threads)
    return found


def queries(args: argparse.Namespace) -> dict:
    """Latency and quality of each tower."""
    bench = Bench(args.data_dir, args.work, 0)
    texts = [text for name in ("scifact", "cranfield") for text in bench.data[name].evaluated().values()]
    record: dict = {"threads": args.threads, "queries": len(texts), "towers": {}}
    with tempfile.TemporaryDirectory() as scratch:
        models = towers(args.denser, Path(scratch), args.threads)
        for size in BATCHES:
            parts = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)][:200]

            def encode(model: SentenceTransformer, parts=parts, size=size) -> None:
                for part in parts:
                    model.encode_query(part, batch_size=size)

            seconds = take_turns({name: lambda one=one: encode(one) for name, one in models.items()}, args.rounds)
            full = seconds[f"{FULL}, torch"]
            for name, values in seconds.items():
                one = record["towers"].setdefault(name, {})
                one[f"ms, batch {size}"] = 1000 * statistics.median(values) / len(parts)
                one[f"times as fast, batch {size}"] = statistics.median(a / b for a, b in zip(full, values))
        for name, model in models.items():
            record["towers"][name][METRIC] = bench.score(model.encode_query)
    return record


def documents(args: argparse.Namespace) -> dict:
    """Documents per second: sentence-transformers' `encode`, ours in one process, and int8 graphs."""
    corpus = list(load_retrieval(args.data_dir / "retrieval" / "scifact", "test").corpus)[: args.documents]
    texts, full = [document.text for document in corpus], full_model()
    with tempfile.TemporaryDirectory() as scratch:
        export_denser(make_denser(), None, Path(scratch, "full"), ["onnx-int8"])
        graph, places = load_graph(Path(scratch, "full", "onnx-int8"), args.threads), iter(range(1_000_000))

        def ours(**options) -> None:
            encode_corpus(full, corpus, Path(scratch, str(next(places))), EncodingConfig(**options))

        calls = {
            "sentence-transformers, encode": lambda: full.encode(texts, batch_size=32),
            "ours, torch": ours,
            "int8 graph, query by length": lambda: graph.encode_query(texts, batch_size=32),
            "int8 graph, one at a time": lambda: [graph.encode_query(text) for text in texts],
        }
        seconds = take_turns(calls, args.rounds)
    base = seconds["sentence-transformers, encode"]
    return {
        "threads": args.threads,
        "documents": len(texts),
        "ways": {
            name: {
                "documents per second": len(texts) / statistics.median(values),
                "times as fast": statistics.median(a / b for a, b in zip(base, values)),
            }
            for name, values in seconds.items()
        },
    }


def table(args: argparse.Namespace) -> None:
    """Print the records."""
    for path in sorted(args.output.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = record.get("towers") or record["ways"]
        columns = [name for name, value in next(iter(rows.values())).items() if not isinstance(value, dict)]
        collections = list(next(iter(rows.values())).get(METRIC, {}))
        shown = Table(f"{path.stem}, {record['threads']} thread(s)", *columns, *collections)
        for name, row in rows.items():
            quality = [f"{row[METRIC][one]:.3f}" for one in collections]
            shown.add_row(name, *(f"{row[column]:.2f}" for column in columns), *quality)
        Console(width=180).print(shown)


def picture(args: argparse.Namespace) -> None:
    """Draw quality in the index of the full size against latency, of what was recorded here and by `retrieval.py`."""
    record = json.loads((RESULTS / f"queries-{args.threads}.json").read_text(encoding="utf-8"))["towers"]
    full = record[f"{FULL}, torch"][METRIC]

    def share(values: dict[str, float]) -> float:
        return 100 * statistics.mean(values[name] / full[name] for name in full)

    def milliseconds(size: str, way: str) -> float:
        return record[f"{size}, {way}"]["ms, batch 1"]

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    lines = {
        f"ours, {way}": [(milliseconds(size, way), share(record[f"{size}, {way}"][METRIC])) for size in SIZES]
        for way in ("torch", "int8")
    }
    untrained = json.loads((RESULTS.parent / "retrieval" / "truncated-0.json").read_text(encoding="utf-8"))["sizes"]
    lines["truncated, torch"] = [(milliseconds(size, "torch"), share(untrained[size])) for size in SIZES]
    for way in ("torch", "int8"):
        name = f"{FULL}, {way}"
        lines[f"the full tower, {way}"] = [(milliseconds(FULL, way), share(record[name][METRIC]))]
    for (name, points), marker in zip(lines.items(), "osD^v"):
        axes.plot(*zip(*points), marker=marker, linestyle="-" if len(points) > 1 else "none", label=name)
    for size, (x, y) in zip(SIZES, lines["ours, torch"]):
        axes.annotate(size, (x, y), xytext=(4, -12), textcoords="offset points", fontsize=8)
    axes.set(xlabel="milliseconds for one query, tokenisation included", ylabel=f"share of the full tower's {METRIC}, %")
    axes.set_ylim(0, 105)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(args.output, dpi=130)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("queries", "documents", "table", "picture"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--denser", type=Path, help="Folder of a denser that `retrieval.py run` trained.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=500)
    args = parser.parse_args()
    if args.command in ("table", "picture"):
        return {"table": table, "picture": picture}[args.command](args)
    torch.set_num_threads(args.threads)
    record = {"queries": queries, "documents": documents}[args.command](args)
    write_atomically(args.output / f"{args.command}-{args.threads}.json", json.dumps(record, indent=2) + "\n")
    return table(args)


if __name__ == "__main__":
    main()
