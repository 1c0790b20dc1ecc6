"""How alike do the blocks of a layer become? Similarity of what sibling blocks write, in supernets of several losses.

    python recipes/benchmarks/elm_diversity.py PKD=runs/elm/a/trained MSE=runs/elm/b/trained --data-dir DATA_DIR

Each argument is a name and the folder of a supernet with `block_type` in its space, as `hf-elastic train` leaves it; DATA_DIR has
wikitext2. For every layer, random sizes are run once with each block in that layer, so that all blocks read the same hidden
states. Compared are the outputs of the layer, and what the layer has added to what it read, by linear CKA (Kornblith et al. 2019,
arXiv 1905.00414, eq. 4, of centred channels) and by the mean cosine of tokens; the mean over pairs of blocks and sizes. ELM's
losses are to keep what is particular to each block; this property, measured, and the measure are ours.
Writes diversity.json and diversity.png to the output folder; 1 is alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hf_elastic.core.errors import UserError
from hf_elastic.core.space import Subnet
from hf_elastic.utils.files import staged_file, write_atomically

AXIS = "block_type"
MEASURES = ("output, CKA", "output, cosine", "added, CKA", "added, cosine")


def linear_cka(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Linear CKA of two `[tokens, channels]`."""
    ours, theirs = (x.double() - x.double().mean(0) for x in (ours, theirs))
    cross, one, two = ((a.T @ b).norm() ** 2 for a, b in ((ours, theirs), (ours, ours), (theirs, theirs)))
    return float(cross / (one.sqrt() * two.sqrt()))


def mean_cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean over tokens of the cosine of two `[tokens, channels]`."""
    return float(torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).mean())


@torch.inference_mode()
def similarities(model, batches: list[dict], sizes: int, seed: int) -> list[dict[str, float]]:
    """For each layer of the deepest size, the mean of each measure over pairs of blocks and random sizes."""
    generator = random.Random(seed)
    depth = len(model.resolve(model.space.largest).layers)
    found: list[dict[str, list[float]]] = [{name: [] for name in MEASURES} for _ in range(depth)]
    for _ in range(sizes):
        path = model.subnet(model.space.sample(generator)).to_dict()
        blocks = path[AXIS] if isinstance(path[AXIS], list) else [path[AXIS]] * len(model.resolve(path).layers)
        for layer in range(len(blocks)):
            siblings = model.layout.choices.held[model.resolve(path).layers[layer]][AXIS]
            outputs = [states_of(model, path, blocks, layer, block, batches) for block in siblings]
            for (read, one), (_, two) in itertools.combinations(outputs, 2):
                pairs = {"output": (one, two), "added": (one - read, two - read)}
                for name, pair in pairs.items():
                    found[layer][f"{name}, CKA"].append(linear_cka(*pair))
                    found[layer][f"{name}, cosine"].append(mean_cosine(*pair))
    return [{name: sum(values) / len(values) for name, values in layer.items() if values} for layer in found]


def states_of(model, path: dict, blocks: list[str], layer: int, block: str, batches: list[dict]) -> tuple[torch.Tensor, ...]:
    """What a layer reads and writes with a block in it, each `[tokens, channels]` without padding."""
    view = model.view(Subnet({**path, AXIS: [*blocks[:layer], block, *blocks[layer + 1 :]]}))
    pairs = []
    for batch in batches:
        states, kept = view(**batch, output_hidden_states=True).hidden_states, batch["attention_mask"].bool()
        pairs.append((states[layer][kept], states[layer + 1][kept]))
    return tuple(torch.cat(part) for part in zip(*pairs))


def load(folder: str, data_dir: str, rows: int) -> tuple:
    """A supernet, and batches of held-out text."""
    from hf_elastic.cli.data import DataArguments, load_elastic, load_tokenizer, prepare_for

    model = load_elastic(folder).eval()
    if not model.layout.choices.are_open or AXIS not in model.space:
        raise UserError(f"{folder} has no {AXIS} in its space")
    options = DataArguments(model=folder, dataset="wikitext2", data_dir=data_dir, max_length=64, max_train_rows=100)
    held_out = prepare_for(model, load_tokenizer(folder), options).splits["validation"]
    held_out = held_out.select(range(min(rows, len(held_out)))).with_format("torch")
    return model, [
        {"input_ids": held_out[start : start + 16]["input_ids"], "attention_mask": held_out[start : start + 16]["attention_mask"]}
        for start in range(0, len(held_out), 16)
    ]


def table(found: dict[str, list[dict[str, float]]]) -> Table:
    """A row for each supernet and measure, a column for each layer."""
    layers = max(map(len, found.values()))
    grid = Table("supernet", "of a layer", *(f"layer {layer}" for layer in range(layers)), "mean")
    for name, rows in found.items():
        for measure in MEASURES:
            values = [row[measure] for row in rows]
            cells = [f"{value:.3f}" for value in values] + [""] * (layers - len(values))
            grid.add_row(name, measure, *cells, f"{sum(values) / len(values):.3f}")
    return grid


def plot(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A picture by layer: one line for each supernet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, measure in zip(figure.subplots(1, 3), ("output, CKA", "added, CKA", "added, cosine")):
        for name, rows in found.items():
            axes.plot(range(len(rows)), [row[measure] for row in rows], marker="o", label=name)
        axes.set(xlabel="layer", ylabel="sibling blocks, 1 is alike", title=measure, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend()
    with staged_file(path) as file:
        figure.savefig(file, format="png")


def main() -> int:
    """Parse and run; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernets", nargs="+", help="NAME=FOLDER of each supernet")
    parser.add_argument("--data-dir", required=True, help="folder that holds wikitext2")
    parser.add_argument("--output", default="runs/elm/diversity", help="folder for the table and the picture")
    parser.add_argument("--rows", type=int, default=64, help="blocks of 64 tokens (count)")
    parser.add_argument("--sizes", type=int, default=4, help="random sizes (count)")
    parser.add_argument("--seed", type=int, default=0, help="of the random sizes")
    args = parser.parse_args()
    try:
        named = [text.partition("=") for text in args.supernets]
        if wrong := [name for name, sign, folder in named if not (sign and folder)]:
            raise UserError(f"{wrong[0]!r} must be NAME=FOLDER")
        found = {name: similarities(*load(folder, args.data_dir, args.rows), args.sizes, args.seed) for name, _, folder in named}
    except (UserError, OSError) as error:
        print(f"elm_diversity.py: {error}", file=sys.stderr)
        return 2
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "diversity.json", json.dumps(found, indent=2) + "\n")
    plot(found, output / "diversity.png")
    console = Console()
    console.width = max(console.width, 110)
    console.print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
