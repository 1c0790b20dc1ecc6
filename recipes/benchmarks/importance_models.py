"""The models and tasks of importance.py; what is trained is kept in its output folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

MAX_LENGTH = 48
LENGTH = 128  # of a block of running text (tokens)
EVALUATED = {"stdlib-docstrings": 200, "glue/sst2": 300}  # validation rows
BLOCKS = 16  # of validation text
TRAINING = {
    "docstrings": {"dataset": "stdlib-docstrings", "max_steps": 80, "learning_rate": 2e-4},
    "sst2": {"dataset": "glue/sst2", "max_steps": 100, "learning_rate": 1e-4, "max_train_rows": 2000},
    "decoder": {"dataset": "wikitext2", "max_steps": 250, "learning_rate": 3e-3, "max_train_rows": 8000},
    "gpt2": {"dataset": "wikitext2", "max_steps": 250, "learning_rate": 3e-3, "max_train_rows": 8000},
}
DECODER = {  # grouped queries, and a gated feed-forward
    "model_type": "llama",
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 576,
    "vocab_size": 2048,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 192,
    "n_layer": 6,
    "n_head": 8,
    "n_inner": 768,
    "vocab_size": 2048,
    "n_positions": LENGTH,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
DECODERS = {"decoder": DECODER, "gpt2": GPT2}
# Name -> (what is trained, or None for MiniLM as it is; data set of the task).
_CASES = {
    "MiniLM docstrings": (None, "stdlib-docstrings"),
    "MiniLM SST-2": (None, "glue/sst2"),
    "classifier docstrings": ("docstrings", "stdlib-docstrings"),
    "classifier SST-2": ("sst2", "glue/sst2"),
    "decoder WikiText-2": ("decoder", "wikitext2"),
    "decoder docstrings": ("decoder", "stdlib-docstrings"),
    "gpt2 WikiText-2": ("gpt2", "wikitext2"),
}


def cases() -> tuple[str, ...]:
    """Names of all cases."""
    return tuple(name.replace(" ", "-") for name in _CASES)


@dataclass
class Case:
    """A model and a task.

    Attributes:
        stock: transformers' own model.
        tokenizer: the model's.
        rows: the task's data set.
        kind: "embedding", "classifier" or "decoder".
        dataset: name of the data set.
    """

    stock: torch.nn.Module
    tokenizer: object
    rows: dict
    kind: str
    dataset: str

    @property
    def elastic_class(self) -> type:
        """The elastic class of the model's head."""
        import hf_elastic

        names = {"embedding": "ElasticModel", "classifier": "ElasticForSequenceClassification"}
        return getattr(hf_elastic, names.get(self.kind, "ElasticForCausalLM"))

    @property
    def unit(self) -> str:
        """What quality is."""
        return {"embedding": "cosine", "classifier": "accuracy"}.get(self.kind, "loss")

    @property
    def has_head(self) -> bool:
        """Whether the model returns something else than hidden states."""
        return self.kind != "embedding"

    @property
    def max_length(self) -> int:
        """Longest input (tokens)."""
        return LENGTH if self.kind == "decoder" else MAX_LENGTH

    @property
    def column(self) -> str:
        """Where the text is."""
        return "sentence1" if self.dataset == "glue/sst2" else "text"

    def texts(self, count: int, seed: int) -> list[str]:
        """Training texts."""
        return [text for text in self.rows["train"].shuffle(seed=seed)[self.column] if text.strip()][:count]

    def labelled(self, count: int, seed: int) -> list[dict]:
        """Training batches with labels; none for embeddings."""
        if self.kind == "embedding":
            return []
        if self.kind == "decoder":
            return self._blocks("train", seed, 64)
        return self._rows(self.rows["train"].shuffle(seed=seed).select(range(count)))

    def _rows(self, rows) -> list[dict]:
        parts = (rows[start : start + 16] for start in range(0, len(rows), 16))
        options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
        made = ((self.tokenizer(part[self.column], **options), part["label"]) for part in parts)
        return [{**tokens, "labels": torch.tensor(labels)} for tokens, labels in made]

    def _blocks(self, split: str, seed: int, count: int) -> list[dict]:
        texts = self.rows[split].shuffle(seed=seed)[self.column][: count * 20]
        ids = self.tokenizer("\n".join(texts), return_tensors="pt", verbose=False)["input_ids"][0]
        blocks = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)[:count]
        return [{"input_ids": part, "labels": part} for part in blocks.split(8)]

    def quality(self, full: torch.nn.Module) -> Callable:
        """A function from a size, a stock module, to its quality on validation rows.

        Args:
            full: what embeddings are compared with.
        """
        if self.kind == "decoder":
            batches = self._blocks("validation", 0, BLOCKS)
            return lambda module: _mean(module(**batch).loss.item() for batch in batches)
        rows = EVALUATED[self.dataset] // (1 if self.has_head else 2)
        batches = self._rows(self.rows["validation"].shuffle(seed=0).select(range(rows)))
        if self.kind == "classifier":
            return lambda module: _accuracy(module, batches)
        inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
        expected = _embed(full, inputs)
        return lambda module: torch.cosine_similarity(_embed(module, inputs), expected).mean().item()


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@torch.inference_mode()
def _accuracy(module: torch.nn.Module, batches: list[dict]) -> float:
    right = [(module(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in batches]
    return torch.cat(right).mean().item()


@torch.inference_mode()
def _embed(module: torch.nn.Module, batches: list[dict]) -> torch.Tensor:
    """Mean over tokens of the last hidden state, `[rows, hidden]`."""
    found = []
    for batch in batches:
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append((module(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def case_of(name: str, output: Path, data_dir: str) -> Case:
    """Load a case; train its model if that is not done yet."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    from hf_elastic import ElasticForCausalLM
    from hf_elastic.data.loading import load_text_dataset
    from hf_elastic.data.minilm import minilm_path

    trained, dataset = _CASES[name.replace("-", " ", 1)]
    folder = minilm_path() if trained is None else train(trained, output, data_dir)
    if trained is None:
        kind, stock = "embedding", AutoModel.from_pretrained(folder)
    elif trained in DECODERS:
        kind, stock = "decoder", ElasticForCausalLM.from_pretrained(folder).extract(None)
    else:
        kind, stock = "classifier", AutoModelForSequenceClassification.from_pretrained(folder)
    rows = load_text_dataset(_located(dataset, data_dir))
    return Case(stock, AutoTokenizer.from_pretrained(folder), rows, kind, dataset)


def _located(dataset: str, data_dir: str) -> str:
    from hf_elastic.cli.data import located

    return dataset if dataset.startswith("stdlib") else located(dataset, data_dir)


def train(name: str, output: Path, data_dir: str) -> Path:
    """Train a model, or find it in the output folder."""
    from hf_elastic.cli import train as command
    from hf_elastic.data.loading import load_text_dataset
    from hf_elastic.data.minilm import minilm_path
    from hf_elastic.training.arguments import ElasticTrainingArguments

    folder = output / name
    if (folder / "metrics.json").exists():
        return folder
    options = dict(TRAINING[name])
    data = {"dataset": _located(options.pop("dataset"), data_dir), "max_train_rows": options.pop("max_train_rows", None)}
    size = {"per_device_train_batch_size": 8 if name in DECODERS else 16, "warmup_steps": 10, "logging_steps": 10}
    fixed = {"report_to": ["none"], "save_strategy": "no", "disable_tqdm": True, "output_dir": str(folder), "seed": 0}
    with tempfile.TemporaryDirectory() as scratch:
        if name in DECODERS:
            data |= {"model": _new_decoder(DECODERS[name], scratch, data["dataset"]), "max_length": LENGTH}
        else:
            labels = 2 if name == "sst2" else load_text_dataset(data["dataset"])["train"].features["label"].num_classes
            head = {"task": "sequence-classification", "num_labels": labels}
            data |= {"model": str(minilm_path()), "max_length": MAX_LENGTH, **head}
        command.run(command.TrainArguments(**data, overwrite=True), ElasticTrainingArguments(**options, **size, **fixed))
    return folder


def _new_decoder(config: dict, folder: str, dataset: str) -> str:
    from hf_elastic.cli import convert

    options = {"task": "causal-lm", "model_config": config, "tokenizer_dataset": dataset}
    convert.run(convert.ConvertArguments(folder, overwrite=True), convert.ConvertConfig(**options))
    return folder
