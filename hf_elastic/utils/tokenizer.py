"""A tokenizer as files that transformers 4.57 and 5.x both read."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

SETTINGS = "tokenizer_config.json"
# Class of transformers 5 -> what 4.57 calls it; transformers 5 knows the old name as well.
OLD_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path | str, longest: int | None = None) -> None:
    """Like `tokenizer.save_pretrained`, for both major versions of transformers and for a model.

    Args:
        tokenizer: the tokenizer.
        directory: where to.
        longest: the most tokens that the model takes; `model_max_length` is not above it.
    """
    tokenizer.save_pretrained(directory)
    make_tokenizer_portable(directory, longest)


def make_tokenizer_portable(directory: Path | str, longest: int | None = None) -> None:
    """Mend the settings that `save_pretrained` has written to a folder; nothing is done where it holds no tokenizer."""
    path = Path(directory) / SETTINGS
    if not path.is_file():
        return
    values = json.loads(path.read_text(encoding="utf-8"))
    name = values.get("tokenizer_class")
    if name in OLD_TOKENIZER_CLASSES:
        values["tokenizer_class"] = OLD_TOKENIZER_CLASSES[name]
    if isinstance(values.get("extra_special_tokens"), list):  # a mapping in 4.57, which has another name for the list
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    if longest is not None:
        values["model_max_length"] = min(longest, values.get("model_max_length") or longest)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
