"""Texts as tokens: what a request is scheduled by, and what a batch is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from ..core.errors import UserError

DIRECTIONS = ("right", "left")
Text = str | tuple[str, str] | Sequence[int]


class InputError(UserError):
    """Texts or options of a kind that is allowed, and too many, too long, or none that this model has."""


class EmptyError(UserError):
    """No text, or an empty one.

    Args:
        name: of the field.
    """

    def __init__(self, name: str):
        super().__init__(f"`{name}` cannot be empty")


class TokenizerError(UserError):
    """What the tokenizer has no tokens or no text for."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text, or a pair of them, as a model reads it.

    Attributes:
        ids: of its tokens, special ones included.
        types: 0 or 1 for each; which text of a pair it belongs to.
        prompt_length: tokens at its beginning that are the prompt's.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    prompt_length: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class TextEncoder:
    """The tokenizer of a model for any number of threads: nothing in it changes.

    transformers' own sets padding and truncation in the tokenizer at each call, so two threads must not share one.

    Args:
        tokenizer: of the model.
        max_length: the most tokens that the model takes.

    Raises:
        UserError: it is not one of the library `tokenizers`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UserError(f"tokenizer: {type(tokenizer).__name__} has no tokenizer.json, which serving needs")
        self.max_length = max_length
        self.pad_id, self.pad_type = tokenizer.pad_token_id or 0, tokenizer.pad_token_type_id
        self.padding_side = tokenizer.padding_side
        self.takes_types = "token_type_ids" in tokenizer.model_input_names
        self.vocabulary_size = len(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)
        self._text = backend.to_str()
        self._whole = self._make()

    def _make(self, direction: str | None = None) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self._text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if direction is not None:
            tokenizer.enable_truncation(self.max_length, strategy="longest_first", direction=direction)
        return tokenizer

    @cached_property
    def _right(self) -> Tokenizer:
        return self._make("right")

    @cached_property
    def _left(self) -> Tokenizer:
        return self._make("left")

    def encode(
        self, texts: Sequence[Text], *, prompt: str = "", truncate: bool = False, direction: str = "right"
    ) -> list[Tokens]:
        """The tokens of texts, of pairs of texts, or of ids that were tokenized before.

        Args:
            texts: what to encode; ids are taken as they are.
            prompt: what to write before each text.
            truncate: cut what is too long.
            direction: "right" or "left", the side that is cut.

        Raises:
            InputError: a text is too long, and `truncate` is false.
            TokenizerError: an id that the model does not know, or a text without tokens.
        """
        tokenizer = self._whole if not truncate else self._right if direction == "right" else self._left
        written = [self._with_prompt(text, prompt) for text in texts if not _is_ids(text)]
        encodings = iter(tokenizer.encode_batch(written) if written else [])
        length = self._prompt_length(prompt) if prompt else 0
        found = []
        for text in texts:
            if _is_ids(text):
                tokens = self._of_ids(text, truncate, direction)
            else:
                encoding = next(encodings)
                tokens = Tokens(tuple(encoding.ids), tuple(encoding.type_ids), length)
            if not tokens.ids:
                raise TokenizerError("`inputs`: a text has no tokens")
            if len(tokens) > self.max_length:
                raise InputError(
                    f"`inputs` must have at most {self.max_length} tokens, given: {len(tokens)}; set truncate to cut them"
                )
            found.append(tokens)
        return found

    def _with_prompt(self, text: str | tuple[str, str], prompt: str) -> str | tuple[str, str]:
        return f"{prompt}{text}" if isinstance(text, str) else (f"{prompt}{text[0]}", text[1])

    def _of_ids(self, ids: Sequence[int], truncate: bool, direction: str) -> Tokens:
        if truncate:
            ids = ids[: self.max_length] if direction == "right" else ids[-self.max_length :]
        if not ids or min(ids) < 0 or max(ids) >= self.vocabulary_size:
            raise TokenizerError(f"`inputs`: token ids must be from 0 to {self.vocabulary_size - 1}, and one at least")
        return Tokens(tuple(ids), (0,) * len(ids))

    def _prompt_length(self, prompt: str) -> int:
        """As sentence-transformers counts it: without a special token at the end."""
        ids = self._whole.encode(prompt).ids
        return len(ids) - (bool(ids) and ids[-1] in self._special)

    def describe(self, text: str, *, prompt: str = "", special: bool = True) -> Encoding:
        """The tokens of a text with their places in it, of any length."""
        return self._whole.encode(f"{prompt}{text}", add_special_tokens=special)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids.

        Raises:
            TokenizerError: an id that the tokenizer does not know.
        """
        if any(not 0 <= one < self.vocabulary_size for one in ids):
            raise TokenizerError(f"`ids` must be from 0 to {self.vocabulary_size - 1}")
        return self._whole.decode(list(ids), skip_special_tokens=skip_special)

    def is_special(self, token: int) -> bool:
        """Whether an id is that of a special token."""
        return token in self._special

    def pad(self, rows: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        """Rows as one batch: `int64[batch, longest]` each of ids, mask, and types where the model reads them."""
        length = max(map(len, rows))

        def filled(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
            if self.padding_side == "left":
                return torch.tensor([[*[filler] * (length - len(row)), *row] for row in values])
            return torch.tensor([[*row, *[filler] * (length - len(row))] for row in values])

        features = {
            "input_ids": filled([row.ids for row in rows], self.pad_id),
            "attention_mask": filled([[1] * len(row) for row in rows], 0),
        }
        if self.takes_types:
            features["token_type_ids"] = filled([row.types for row in rows], self.pad_type)
        return features


def _is_ids(text: Text) -> bool:
    return not isinstance(text, str) and not (isinstance(text, tuple) and text and isinstance(text[0], str))
