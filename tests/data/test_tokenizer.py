"""Texts as model input, with a real tokenizer, and tokenizers that are trained here."""

import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from hf_elastic.core.errors import UserError
from hf_elastic.data import tokenize_classification, tokenize_language_modeling
from hf_elastic.data.task import prepare
from hf_elastic.data.tokenizer import train_byte_level_bpe


@pytest.fixture(scope="module")
def tokenizer():
    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator([f"sentence number {i}" for i in range(20)], trainers.WordLevelTrainer(special_tokens=specials))
    raw.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def of(**splits):
    return DatasetDict({split: Dataset.from_dict(columns) for split, columns in splits.items()})


@pytest.mark.parametrize("label", ["label", "labels"])
def test_tokenize_classification(tokenizer, label):
    dataset = of(train={"a": ["sentence number 3", "number"], "b": ["4", "5 6 7 8"], label: [1, 0]})
    single = tokenize_classification(dataset, tokenizer, ["a"], label, 4)["train"]
    assert set(single.column_names) == {*tokenizer("x"), "labels"}
    assert [len(ids) for ids in single["input_ids"]] == [4, 3]
    assert single["labels"][:] == [1, 0]
    pair = tokenize_classification(dataset, tokenizer, ["a", "b"], label, 32)["train"]
    assert pair["input_ids"][0] == tokenizer("sentence number 3", "4")["input_ids"]


def test_tokenize_language_modeling(tokenizer):
    texts = [f"sentence number {i}" for i in range(7)]
    blocks = tokenize_language_modeling(of(train={"text": [*texts, ""]}), tokenizer, "text", 4)["train"]
    ids = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    assert [token for block in blocks["input_ids"] for token in block] == ids[:20]
    assert blocks["labels"][:] == blocks["input_ids"][:]
    assert blocks["attention_mask"][:] == [[1] * 4] * 5


def test_tokenize_bad_input(tokenizer):
    dataset = of(train={"text": ["a", None], "label": [0, 1]})
    with pytest.raises(ValueError, match="split 'train', row 1: no text in column 'text'"):
        tokenize_classification(dataset, tokenizer, ["text"], "label", 8)
    with pytest.raises(ValueError, match="split 'train', row 1: no text in column 'text'"):
        tokenize_language_modeling(dataset, tokenizer, "text", 8)
    with pytest.raises(ValueError, match="max_length must be an integer of at least 1, got 0"):
        tokenize_classification(dataset, tokenizer, ["text"], "label", 0)
    with pytest.raises(ValueError, match="block_size=1"):
        tokenize_language_modeling(dataset, tokenizer, "text", 1)
    with pytest.raises(ValueError, match="split 'train': 2 tokens are less than one block of block_size=8"):
        tokenize_language_modeling(of(train={"text": ["sentence number"]}), tokenizer, "text", 8)
    with pytest.raises(ValueError, match="split 'dev': 0 tokens"):
        tokenize_language_modeling(of(dev={"text": []}), tokenizer, "text", 8)


@pytest.mark.parametrize(("task", "missing"), [("sequence-classification", "pad_token"), ("masked-lm", "mask_token")])
def test_a_task_that_the_tokenizer_cannot_do(task, missing):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(unk_token="[UNK]")))
    with pytest.raises(UserError, match=f"the tokenizer has no {missing}, which {task} needs"):
        prepare(task, "unused", bare, config=BertConfig(), longest=8)


def test_a_trained_tokenizer_asks_for_no_token_types(tmp_path):
    """GPT-2 would add the embedding of word 0 for each, and an exported graph would want them."""
    (tmp_path / "train.txt").write_text("a few words of text\n" * 50)
    train_byte_level_bpe(str(tmp_path), vocab_size=300).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert list(tokenizer("a few words")) == ["input_ids", "attention_mask"]
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
