"""What elm.py runs: stages of the nano recipes, for each loss family and architecture, as chains that go on where they were."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from hf_elastic.cli import elm
from hf_elastic.cli.data import DataArguments, load_elastic, load_tokenizer, prepare_for
from hf_elastic.core.space import Subnet
from hf_elastic.search.heads import merge_alike_heads
from hf_elastic.utils.files import write_atomically

RECIPES = Path(__file__).resolve().parents[1] / "elm" / "nano"
QUALITY = {"masked": "loss", "causal": "perplexity"}
# Distillation of each loss family. MiniLM has no head of its own, so masked models have no term of logits.
FAMILIES = {
    "masked": {"relational": {"pkd_parts": 1.0}, "mse": {"hidden": 1.0}},
    "causal": {"relational": {"pkd_parts": 1.0, "dist": 1.0}, "mse": {"hidden": 1.0, "logits": 1.0}},
}
SUPERNETS = ("relational", "mse", "growth")  # the last: relational, and its feed-forward widths grow until the mean is the cap
GROWTHS = 20  # at most, in one training; it is measured five times before each
TEACHER_STAGES = ("gpt2", "gpt2-trained")
NEAR = 0.03  # how far below the found model's number of parameters a random architecture of its size may be
DRAWS = 200_000


class Runs:
    """The runs of one direction and seed.

    Args:
        direction: "masked" or "causal".
        seed: of everything.
        data_dir: folder that holds wikitext2 and, for tasks, glue.
        output: folder for everything.
        smoke: whether to run the smallest version of each stage.
        steps: training steps of a supernet and of an architecture alone; None for the recipe's.
    """

    def __init__(self, direction: str, seed: int, data_dir: str, output: str, smoke: bool, steps: Mapping[str, int | None]):
        self.direction, self.seed, self.data_dir, self.smoke, self.steps = direction, seed, data_dir, smoke, steps
        self.records = Path(output) / direction
        self.folder = self.records / f"seed-{seed}"
        self.stages = yaml.safe_load((RECIPES / f"{direction}.yaml").read_text(encoding="utf-8"))["stages"]

    def chain(self, name: str, stages: Mapping[str, Mapping], teacher: str | None = None) -> Path:
        """Run stages in a folder of their own, as far as they are not done; the folder."""
        return self._chain(self.folder / name, stages, seed=self.seed, teacher=teacher)

    def _chain(self, folder: Path, stages: Mapping[str, Mapping], **options) -> Path:
        options |= {"data_dir": self.data_dir, "smoke": self.smoke}
        elm.run(elm.ElmArguments(stages=dict(stages), output_dir=str(folder), **options))
        return folder

    def teacher(self) -> str | None:
        """The folder of the causal teacher, which all seeds share; None for MiniLM."""
        stages = {name: self.stages[name] for name in TEACHER_STAGES if name in self.stages}
        return str(self._chain(self.records / "teacher", stages, seed=0) / TEACHER_STAGES[-1]) if stages else None

    def supernet(self, kind: str) -> Path:
        """The folder of a supernet, trained with the losses of a family, growing or not, and searched."""
        teacher, stages = self.teacher(), {}
        for name in ("supernet", "trained", "search"):
            stages[name] = copy.deepcopy(self.stages[name])
        if teacher is not None:
            stages["supernet"]["tokenizer"] = stages["trained"]["teacher"] = "$teacher"
        stages["trained"]["distillation"] = FAMILIES[self.direction]["mse" if kind == "mse" else "relational"]
        self._set_steps(stages["trained"], "supernet")
        if kind == "growth":
            self._set_growth(stages)
        return self.chain(f"supernet-{kind}", stages, teacher)

    def _set_growth(self, stages: dict[str, dict]) -> None:
        """No width is chosen; widths grow until the mean size is the cap of the search."""
        normal = tuple(stages[name] for name in ("supernet", "trained", "search"))
        for (supernet, trained, search), pairs in ((normal, None), (tuple(stage["smoke"] for stage in normal), 4)):
            space = {axis: values for axis, values in supernet["space"].items() if axis != "intermediate_size"}
            supernet["space"] = {**space, "per_layer": [axis for axis in space["per_layer"] if axis != "intermediate_size"]}
            every = max(1, trained["max_steps"] // GROWTHS)
            cap = float(search["constraints"][0].partition("<=")[2])
            trained |= {
                "growth_cap": int(cap),
                "growth_steps": every,
                "growth_measure_steps": max(1, every // 5),
                "growth_pairs": pairs,
            }

    def alone(self, name: str, subnet: Subnet, family: str) -> dict:
        """Train an architecture from new weights, as the recipe trains its winner; the metrics."""
        cut = {"command": "export", "model": str(self.folder / "supernet-relational" / "trained"), "formats": ["safetensors"]}
        training = {**self.stages["winner-trained"], "model": "$cut", "new_weights": True, "teacher": "$teacher"}
        training["task"] = self.stages["supernet"]["task"]
        training["distillation"] = FAMILIES[self.direction][family]
        self._set_steps(training, "alone")
        stages = {"cut": {**cut, "subnet": subnet.to_dict()}, "trained": training}
        folder = self.chain(f"alone/{name}/{family}", stages, self.teacher())
        return json.loads((folder / "trained" / "metrics.json").read_text())

    def task(self, name: str, family: str, task: str) -> float:
        """Fine-tune a trained architecture on a task of GLUE; the accuracy."""
        trained = str(self.folder / "alone" / name / family / "trained")
        tuned = {**self.stages["sst2"], "model": trained, "dataset": f"$data/glue/{task}"}
        folder = self.chain(f"alone/{name}/{family}/{task}", {"tuned": tuned}, self.teacher())
        return json.loads((folder / "tuned" / "metrics.json").read_text())["eval_accuracy"]

    def _set_steps(self, stage: dict, kind: str) -> None:
        if self.steps[kind] is not None:
            stage["max_steps"] = self.steps[kind]

    def model(self, kind: str):
        """A trained supernet."""
        return load_elastic(str(self.folder / f"supernet-{kind}" / "trained")).eval()

    def found(self, kind: str) -> Subnet:
        """The best architecture within the cap of a search."""
        from hf_elastic.search import Frontier

        return Subnet(Frontier.load(self.folder / f"supernet-{kind}" / "search" / "frontier.json").best().subnet)

    def held_out(self, family: str, model):
        """What a search measures on: the pass over the same rows of the validation text."""
        from hf_elastic.measure.quality import QualityPass

        rows, collator = self.rows(family, model)
        return QualityPass(model, rows, ["loss"], data_collator=collator, seed=self.seed)

    def merged(self, subnet: Subnet) -> Subnet:
        """An architecture of the relational supernet whose heads are partitioned anew, on the rows of the search."""
        from torch.utils.data import DataLoader

        model = self.model("relational")
        rows, collator = self.rows("relational", model)
        torch.manual_seed(self.seed)  # of the tokens that are masked
        return merge_alike_heads(model, subnet, DataLoader(rows, batch_size=16, collate_fn=collator))

    def rows(self, family: str, model):
        """The rows of the validation text that a search measures on, and what makes batches of them."""
        stage = {**self.stages["search"], **(self.stages["search"]["smoke"] if self.smoke else {})}
        folder = str(self.folder / f"supernet-{family}" / "trained")
        options = DataArguments(model=folder, dataset="wikitext2", data_dir=self.data_dir, max_length=stage["max_length"])
        with contextlib.redirect_stdout(io.StringIO()):
            data = prepare_for(model, load_tokenizer(folder), options)
        rows = data.splits["validation"]
        return rows.select(range(min(stage["max_examples"], len(rows)))), data.collator

    def record(self, name: str, values: Mapping) -> None:
        """Write the record of a run."""
        write_atomically(self.records / f"{name}-{self.seed}.json", json.dumps({"seed": self.seed, **values}, indent=2) + "\n")


def of_size(model, parameters: int, count: int, seed: int) -> list[Subnet]:
    """Random architectures of at most so many parameters, and nearly as many, each once; fewer where few are found."""
    generator, found = random.Random(seed), {}
    for _ in range(DRAWS):
        subnet = model.space.sample(generator)
        if (1 - NEAR) * parameters <= model.num_parameters_of(subnet) <= parameters:
            found[subnet] = None
        if len(found) == count:
            break
    return list(found)


def anywhere(model, count: int, seed: int) -> list[Subnet]:
    """Random architectures of any size."""
    generator, found = random.Random(f"anywhere-{seed}"), {}
    while len(found) < min(count, model.space.size):
        found[model.space.sample(generator)] = None
    return list(found)


def of_one_block(model, block: str, parameters: int) -> Subnet:
    """Of the architectures of one block type and one feed-forward width, of any depth, the nearest in parameters, not below all.

    At one hidden size a bert block is larger than any mobilebert block: the nearest is often shallower, or smaller.
    """
    depth = len(model.resolve(model.space.largest).layers)
    heads = max(model.space["num_attention_heads"])
    sizes = [
        Subnet(num_hidden_layers=layers, block_type=block, intermediate_size=width, num_attention_heads=heads)
        for layers in range(1, depth + 1)
        for width in model.space["intermediate_size"]
    ]
    return min(sizes, key=lambda subnet: (abs(model.num_parameters_of(subnet) - parameters), -subnet["num_hidden_layers"]))
