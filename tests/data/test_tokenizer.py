"""Tokenizers that are trained here."""

from transformers import AutoTokenizer

from hf_elastic.data.tokenizer import train_byte_level_bpe


def test_a_trained_tokenizer_asks_for_no_token_types(tmp_path):
    """GPT-2 would add the embedding of word 0 for each, and an exported graph would want them."""
    (tmp_path / "train.txt").write_text("a few words of text\n" * 50)
    train_byte_level_bpe(str(tmp_path), vocab_size=300).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert list(tokenizer("a few words")) == ["input_ids", "attention_mask"]
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
