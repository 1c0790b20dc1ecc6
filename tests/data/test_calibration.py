"""Texts as model inputs."""

import pytest
import torch
from tiny import WORDS, save_tokenizer

from hf_elastic.data import calibration_batches
from hf_elastic.data.calibration import embedded_texts, training_texts
from hf_elastic.data.docstrings import sample_docstrings


@pytest.fixture
def tokenizer(tmp_path):
    return save_tokenizer(tmp_path / "tokenizer")


def test_texts_become_batches_of_about_one_length(tokenizer):
    texts = [" ".join(WORDS[:count]) for count in (9, 1, 2, 30, 1)]
    batches = calibration_batches(tokenizer, texts, max_length=12, batch_size=2)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 3), (2, 11), (1, 12)]
    assert [batch["attention_mask"].sum(1).tolist() for batch in batches] == [[3, 3], [4, 11], [12]]
    assert all("labels" not in batch for batch in batches)


def test_without_a_padding_token_each_text_is_a_batch(tokenizer):
    expected = calibration_batches(tokenizer, WORDS[:3], batch_size=3)[0]["input_ids"]
    tokenizer.pad_token = None
    batches = calibration_batches(tokenizer, WORDS[:3])
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), expected)
    assert len(batches) == 3


def test_pairs(tokenizer):
    (batch,) = calibration_batches(tokenizer, [(WORDS[0], WORDS[1]), (WORDS[2], WORDS[3])])
    assert batch["input_ids"].shape == (2, 5) and batch["token_type_ids"].sum(1).tolist() == [2, 2]


def test_embedded_texts(tokenizer):
    texts = embedded_texts(tokenizer)
    assert len(texts) == 512 and texts == embedded_texts(tokenizer)
    assert max(len(text.split()) for text in texts) == 24
    words = set(" ".join(texts[256:]).split())
    assert set(WORDS) <= words and not words & {"[PAD]", "[CLS]"}
    batches = calibration_batches(tokenizer, max_length=16, batch_size=200)
    assert [len(batch["input_ids"]) for batch in batches] == [200, 200, 112]


def test_no_text(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no docstrings"):
        sample_docstrings(stdlib=tmp_path)
    with pytest.raises(ValueError, match="there is no text"):
        calibration_batches(tokenizer, [])
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        calibration_batches(tokenizer, WORDS, batch_size=0)
    (tmp_path / "blank.txt").write_text("\n \n\n")
    with pytest.raises(ValueError, match=r"blank\.txt: there is no text in text"):
        training_texts(str(tmp_path / "blank.txt"), 3)
    (tmp_path / "numbers.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    with pytest.raises(ValueError, match="text column 'text' must hold strings"):
        training_texts(str(tmp_path / "numbers.jsonl"), 3)


def test_training_texts_are_drawn_and_need_no_labels(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"{word}\n" for word in WORDS))
    texts = training_texts(str(path), 10)
    assert len(texts) == len(set(texts)) == 10 and texts == training_texts(str(path), 10)
    assert {text.strip() for (text,) in texts} <= set(WORDS)
    assert texts != [(f"{word}\n",) for word in WORDS[:10]]
