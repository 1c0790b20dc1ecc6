"""Pipelines and Trainer take an elastic model as they take a stock one."""

import pytest
import torch
from datasets import Dataset
from elastic_heads import TOLERANCE, causal_lm, classifier, masked_lm
from tiny import VOCAB
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

WORDS = [f"w{i}" for i in range(VOCAB - 5)]


@pytest.fixture
def tokenizer(tmp_path):
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    vocabulary = {token: index for index, token in enumerate([*specials.values(), *WORDS])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), model_max_length=64, **specials)


@pytest.mark.parametrize("subnet", [None, "small"])
def test_text_classification_pipeline(subnet, tokenizer):
    model = classifier(id2label={0: "no", 1: "yes", 2: "perhaps"})
    model.select(subnet)
    scores = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(["w3 w4", "w5"])
    assert {score["label"] for score in scores[0]} == {"no", "yes", "perhaps"}
    with torch.no_grad():
        expected = model.view(subnet)(**tokenizer("w3 w4", return_tensors="pt")).logits.softmax(-1)[0]
    assert {s["label"]: s["score"] for s in scores[0]} == pytest.approx(
        {model.config.id2label[i]: value.item() for i, value in enumerate(expected)}, abs=TOLERANCE
    )


def test_fill_mask_pipeline(tokenizer):
    model = masked_lm()
    model.select("small")
    found = pipeline("fill-mask", model=model, tokenizer=tokenizer)("w3 [MASK] w5")
    with torch.no_grad():
        logits = model.view("small")(**tokenizer("w3 [MASK] w5", return_tensors="pt")).logits[0, 1]
    assert found[0]["token"] == logits.argmax().item()


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_text_generation_pipeline(model_type, tmp_path):
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "<s>", "</s>", "[UNK]", "[X]", *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", bos_token="<s>", eos_token="</s>")
    model = causal_lm(model_type)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, subnet="small")
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 5, "do_sample": False}
    texts = generator(["w3 w4 w5", "w9"], batch_size=1, return_tensors=True, **options)
    for prompt, found in zip(["w3 w4 w5", "w9"], texts):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        assert found[0]["generated_token_ids"] == model.extract("small").generate(**inputs, **options)[0].tolist()


@pytest.mark.parametrize("subnet", [None, "small"])
def test_trainer(subnet, tmp_path):
    model = classifier()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.select(subnet)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, (16, 6), generator=generator)
    columns = {"input_ids": ids.tolist(), "labels": (ids[:, 0] % 3).tolist(), "text": ["a"] * 16, "score": [0.5] * 16}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=4, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="epoch", save_total_limit=1, eval_strategy="epoch",
    )  # fmt: skip
    data = Dataset.from_dict(columns)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    untrained = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < untrained
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any(".layer.0." in name for name in changed)
    assert any(".layer.3." in name for name in changed) == (subnet is None)
    trainer.save_model(str(tmp_path / "best"))
    model.eval()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "best")
    assert again.config.subnet == subnet
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
