"""Do random standard subnets load in plain transformers, in both major versions, and compute the same?

    python recipes/benchmarks/reload.py --count 100 --python OTHER_PYTHON --output recipes/benchmarks/results

Writes `--count` random standard sizes of a tiny random model of every backbone, loads them in a process of this Python and of
every `--python`, where hf_elastic cannot be imported, and compares their logits (and six greedy tokens of decoders) with the view
that each was cut from. The models, and the program that loads them, are those of tests/core/test_cross_version.py.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "core")]

import torch  # noqa: E402
import transformers  # noqa: E402
from test_cross_version import SCRIPT, TOLERANCE, describe, elastic  # noqa: E402
from tiny import GROUPED, NEWER, STOCK  # noqa: E402

from hf_elastic.export.checkpoint import save_standard  # noqa: E402
from hf_elastic.utils.files import write_atomically  # noqa: E402


def random_subnet(model_type: str, generator: random.Random) -> dict:
    """Layers by number or by index, one feed-forward width, and where the config can say it fewer heads or a smaller width."""
    subnet: dict = {"intermediate_size": generator.randint(1, 48)}
    if generator.random() < 0.5:
        subnet["num_hidden_layers"] = generator.randint(1, 4)
    else:
        subnet["layers"] = sorted(generator.sample(range(4), generator.randint(1, 4)))
    if model_type in GROUPED and generator.random() < 0.5:
        subnet["num_key_value_heads"] = generator.choice([1, 2])
        subnet["num_attention_heads"] = subnet["num_key_value_heads"] * generator.choice([1, 2])
    elif generator.random() < 0.3:
        subnet["num_attention_heads"] = generator.choice([2, 4] if model_type in GROUPED else [1, 2, 4])
    if generator.random() < 0.3:
        subnet["hidden_size"] = generator.choice([16, 24, 32])
    return subnet


def standard_subnets(model, model_type: str, count: int) -> tuple[list[dict], int]:
    """`count` different standard sizes, and how many were drawn for them."""
    generator, found, drawn = random.Random(0), {}, 0
    while len(found) < count:
        drawn += 1
        if drawn > 1000 * count:
            raise RuntimeError(f"{model_type}: only {len(found)} different standard sizes in {drawn} draws")
        subnet = random_subnet(model_type, generator)
        if model.portability_of(subnet) == "standard":
            found.setdefault(str(model.resolve(subnet)), subnet)
    return list(found.values()), drawn


def write(root: Path, model_type: str, count: int) -> dict:
    """Write the checkpoints of one backbone; what was written."""
    auto, model = elastic(model_type)
    subnets, drawn = standard_subnets(model, model_type, count)
    for number, subnet in enumerate(subnets):
        folder = root / f"{model_type}.{number}"
        save_standard(model.extract(subnet), folder)
        describe(folder, auto, model.view(subnet), {})
    return {"checkpoints": len(subnets), "drawn": drawn}


def load(python: str, root: Path) -> dict:
    """Folder -> what a plain transformers finds in it."""
    with tempfile.TemporaryDirectory() as elsewhere:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [python, "-I", "-c", SCRIPT, str(root)]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{python}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(results: dict) -> dict:
    """Of the checkpoints of one backbone in one Python."""
    passed = [
        not result["missing"] and result["difference"] <= TOLERANCE and result.get("same_text", True)
        for result in results.values()
    ]
    return {
        "version": next(iter(results.values()))["version"],
        "loaded": len(results),
        "passed": sum(passed),
        "largest_difference": max(result["difference"] for result in results.values()),
    }


def main() -> None:
    """Run, print a table, write `reload.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="standard sizes of each backbone")
    parser.add_argument(
        "--backbones", nargs="*", default=list(STOCK), choices=[*STOCK, *NEWER], help="which; default: those of both versions"
    )
    parser.add_argument("--python", nargs="*", default=[], help="further interpreters to load in, besides this one")
    parser.add_argument("--output", type=Path, help="folder for reload.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows, pythons = {}, [sys.executable, *map(os.path.abspath, args.python)]
    for model_type in args.backbones:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            row = write(Path(name), model_type, args.count)
            row["loaded_in"] = [summary(load(python, Path(name))) for python in pythons]
        rows[model_type] = {**row, "seconds": round(time.perf_counter() - started, 1)}
        cells = [f"{s['version']}: {s['passed']}/{row['checkpoints']}, {s['largest_difference']:.1e}" for s in row["loaded_in"]]
        print(f"{model_type:<12} {'   '.join(cells)}   ({rows[model_type]['seconds']} s)", flush=True)
    if args.output is not None:
        record = {"written_by": transformers.__version__, "tolerance": TOLERANCE, "count": args.count, "backbones": rows}
        write_atomically(args.output / f"reload-{transformers.__version__}.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
