"""Greedy decoding of an exported graph in onnxruntime, in either major of transformers, with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..core.errors import UserError
from ..graphs.cache import PAST, PRESENT
from ..utils.options import check_integers


def token_positions(mask: np.ndarray) -> np.ndarray:
    """Position of each token in its row `int64[batch, sequence]`, padding not counted, as `generate` of transformers has it."""
    return np.maximum(np.cumsum(mask, axis=-1) - 1, 0)


def first_inputs(names: Iterable[str], shapes: Mapping[str, list], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a graph takes beyond `given` before it has seen anything: an empty cache, and positions counted from the mask.

    Args:
        names: the graph's inputs.
        shapes: name -> shape of the graph's inputs and outputs, with names where an axis is open.
        given: inputs by name.
    """
    batch, length = given["input_ids"].shape[:2]
    extra = {}
    for name in names:
        if name.startswith(f"{PAST}.") and name not in given:
            _, heads, _, head_size = shapes[name.replace(PAST, PRESENT, 1)]
            extra[name] = np.zeros((batch, heads, 0, head_size), np.float32)
        elif name == "position_ids" and name not in given:
            extra[name] = token_positions(np.asarray(given["attention_mask"]))[..., -length:]
    return extra


@dataclass(frozen=True)
class Decoded:
    """What greedy decoding gave.

    Attributes:
        tokens: `int64[batch, new]`.
        logits: `float32[batch, new, vocabulary]`, what each token was chosen from.
    """

    tokens: np.ndarray
    logits: np.ndarray


def decode_greedily(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    max_new_tokens: int,
    eos_token_id: int | None = None,
) -> Decoded:
    """Generate the most likely token again and again, each step with the cache of the last.

    Args:
        run: a graph such as `OnnxRunner`, from inputs to outputs by name.
        input_ids: `int64[batch, sequence]`, padded on the left.
        attention_mask: the same shape.
        max_new_tokens: how many to generate.
        eos_token_id: stop when every row has had it; None goes on to the end.

    Raises:
        ValueError: `max_new_tokens` is below 1, or the graph returns no cache.
    """
    check_integers(1, max_new_tokens=max_new_tokens)
    ids, mask = np.asarray(input_ids), np.asarray(attention_mask)
    feed, tokens, logits = {"input_ids": ids, "attention_mask": mask}, [], []
    done = np.zeros(len(ids), bool)
    for _ in range(max_new_tokens):
        outputs = run(feed)
        cache = {name.replace(PRESENT, PAST, 1): value for name, value in outputs.items() if name.startswith(f"{PRESENT}.")}
        if not cache:
            raise UserError(f"the graph returns no cache, only {', '.join(outputs)}: export it as format onnx")
        logits.append(outputs["logits"][:, -1])
        tokens.append(logits[-1].argmax(-1))
        done |= tokens[-1] == eos_token_id
        if done.all():
            break
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        feed = {"input_ids": tokens[-1][:, None], "attention_mask": mask, **cache}
    return Decoded(np.stack(tokens, 1), np.stack(logits, 1))


def pad_left(input_ids: np.ndarray, attention_mask: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Move the padding of a batch to the left, where generation needs it, and keep the first `longest` tokens at most."""
    rows = [ids[kept.astype(bool)][:longest] for ids, kept in zip(input_ids, attention_mask)]
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), input_ids.dtype)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        if len(tokens):
            ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, 1
    return ids, mask
