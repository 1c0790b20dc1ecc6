"""The tokenizer of a conversion, and the data that its ranking looks at; `config` is a `ConvertConfig`."""

from __future__ import annotations

import copy

from ..core.errors import UserError
from .data import located


def load_tokenizer(config, vocab_size: int):
    """The tokenizer that a conversion asks for, trained here where it says so; None where it is to have none."""
    from transformers import AutoTokenizer

    if config.tokenizer_dataset is not None:
        from ..data.tokenizer import train_byte_level_bpe

        return train_byte_level_bpe(located(config.tokenizer_dataset, config.data_dir), vocab_size)
    if config.tokenizer is None and config.model is None:
        raise UserError("a model from scratch needs tokenizer (none, to search only) or tokenizer_dataset")
    if config.tokenizer == "none":
        return None
    return AutoTokenizer.from_pretrained(config.tokenizer or config.checkpoint)


def calibration(config, base_config, tokenizer) -> list[dict] | None:
    """Batches of model inputs for the rankings that look at data, and a line that says of which; None where none do."""
    if not config.uses_data:
        return None
    import torch
    from transformers import AutoModel

    from ..utils.lengths import longest_sequence

    tokenizer = copy.deepcopy(tokenizer)  # calls leave padding and truncation behind, which are saved along
    with torch.device("meta"):
        longest = longest_sequence(AutoModel.from_config(base_config))
    # Classifiers that read the last token refuse several rows where the config has no token for padding.
    takes_batches = getattr(base_config, "pad_token_id", None) is not None
    if config.importance == "taylor":
        return _labelled(config, base_config, tokenizer, longest, 32 if takes_batches else 1)
    from ..data.calibration import calibration_batches, training_texts

    source, texts = config.calibration or config.dataset, None
    if source is not None:
        texts = training_texts(located(source, config.data_dir), config.calibration_rows)
    size = 8 if takes_batches else 1
    batches = calibration_batches(tokenizer, texts, max_length=min(config.max_length, longest), batch_size=size)
    number = sum(len(batch["input_ids"]) for batch in batches)
    print(f"ranked on {number} texts of {source or 'our own: docstrings and random tokens'}")
    if config.task == "multiple-choice":
        return [{key: value.unsqueeze(1) for key, value in batch.items()} for batch in batches]  # one choice
    return batches


def _labelled(config, base_config, tokenizer, longest: int, batch_size: int) -> list[dict]:
    """Batches of the training data, with labels."""
    from torch.utils.data import DataLoader

    from ..data.task import prepare

    data = prepare(
        config.task,
        located(config.dataset, config.data_dir),
        tokenizer,
        config=base_config,
        longest=longest,
        max_length=config.max_length,
        max_train_rows=config.calibration_rows,
    )
    return [dict(batch) for batch in DataLoader(data.splits["train"], batch_size=batch_size, collate_fn=data.collator)]
