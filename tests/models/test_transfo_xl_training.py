"""Trainer, evaluation with recurrence, and generation of Transformer-XL."""

import numpy as np
import pytest
import torch
import transformers
from transfo_xl_tiny import PER_LAYER, VOCAB, model_of, tokens
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_elastic.models.transfo_xl import TransformerXLForCausalLM, evaluate_perplexity


def counting(rows: int, length: int = 8) -> list[dict]:
    """Texts that count upwards: easy to learn."""
    return [{"input_ids": ids, "labels": ids} for row in range(rows) for ids in [[(row * 5 + i) % VOCAB for i in range(length)]]]


def arguments(path, **changes) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(path), use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, learning_rate=5e-3, seed=0,
        **{"max_steps": 12, "save_strategy": "no", "per_device_train_batch_size": 6, **changes},
    )  # fmt: skip


def test_trainer_lowers_the_loss_and_saves(tmp_path):
    model = model_of(**PER_LAYER, dropout=0.1)
    trainer = Trainer(
        model, arguments(tmp_path, gradient_checkpointing=True), train_dataset=counting(12), eval_dataset=counting(4)
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.8 * before
    trainer.save_model(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert type(loaded) is TransformerXLForCausalLM
    ids = torch.tensor([row["input_ids"] for row in counting(4)])
    assert loaded(ids, labels=ids).loss.item() == pytest.approx(after, rel=1e-4)


def test_trainer_computes_metrics_without_the_memory(tmp_path):
    model = model_of(return_logits=True)

    def accuracy(prediction):
        assert prediction.predictions.shape == (5, 8, VOCAB)
        return {"accuracy": float(np.mean(prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]))}

    trainer = Trainer(
        model, arguments(tmp_path, per_device_eval_batch_size=3), eval_dataset=counting(5), compute_metrics=accuracy
    )
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    ids = torch.tensor([row["input_ids"] for row in counting(5)])
    assert metrics["eval_loss"] == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-4)


def test_label_smoothing_shifts_the_labels(tmp_path):
    model, ids = model_of(), tokens()
    trainer = Trainer(model, arguments(tmp_path, label_smoothing_factor=0.2))
    log_probabilities = model(ids).logits[:, :-1]
    picked = log_probabilities.gather(-1, ids[:, 1:, None])
    expected = -(0.8 * picked.mean() + 0.2 * log_probabilities.mean())
    torch.testing.assert_close(trainer.compute_loss(model, {"input_ids": ids, "labels": ids}), expected)


@pytest.mark.skipif(transformers.__version__ < "5", reason="Trainer of 4.57 counts labels that are not predicted")
def test_accumulated_gradients_are_one_batch(tmp_path):
    data = [{"input_ids": row["input_ids"], "labels": row["labels"][:1] + [-100] * cut + row["labels"][1 + cut :]}
            for cut, row in enumerate(counting(4))]  # fmt: skip

    def trained(**changes):
        model = model_of()
        Trainer(model, arguments(tmp_path, max_steps=1, optim="sgd", **changes), train_dataset=data).train()
        return model.state_dict()

    one = trained(per_device_train_batch_size=4)
    parts = trained(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for name, tensor in one.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("changes", [{}, PER_LAYER, {"div_val": 1}, {"div_val": 4, "d_embed": 64}])
def test_evaluation_with_whole_memory_is_one_pass(changes):
    model, text = model_of(mem_len=64, **changes), tokens(1, 50)[0]
    whole = model(text[None, :-1], targets=text[None, 1:]).loss.item()
    model.train()
    for segment_length in (1, 7, 49, 100):
        result = evaluate_perplexity(model, text, segment_length)
        assert result.loss == pytest.approx(whole, abs=1e-4)
        assert result.tokens == 49
        assert result.perplexity == pytest.approx(np.exp(whole), rel=1e-3)
    assert model.training
    model.config.mem_len = 0
    assert abs(evaluate_perplexity(model, text, 1).loss - whole) > 5e-3  # no context at all
    assert evaluate_perplexity(model, text, 49).loss == pytest.approx(whole, abs=1e-4)


def test_evaluation_of_several_streams_is_their_mean():
    model, texts = model_of(mem_len=6), tokens(3, 20)
    alone = [evaluate_perplexity(model, text, 5).loss for text in texts]
    together = evaluate_perplexity(model, texts, 5)
    assert together.loss == pytest.approx(np.mean(alone), abs=1e-5)
    assert together.tokens == 57


@pytest.mark.parametrize(
    ("shape", "length", "message"),
    [
        ((1,), 4, "at least 2 tokens"),
        ((2, 2, 2), 4, r"got \[2, 2, 2\]"),
        ((9,), 0, "segment_length must be an integer of at least 1, got 0"),
    ],
)
def test_evaluation_of_nonsense_is_refused(shape, length, message):
    with pytest.raises(ValueError, match=message):
        evaluate_perplexity(model_of(), torch.zeros(shape, dtype=torch.long), length)


GENERATION = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_memory_is_generation_without(beams):
    ids = tokens(2, 5)
    mask = torch.ones_like(ids)
    with_memory = model_of(mem_len=20).generate(ids, attention_mask=mask, num_beams=beams, **GENERATION)
    without = model_of(mem_len=0).generate(ids, attention_mask=mask, num_beams=beams, **GENERATION)
    assert with_memory.shape == (2, 11)
    assert torch.equal(with_memory, without)


def test_generation_carries_the_memory_and_not_the_text():
    model, seen = model_of(mem_len=20), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    ids = tokens(2, 5)
    model.generate(ids, attention_mask=torch.ones_like(ids), **GENERATION)
    assert seen == [5, 1, 1, 1, 1, 1]


def test_generation_with_padding_on_the_left():
    model, ids = model_of(mem_len=20), tokens(1, 5)
    alone = model.generate(ids, attention_mask=torch.ones_like(ids), **GENERATION)
    padded = torch.nn.functional.pad(ids, (3, 0), value=9)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
    assert torch.equal(model.generate(padded, attention_mask=mask, **GENERATION)[:, 3:], alone)


class _Logits(torch.nn.Module):
    def __init__(self, model: TransformerXLForCausalLM):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids).logits


@pytest.mark.slow
def test_exports_with_any_length_without_memory():
    model = model_of(mem_len=0, n_layer=1)
    dynamic = {"input_ids": {1: torch.export.Dim("length", min=2, max=512)}}
    exported = torch.export.export(_Logits(model).eval(), (tokens(),), dynamic_shapes=dynamic)
    longer = tokens(length=30)
    torch.testing.assert_close(exported.module()(longer), model(longer).logits)
