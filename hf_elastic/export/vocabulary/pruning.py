"""Vocabulary pruning: a model and its tokenizer keep what a corpus needs; on it, nothing changes.

Half of a small encoder is its embedding table. Which parameters have a row per token is read off the shape strings of the
architecture's Spec (the axis `vocab`); they are cut by the one slicing code of the package.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...core.adapters import check_merged
from ...core.errors import UserError
from ...core.modeling_elastic import ElasticPreTrainedModel
from ...core.shapes import axes_in, parse_stored, permute
from ...core.spec import Spec, spec_for
from ..inputs import make_inputs
from ..outputs import predict
from ..parity import FLOAT32, check_parity, compare
from .tokenizer import needed_tokens, pruned_json, vocabulary_of

AXIS = "vocab"
BATCH = 1000  # texts tokenized at once
COMPARED = 16  # texts that a size is compared on
# What a tokenizer's folder may hold besides tokenizer.json that says the same in the old ids.
OLD_FILES = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "spiece.model", "tokenizer.model",
             "sentencepiece.bpe.model")  # fmt: skip


def prune_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Copies of a model and its tokenizer with the tokens that the texts need.

    Special and added tokens stay, and so do the characters (or bytes) that other text falls back on. On text that the kept tokens
    cover, the tokenizer gives the same tokens under new ids, and the model the same outputs (of a language model: the
    same logits of the kept tokens).

    Args:
        model: a stock or an elastic model; it is left as it was.
        tokenizer: its tokenizer, which has to have a `tokenizer.json` (a fast one).
        texts: at least one.

    Returns:
        The model, the tokenizer, and a report: `vocabulary_before`, `vocabulary_after` (tokens), `parameters_saved`,
        `megabytes_saved` (10**6 bytes), `corpus_texts`, `corpus_tokens`, `corpus_tokens_unchanged` (share, always 1.0) and
        `kept_ids` (old ids, in the order of the new ones).

    Raises:
        ValueError: no texts, a slow tokenizer, one that does not go with the model, an architecture without a plain table of
            tokens, or adapters that are not merged.
    """
    if not texts:
        raise UserError("vocabulary: there are no texts to keep the vocabulary of")
    if not tokenizer.is_fast:
        raise UserError(f"vocabulary: {type(tokenizer).__name__} has no tokenizer.json (it is slow) and cannot be pruned")
    rows = _token_parameters(model)
    size = model.config.vocab_size
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    before = [ids for batch in _tokenized(tokenizer, texts) for ids in batch]
    kept = _kept_ids(model, data, before)
    if kept[-1] >= size:
        raise UserError(f"vocabulary: the tokenizer has the id {kept[-1]}, but the model only {size} tokens")
    renumbered = {old: new for new, old in enumerate(kept)}
    smaller_tokenizer = _pruned_tokenizer(tokenizer, data, renumbered)
    _check_unchanged(smaller_tokenizer, texts, before, renumbered)
    smaller = _pruned_model(model, rows, renumbered)
    saved = _count(model) - _count(smaller)
    report = {
        "vocabulary_before": size,
        "vocabulary_after": len(kept),
        "parameters_saved": saved,
        "megabytes_saved": saved * next(model.parameters()).element_size() / 1e6,
        "corpus_texts": len(texts),
        "corpus_tokens": sum(map(len, before)),
        "corpus_tokens_unchanged": 1.0,
        "kept_ids": kept,
    }
    return smaller, smaller_tokenizer, report


def prune_and_compare(
    model: ElasticPreTrainedModel, subnet: str | Mapping | None, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[ElasticPreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """`prune_vocabulary`, with a comparison of the size that is to be exported before and after on the first texts.

    Returns:
        As `prune_vocabulary`; the report has the numbers of `compare` as well. `export_subnet` takes the model and the tokenizer
        like any others.

    Raises:
        ValueError: see `prune_vocabulary`.
        ParityError: the outputs changed.
    """
    smaller, smaller_tokenizer, report = prune_vocabulary(model, tokenizer, texts)
    rows = list(texts[:COMPARED])
    old, new = make_inputs(model, tokenizer, rows).tensors, make_inputs(smaller, smaller_tokenizer, rows).tensors
    if tokenizer.pad_token is None:  # then inputs are random tokens, which have to be the same ones
        old = {**new, "input_ids": torch.tensor(report["kept_ids"])[new["input_ids"]]}
    expected, found = predict(model.view(subnet), old), predict(smaller.view(subnet), new)
    if expected.shape[-1] == report["vocabulary_before"] != found.shape[-1]:
        expected = expected[..., report["kept_ids"]]
    mask = new["attention_mask"].numpy() if new["attention_mask"].shape == expected.shape[:2] else None
    comparison = compare(expected, found, mask)
    check_parity(comparison, FLOAT32)
    return smaller, smaller_tokenizer, {**report, **comparison, "compared_texts": len(rows)}


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _spec_of(model: PreTrainedModel) -> Spec:
    if isinstance(model, ElasticPreTrainedModel):
        return Spec.from_dict(model.config.spec)
    return spec_for(model.config.model_type)


def _token_parameters(model: PreTrainedModel) -> dict[str, tuple]:
    """Parameters with a row per token -> their parsed shapes."""
    check_merged(model)
    spec = _spec_of(model)
    shapes = {name: parse_stored(spec.shape_of(name))[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    found = {name: dims for name, dims in shapes.items() if AXIS in axes_in(dims)}
    if not found:
        raise UserError(
            f"vocabulary: {spec.model_types[0]} has no single table of tokens (an adaptive vocabulary sorts them by frequency), "
            "and cannot be pruned"
        )
    return found


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[list[int]]]:
    for start in range(0, len(texts), BATCH):
        yield tokenizer(list(texts[start : start + BATCH]), truncation=False, verbose=False)["input_ids"]


def _kept_ids(model: PreTrainedModel, data: Mapping[str, Any], used: Sequence[Sequence[int]]) -> list[int]:
    """Old ids that stay, ascending, so that the order of tokens does not change."""
    vocabulary = vocabulary_of(data["model"])
    tokens = {index: token for token, index in vocabulary.items()}
    ids = {index for row in used for index in row}
    ids |= {
        index for config in _configs(model) for value in _token_ids(config).values() for index in _flat(value)
    } & tokens.keys()
    added = {token["id"] for token in data["added_tokens"]}
    needed = needed_tokens(data, (tokens[index] for index in ids if index in tokens))
    return sorted({vocabulary[token] for token in needed} | added)


def _configs(model: PreTrainedModel) -> list[PretrainedConfig | GenerationConfig]:
    base = model.config.base_config if isinstance(model, ElasticPreTrainedModel) else model.config
    return [base, model.generation_config] if model.can_generate() else [base]


def _token_ids(config: PretrainedConfig | GenerationConfig) -> dict[str, Any]:
    """Fields of a config that hold ids of tokens."""
    values = vars(config)
    names = (
        *(name for name in values if name.endswith("_token_id")),
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
    )
    return {name.removeprefix("_"): values[name] for name in names if values.get(name) is not None}


def _flat(value: Any) -> list[int]:
    return [index for item in value for index in _flat(item)] if isinstance(value, (list, tuple)) else [value]


def _renumber(config: PretrainedConfig | GenerationConfig, kept: Mapping[int, int]) -> None:
    """New ids in a config, in place. An id that no token has any more becomes None."""

    def renumbered(value):
        if isinstance(value, (list, tuple)):
            found = [renumbered(item) for item in value]
            return [item for item in found if item is not None and item != []] or None
        return kept.get(value)

    for name, value in _token_ids(config).items():
        setattr(config, name, renumbered(value))


def _pruned_tokenizer(tokenizer: PreTrainedTokenizerBase, data: dict, kept: Mapping[int, int]) -> PreTrainedTokenizerBase:
    """The same kind of tokenizer, read from files with the new ids."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)  # read again by the same version, right below
        for file in OLD_FILES:
            (folder / file).unlink(missing_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(pruned_json(data, kept), ensure_ascii=False), encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        values = json.loads(settings.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in values:
            values["added_tokens_decoder"] = {str(kept[int(i)]): token for i, token in values["added_tokens_decoder"].items()}
        settings.write_text(json.dumps(values), encoding="utf-8")
        return type(tokenizer).from_pretrained(folder)


def _check_unchanged(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], before: list, kept: Mapping[int, int]) -> None:
    """Raise ValueError unless every text has the tokens that it had."""
    position = 0
    for batch in _tokenized(tokenizer, texts):
        for ids in batch:
            if ids != [kept[index] for index in before[position]]:
                raise UserError(f"vocabulary: the pruned tokenizer would split {texts[position][:80]!r} differently")
            position += 1


@torch.no_grad()
def _pruned_model(model: PreTrainedModel, rows: Mapping[str, tuple], kept: Mapping[int, int]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    base = config.base_config if isinstance(model, ElasticPreTrainedModel) else config
    _renumber(base, kept)
    base.vocab_size = len(kept)
    smaller = type(model)(config)
    order = {AXIS: np.array(list(kept))}
    full = {AXIS: model.config.vocab_size}
    weights = {
        name: permute(tensor, rows[name], full, order) if name in rows else tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    smaller.to(device=model.device, dtype=model.dtype)
    smaller.load_state_dict(weights)
    smaller.tie_weights()
    if model.can_generate():
        generation = copy.deepcopy(model.generation_config)
        _renumber(generation, kept)
        smaller.generation_config = generation
    return smaller.train(model.training)
