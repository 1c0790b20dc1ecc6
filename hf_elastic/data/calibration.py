"""Texts as model inputs, for what looks at activations and needs no labels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..utils.options import check_integers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


WORDS = 24  # of an embedded text


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | Sequence[str]] | None = None,
    *,
    max_length: int = 128,
    batch_size: int = 8,
) -> list[dict[str, torch.Tensor]]:
    """Texts as batches for `from_base(importance="activation", calibration=...)`.

    Args:
        tokenizer: the model's. Without a token for padding each text is a batch.
        texts: a few hundred, or pairs of texts; None takes those of `embedded_texts`. Blank ones are left out.
        max_length: tokens of a text; the rest is cut off.
        batch_size: texts in a batch, of about one length.

    Raises:
        UserError: no text, or a number below 1.
        FileNotFoundError: no texts are given, and this Python has no docstrings.
    """
    check_integers(1, max_length=max_length, batch_size=batch_size)
    texts = embedded_texts(tokenizer) if texts is None else texts
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if not (rows := [row for row in rows if all(text.strip() for text in row)]):
        raise UserError("calibration: there is no text")
    rows.sort(key=lambda row: sum(map(len, row)))
    step = batch_size if tokenizer.pad_token is not None else 1
    options = {"padding": step > 1, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    columns = (map(list, zip(*rows[start : start + step])) for start in range(0, len(rows), step))
    return [dict(tokenizer(*texts, **options)) for texts in columns]


def embedded_texts(tokenizer: PreTrainedTokenizerBase, count: int = 512) -> list[str]:
    """Texts for where none are given: half of them docstrings of Python's standard library, half random tokens.

    Docstrings are sentences, but of one subject; random tokens make use of what other subjects need.

    Args:
        tokenizer: whose tokens are drawn, with the seed 0.
        count: of texts.

    Raises:
        FileNotFoundError: this Python has no docstrings.
    """
    from .docstrings import sample_docstrings

    sentences = [" ".join(text.split()[:WORDS]) for text in sample_docstrings(count // 2)]
    draw = random.Random(0)
    drawn = ([draw.randrange(tokenizer.vocab_size) for _ in range(WORDS // 2)] for _ in range(count // 2))
    return [*sentences, *(tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn)]


def training_texts(name: str, count: int) -> list[tuple[str, ...]]:
    """Texts of a data set's training rows, whatever its labels: one or two of each row, none of them blank.

    Args:
        name: as for `load_text_dataset`.
        count: of rows at most, drawn with the seed 0.

    Raises:
        UserError: there is no text column, or no text; or as `load_text_dataset`.
    """
    from .loading import load_text_dataset, text_columns_of

    dataset = load_text_dataset(name)
    columns = text_columns_of(dataset)
    rows = zip(*(dataset["train"].shuffle(seed=0)[column] for column in columns))
    texts = [row for row in rows if all(text and text.strip() for text in row)]
    if not texts:
        raise UserError(f"{name}: there is no text in {' and '.join(columns)}")
    return texts[:count]
