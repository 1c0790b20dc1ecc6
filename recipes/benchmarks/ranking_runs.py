"""What ranking.py trains: presets, the sampled architectures, and one training."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sizes_runs import plain_model

from hf_elastic.utils.files import write_atomically
from hf_elastic.utils.folders import filled

SUPERNET, DATA, SAMPLE = "supernet", "data", "sample.json"
SEARCHES = ("capacity", "decoder_parameters")  # quality of each of the two frontiers; the cost is FLOPs
POPULATION = 50  # sizes that a search looks at in a round
FILLING = "random"


@dataclass(frozen=True)
class Preset:
    """A space, and how its architectures are trained.

    Attributes:
        vocab_size: of the byte-level BPE that is trained on the text (tokens).
        length: of a block (tokens).
        head_size: channels per head; the number of heads follows the hidden size.
        space: axis -> values; the feed-forward width is chosen per layer.
        architectures: how many to train; half of them random, a quarter from each frontier.
        batch_size: blocks per step.
        tokens: that each architecture sees.
        learning_rate: largest; warmed up over the first tenth, then linear to 0.
        validation_blocks: of the validation text at most; None is all.
        n_trials: sizes that each search may look at.
        on_cpu: whether to train on the CPU though there is a GPU.
    """

    vocab_size: int
    length: int
    head_size: int
    space: dict[str, list[int]]
    architectures: int
    batch_size: int
    tokens: int
    learning_rate: float
    validation_blocks: int | None
    n_trials: int
    on_cpu: bool

    @property
    def steps(self) -> int:
        """Optimizer steps of each training."""
        return max(1, self.tokens // (self.batch_size * self.length))


PRESETS = {
    "small": Preset(
        vocab_size=2048,
        length=128,
        head_size=32,
        space={
            "num_hidden_layers": [1, 2, 3, 4, 5, 6],
            "hidden_size": [64, 96, 128, 160],
            "intermediate_size": [64, 128, 256, 384, 512, 640],
        },
        architectures=20,
        batch_size=8,
        tokens=300 * 8 * 128,
        learning_rate=3e-3,
        validation_blocks=512,
        n_trials=400,
        on_cpu=True,
    ),
    "large": Preset(
        vocab_size=8192,
        length=256,
        head_size=64,
        space={
            "num_hidden_layers": list(range(2, 13)),
            "hidden_size": [128, 192, 256, 320, 384, 448, 512],
            "intermediate_size": [128, 256, 512, 768, 1024, 1280, 1536, 2048],
        },
        architectures=100,
        batch_size=32,
        tokens=1500 * 32 * 256,
        learning_rate=1e-3,
        validation_blocks=None,
        n_trials=2000,
        on_cpu=False,
    ),
}


def set_up(preset: Preset, data_dir: str, folder: Path, seed: int) -> list[dict]:
    """The supernet, the tokenized text and the sample, made where they are missing.

    Returns:
        The sampled architectures, as in `sample_architectures`.

    Raises:
        FileNotFoundError: there is no wikitext2 in `data_dir`.
        ValueError: the folder has a sample of other settings.
    """
    settings = json.loads(json.dumps({**asdict(preset), "seed": seed}))
    is_new = not (folder / SAMPLE).exists()
    if not is_new:
        sample = json.loads((folder / SAMPLE).read_text())
        changed = [name for name, value in settings.items() if sample["settings"].get(name) != value]
        if changed:
            before = ", ".join(f"{name} {sample['settings'].get(name)}" for name in changed)
            raise ValueError(f"output: {folder} has results with {before}; give another folder")
    # The sample is written last: what is there without it is of a run that was interrupted, perhaps with other settings.
    if is_new or not (folder / SUPERNET).exists():
        convert(preset, data_dir, folder / SUPERNET, seed)
    if is_new or not (folder / DATA).exists():
        tokenize(preset, data_dir, folder)
    if is_new:
        from hf_elastic.cli.data import load_elastic

        found = sample_architectures(load_elastic(str(folder / SUPERNET)), preset, seed)
        write_atomically(folder / SAMPLE, json.dumps({"settings": settings, "architectures": found}, indent=2) + "\n")
    return json.loads((folder / SAMPLE).read_text())["architectures"]


def convert(preset: Preset, data_dir: str, folder: Path, seed: int) -> None:
    """New weights of the largest architecture, which every other is cut out of, and the tokenizer."""
    from hf_elastic.cli import convert as command

    largest = {axis: max(values) for axis, values in preset.space.items()}
    config = {
        "model_type": "gpt2",
        "vocab_size": preset.vocab_size,
        "n_positions": preset.length,
        "n_embd": largest["hidden_size"],
        "n_layer": largest["num_hidden_layers"],
        "n_head": largest["hidden_size"] // preset.head_size,
        "n_inner": largest["intermediate_size"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        # Each sees less than the text once: nothing to be regularised.
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }
    options = command.ConvertConfig(
        task="causal-lm",
        model_config=config,
        tokenizer_dataset="wikitext2",
        data_dir=data_dir,
        importance="none",
        space={**preset.space, "per_layer": ["intermediate_size"], "head_size": preset.head_size},
        seed=seed,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        command.run(command.ConvertArguments(str(folder), overwrite=True), options)


def tokenize(preset: Preset, data_dir: str, folder: Path) -> None:
    """The text in blocks of tokens, as `hf-elastic train` prepares it, once for all trainings."""
    from hf_elastic.cli.data import DataArguments, load_elastic, load_tokenizer, prepare_for

    name = str(folder / SUPERNET)
    options = DataArguments(model=name, dataset="wikitext2", data_dir=data_dir, max_length=preset.length)
    splits = prepare_for(load_elastic(name), load_tokenizer(name), options).splits
    with filled(folder / DATA, overwrite=True) as staging:
        splits.save_to_disk(str(staging))


def sample_architectures(model, preset: Preset, seed: int) -> list[dict]:
    """Architectures of two frontiers and random ones, each once.

    Random ones have every axis uniform, but the feed-forward width of a layer: half of them have one width in all layers, since
    independent widths all have the same mean.

    Returns:
        Dicts of "origin", "subnet" and "before": every closed-form proxy, FLOPs and parameters by name.
    """
    from hf_elastic import search_subnets

    found: dict = {}
    for quality in SEARCHES:
        options = {"n_trials": preset.n_trials, "population_size": POPULATION, "algorithm": "surrogate", "progress": False}
        points = search_subnets(model, [quality, "flops"], sequence_length=preset.length, seed=seed, **options).points
        points = sorted(points, key=lambda point: point.values["flops"])
        fresh = [subnet for subnet in (model.subnet(point.subnet) for point in points) if subnet not in found]
        for place in spread([model.flops_of(one, sequence_length=preset.length) for one in fresh], preset.architectures // 4):
            found[fresh[place]] = f"frontier of {quality}"
    generator = np.random.default_rng(seed)
    while len(found) < preset.architectures:
        found.setdefault(model.subnet(random_architecture(preset, generator)), FILLING)
    before = describe(model, list(found), preset)
    return [
        {"origin": origin, "subnet": subnet.to_dict(), "before": {name: float(values[place]) for name, values in before.items()}}
        for place, (subnet, origin) in enumerate(found.items())
    ]


def spread(costs: Sequence[float], count: int) -> list[int]:
    """Places of `count` costs, each once, that are as evenly apart on a logarithmic scale as there are."""
    left = dict(enumerate(np.log(costs).tolist()))
    chosen = []
    for wanted in np.linspace(min(left.values()), max(left.values()), min(count, len(left))):
        nearest = min(left, key=lambda place: abs(left[place] - wanted))
        chosen.append(nearest)
        del left[nearest]
    return chosen


def random_architecture(preset: Preset, generator: np.random.Generator) -> dict:
    """Axis -> value."""
    depth, width = (int(generator.choice(preset.space[axis])) for axis in ("num_hidden_layers", "hidden_size"))
    widths = generator.choice(preset.space["intermediate_size"], size=depth)
    if generator.random() < 0.5:
        widths = np.repeat(widths[:1], depth)
    heads = width // preset.head_size
    sizes = {"num_hidden_layers": depth, "hidden_size": width, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": widths.tolist()}


def describe(model, subnets: Sequence, preset: Preset) -> dict[str, np.ndarray]:
    """What is known of architectures before training, by name `[N]`."""
    from hf_elastic.search.proxies.table import closed_form

    flops = np.array([model.flops_of(one, sequence_length=preset.length) for one in subnets])
    parameters = np.array([model.num_parameters_of(one) for one in subnets])
    return {**closed_form(model, subnets), "flops": flops, "parameters": parameters}


def train_one(preset: Preset, folder: Path, architecture: dict, seed: int) -> dict:
    """Train an architecture as a model of its own.

    Returns:
        The architecture with "perplexity" on the validation text, "tokens" and "seconds".
    """
    from datasets import load_from_disk
    from transformers import Trainer, TrainingArguments, default_data_collator

    from hf_elastic.cli.data import load_elastic

    model = plain_model(load_elastic(str(folder / SUPERNET)), architecture["subnet"])
    splits = load_from_disk(str(folder / DATA), keep_in_memory=True)
    validation = splits["validation"]
    validation = validation.select(range(min(len(validation), preset.validation_blocks or len(validation))))
    is_cpu = preset.on_cpu or not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=preset.steps,
            per_device_train_batch_size=preset.batch_size,
            per_device_eval_batch_size=preset.batch_size * 2,
            learning_rate=preset.learning_rate,
            warmup_steps=preset.steps // 10,
            lr_scheduler_type="linear",
            weight_decay=0.1,
            bf16=True,
            use_cpu=is_cpu,
            seed=seed,
            report_to=["none"],
            logging_steps=50,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=splits["train"], data_collator=default_data_collator)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        loss = trainer.evaluate(validation)["eval_loss"]
    tokens = trainer.state.global_step * preset.batch_size * preset.length
    return {**architecture, "perplexity": math.exp(loss), "tokens": tokens, "seconds": round(seconds, 1)}
