"""A tokenizer that fills batches up, and as files that transformers 4.57 and 5.x both read."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SETTINGS = "tokenizer_config.json"
# Class of transformers 5 -> what 4.57 calls it; transformers 5 knows the old name as well.
OLD_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def set_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Give a model and its tokenizer the end of text as padding where they have none, as GPT-2 and Llama; it is said in one line.

    A head for sequences looks for the last token that is no padding, so without one it takes no batch.

    Args:
        config: the model's; gets `pad_token_id`.
        tokenizer: the model's, if it has one; gets `pad_token`: that of the config if it is special, else the end of text.
    """
    lacks = tokenizer is not None and tokenizer.pad_token is None
    if lacks:
        is_token = config.pad_token_id in tokenizer.all_special_ids
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id) if is_token else tokenizer.eos_token
    if not lacks and config.pad_token_id is not None:
        return
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    found = ends[0] if tokenizer is None else tokenizer.pad_token_id
    if found is not None:
        config.pad_token_id = found
        logger.warning("padding: model and tokenizer have no common pad token, so batches are padded with token %d", found)


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
