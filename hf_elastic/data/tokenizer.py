"""A tokenizer for models trained from scratch."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from .loading import columns_of, load_text_dataset

END_OF_TEXT = "<|endoftext|>"


def train_byte_level_bpe(dataset: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train GPT-2's kind of tokenizer on the training text of a data set.

    Args:
        dataset: as for `load_text_dataset`; its text column is found by name.
        vocab_size: number of tokens, `<|endoftext|>` included.

    Returns:
        A tokenizer whose end-of-text token is also its padding.
    """
    from tokenizers import ByteLevelBPETokenizer

    rows = load_text_dataset(dataset)
    columns, _ = columns_of(rows, task="causal-lm")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(rows["train"][columns[0]], vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        # transformers 4.57 would add token_type_ids, to which GPT-2 gives the embedding of word 0.
        model_input_names=["input_ids", "attention_mask"],
    )
