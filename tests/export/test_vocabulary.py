"""Vocabulary pruning: every kind of tokenizer, every backbone, outputs bit for bit."""

import gzip
import json

import numpy as np
import pytest
import torch
from tiny import ENCODERS, STOCK, backbones, config_of, randomize, space_of
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticForSequenceClassification
from hf_elastic.cli.main import main
from hf_elastic.export.vocabulary.corpus import read_texts
from hf_elastic.export.vocabulary.pruning import prune_vocabulary

ALL = [
    "the quick brown fox jumps over the lazy dog again and again",
    "pack my box with five dozen liquor jugs, quickly",
    "unhappiness, happiness and unhappily: the words of happy people",
    "how vexingly quick daft zebras jump over foxes",
] * 3
KEPT = ["the happy fox jumps over the dog", "quick words, happily"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(ALL, trainers.WordPieceTrainer(vocab_size=140, special_tokens=["[unused]", *SPECIAL]))
    return with_frame(tokenizer)


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ALL, trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return with_frame(tokenizer)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(ALL, trainer)
    return with_frame(tokenizer)


def with_frame(tokenizer):
    """[CLS] text [SEP], and an added token behind the vocabulary."""
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)
    fast.add_tokens(["<extra>"])
    return fast


KINDS = {"WordPiece": word_piece, "BPE": byte_level, "Unigram": unigram}


def model_for(tokenizer, model_type="bert"):
    auto = AutoModelForMaskedLM if model_type in ENCODERS else AutoModelForCausalLM
    elastic_class = ElasticForMaskedLM if model_type in ENCODERS else ElasticForCausalLM
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    # Some rows more than the tokenizer has, as published checkpoints pad theirs.
    stock = randomize(auto.from_config(config_of(model_type, **ids, vocab_size=len(tokenizer) + 7)))
    return elastic_class.from_base(stock, space=space_of(model_type))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_and_outputs_stay(kind):
    tokenizer = KINDS[kind]()
    model = model_for(tokenizer)
    smaller, pruned, report = prune_vocabulary(model, tokenizer, KEPT)
    kept = report["kept_ids"]
    assert kept == sorted(kept) and len(kept) == report["vocabulary_after"] == len(pruned) == smaller.config.vocab_size
    assert report["vocabulary_after"] < len(tokenizer)
    assert report["parameters_saved"] == model.num_parameters_of(None) - smaller.num_parameters_of(None) > 0
    # Covered, though it is not in the corpus.
    texts = [*KEPT, "the dog jumps over the happy fox", "the happy dog <extra>"]
    old, new = (t(texts, padding=True, return_tensors="pt") for t in (tokenizer, pruned))
    assert torch.equal(torch.tensor(kept)[new["input_ids"]], old["input_ids"])
    assert [pruned.decode(ids) for ids in new["input_ids"]] == [tokenizer.decode(ids) for ids in old["input_ids"]]
    for subnet in (None, {"num_hidden_layers": 2}, {"num_hidden_layers": 2, "intermediate_size": [7, 33]}):
        before = model.view(subnet)(input_ids=old["input_ids"], attention_mask=old["attention_mask"]).logits
        after = smaller.view(subnet)(input_ids=new["input_ids"], attention_mask=new["attention_mask"]).logits
        assert torch.equal(after, before[..., kept])


@pytest.mark.parametrize("kind", KINDS)
def test_other_text_still_has_tokens(kind):
    tokenizer = KINDS[kind]()
    _, pruned, _ = prune_vocabulary(model_for(tokenizer), tokenizer, KEPT)
    text = "zebras liquor vexingly 東"
    assert len(pruned(text)["input_ids"]) >= len(tokenizer(text)["input_ids"])
    assert pruned.tokenize("fox") == tokenizer.tokenize("fox")
    if kind == "BPE":
        assert pruned.decode(pruned(text)["input_ids"], skip_special_tokens=True) == text
        merges = json.loads(pruned.backend_tokenizer.to_str())["model"]["merges"]
        assert 0 < len(merges) < len(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])


def test_an_adaptive_vocabulary_is_refused():
    tokenizer = word_piece()
    with pytest.raises(ValueError, match="vocabulary: transformer_xl has no single table of tokens"):
        prune_vocabulary(model_for(tokenizer, "transformer_xl"), tokenizer, KEPT)


@pytest.mark.parametrize("model_type", backbones(STOCK))
@torch.no_grad()
def test_every_backbone(model_type):
    tokenizer = word_piece()
    model = model_for(tokenizer, model_type)
    model.select(None)
    smaller, pruned, report = prune_vocabulary(model, tokenizer, KEPT)
    old, new = (t(KEPT, padding=True, return_tensors="pt") for t in (tokenizer, pruned))
    before, after = (
        m(input_ids=i["input_ids"], attention_mask=i["attention_mask"]).logits for m, i in ((model, old), (smaller, new))
    )
    rows = old["attention_mask"].bool()
    assert torch.allclose(after[rows], before[rows][:, report["kept_ids"]], atol=1e-6, rtol=0)
    base = smaller.config.base_config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        old_id = getattr(model.config, name)
        assert getattr(base, name) == (None if old_id is None else report["kept_ids"].index(old_id))
    if model_type not in ENCODERS:
        assert smaller.generation_config.eos_token_id == pruned.sep_token_id
    assert len(model.space) == len(smaller.space)


def test_a_frozen_size_and_a_stock_model():
    tokenizer = word_piece()
    model = model_for(tokenizer)
    frozen = model.extract({"num_hidden_layers": 2, "intermediate_size": [7, 33]})
    stock = model.extract({"num_hidden_layers": 2})
    for one in (frozen, stock):
        smaller, pruned, report = prune_vocabulary(one, tokenizer, KEPT)
        assert type(smaller) is type(one) and smaller.config.vocab_size == len(pruned) == report["vocabulary_after"]


def test_export(tmp_path, capsys):
    """Pruned, then exported like any: the same size, which plain transformers loads."""
    tokenizer = word_piece()
    model = model_for(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    corpus = tmp_path / "corpus.txt.gz"
    corpus.write_bytes(gzip.compress("\n\n".join(KEPT).encode()))
    options = ["--model", str(tmp_path / "model"), "--subnet", '{"num_hidden_layers": 2}', "--output_dir", str(tmp_path / "out")]
    assert main(["export", *options, "--keep_vocabulary_of", str(corpus)]) == 0
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    pruned = AutoTokenizer.from_pretrained(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    assert again.config.vocab_size == len(pruned) == report["vocabulary_after"] < len(tokenizer)
    assert report["max_abs_difference"] == 0.0 and report["corpus_tokens_unchanged"] == 1.0
    assert again.config.pad_token_id == pruned.pad_token_id
    assert pruned("the happy fox").input_ids == [report["kept_ids"].index(i) for i in tokenizer("the happy fox").input_ids]
    printed = capsys.readouterr().out
    assert f"vocabulary: {len(tokenizer) + 7:,} -> {len(pruned):,} tokens" in printed and "100% of" in printed


def test_a_loss_of_accuracy_counts_from_before_pruning(tmp_path, capsys):
    """Rows are tokenized again with what is left."""
    tokenizer = word_piece()
    stock = AutoModelForSequenceClassification.from_config(config_of("bert", vocab_size=len(tokenizer), num_labels=2))
    model = ElasticForSequenceClassification.from_base(randomize(stock), space=space_of("bert"))
    texts = [*ALL[:4], *KEPT]
    with torch.no_grad():  # so that not all of them are of one class
        logits = torch.cat([model.view(None)(**tokenizer([text], return_tensors="pt")).logits for text in texts])
        model.base.classifier.bias -= logits.mean(0)
        right = (logits - logits.mean(0)).argmax(-1).tolist()
    assert len(set(right)) > 1
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("\n".join(KEPT))
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = [{"text": text, "label": label} for text, label in zip(texts, right)]
        (tmp_path / "data" / f"{split}.json").write_text("\n".join(map(json.dumps, rows)))
    options = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    assert main(["export", *options, "--keep_vocabulary_of", str(tmp_path / "corpus.txt")]) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "parity.json").read_text())["held_out"]
    pruned = AutoTokenizer.from_pretrained(tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    found = [int(again(**pruned([text], return_tensors="pt")).logits.argmax()) for text in texts]
    assert record["view"]["accuracy"] == 1.0
    assert record["file"]["accuracy"] == pytest.approx(np.mean(np.equal(found, right)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no file .*none.txt"),
        ("empty.txt", b" \n\n", "holds no text"),
        ("binary.txt", b"\x80\xff\x00", "not a UTF-8 text file"),
        ("zeros.txt", b"a\0b", "binary file"),
        ("plain.txt.gz", b"not gzipped", "not a UTF-8 text file"),
    ],
)
def test_bad_corpora(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"keep_vocabulary_of: .*{message}"):
        read_texts("keep_vocabulary_of", tmp_path / name)


def test_bad_input():
    tokenizer = word_piece()
    model = model_for(tokenizer)
    with pytest.raises(ValueError, match="no texts"):
        prune_vocabulary(model, tokenizer, [])

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"Slow has no tokenizer\.json"):
        prune_vocabulary(model, Slow(), KEPT)
    small = ElasticForMaskedLM.from_base(AutoModelForMaskedLM.from_config(config_of("bert", vocab_size=20)))
    with pytest.raises(ValueError, match=r"has the id \d+, but the model only 20 tokens"):
        prune_vocabulary(small, tokenizer, KEPT)


@pytest.mark.slow
@torch.no_grad()
def test_minilm():
    """The real model on docstrings; held-out ones that the kept vocabulary covers come out the same."""
    from hf_elastic import ElasticModel
    from hf_elastic.data import minilm_path
    from hf_elastic.data.docstrings import build_docstrings

    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    model = ElasticModel.from_base(minilm_path(), space={"num_hidden_layers": [3, 6]})
    splits = build_docstrings()
    smaller, pruned, report = prune_vocabulary(model, tokenizer, list(splits["train"]["text"]))
    assert report["vocabulary_after"] < 30522 / 4 and report["megabytes_saved"] > 30
    kept = set(report["kept_ids"])
    covered = [text for text in splits["test"]["text"] if kept.issuperset(tokenizer(text)["input_ids"])][:32]
    assert len(covered) == 32
    options = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    old, new = tokenizer(covered, **options), pruned(covered, **options)
    for subnet in (None, {"num_hidden_layers": 3}):
        assert torch.equal(model.view(subnet)(**old).last_hidden_state, smaller.view(subnet)(**new).last_hidden_state)
