"""A smaller tokenizer that splits a corpus exactly as before: which tokens it needs, and its `tokenizer.json`.

Works on the JSON of the `tokenizers` library, for the kinds of model that it knows (WordPiece, BPE, Unigram, WordLevel). Why
nothing changes on the corpus:

- WordPiece takes the longest piece that fits, and the longest one that was taken is still there.
- BPE merges the pair of the lowest rank. A token that is kept brings along the parts of every merge that makes it, down to
  characters, and every merge between kept tokens stays in its order: what was merged before is merged now, nothing else.
- Unigram takes the best path, all of whose pieces are kept. The worst piece is kept as well: the price of an unknown
  character is measured from it.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from ...core.errors import UserError

BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def vocabulary_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the `model` part of a `tokenizer.json`."""
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def needed_tokens(data: Mapping[str, Any], used: Iterable[str]) -> set[str]:
    """Tokens of the model that a pruned tokenizer has to have.

    Args:
        data: a whole `tokenizer.json`.
        used: tokens that the corpus was split into.

    Raises:
        ValueError: a kind of model that is not known.
    """
    model = data["model"]
    vocabulary = vocabulary_of(model)
    needed = {token for token in used if token in vocabulary}
    needed |= {token["content"] for token in data["added_tokens"]} & vocabulary.keys()
    needed |= _fallback(model, needed) & vocabulary.keys()
    if model["type"] == "Unigram":
        needed.add(min(model["vocab"], key=lambda entry: entry[1])[0])
        if model.get("unk_id") is not None:
            needed.add(model["vocab"][model["unk_id"]][0])
    elif model["type"] == "BPE":
        needed = _closed_under_parts(model, needed)
    elif model["type"] not in ("WordPiece", "WordLevel"):
        raise UserError(f"vocabulary: a tokenizer of the kind {model['type']!r} cannot be pruned")
    return needed


def _fallback(model: Mapping[str, Any], needed: set[str]) -> set[str]:
    """What other text falls back on: the unknown token, bytes, and the characters that were seen or are ASCII."""
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    characters = set(string.printable).union(*needed) | set(ByteLevel.alphabet())
    pieces = characters | BYTES | {model.get("unk_token") or ""}
    return pieces | {prefix + character for character in characters} | {character + suffix for character in characters}


def merge_pairs(model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(left, right, result) of each merge of a BPE model; older files have "left right" in one string."""
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    return [(left, right, left + (right.removeprefix(prefix) if prefix else right)) for left, right in pairs]


def _closed_under_parts(model: Mapping[str, Any], needed: set[str]) -> set[str]:
    parts = defaultdict(set)
    for left, right, result in merge_pairs(model):
        parts[result] |= {left, right}
    closed, pending = set(), list(needed)
    while pending:
        token = pending.pop()
        if token not in closed:
            closed.add(token)
            pending.extend(parts.get(token, ()))
    return closed


def pruned_json(data: dict, kept: Mapping[int, int]) -> dict:
    """The `tokenizer.json` with the kept tokens under their new ids (changes `data`).

    Args:
        data: the whole file.
        kept: old id -> new id, in the same order.
    """
    model = data["model"]
    vocabulary = vocabulary_of(model)
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in kept]
        model["unk_id"] = None if unknown is None else kept[unknown]
    else:
        model["vocab"] = {token: kept[index] for token, index in vocabulary.items() if index in kept}
    if model["type"] == "BPE":
        left = model["vocab"]
        triples = zip(model["merges"], merge_pairs(model))
        model["merges"] = [merge for merge, triple in triples if all(token in left for token in triple)]
    for token in data["added_tokens"]:
        token["id"] = kept[token["id"]]
    if data.get("padding"):
        data["padding"]["pad_id"] = kept[data["padding"]["pad_id"]]
    _renumber_processor(data.get("post_processor"), kept)
    return data


def _renumber_processor(processor: dict | None, kept: Mapping[int, int]) -> None:
    """New ids for the special tokens that a post-processor adds."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        _renumber_processor(inner, kept)
    for key in ("sep", "cls"):
        if isinstance(processor.get(key), list):
            processor[key] = [processor[key][0], kept[processor[key][1]]]
    special = processor.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        token["ids"] = [kept[index] for index in token["ids"]]
