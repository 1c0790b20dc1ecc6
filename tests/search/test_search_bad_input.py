import pytest
import torch
from searching import classification_rows, classifier

from hf_elastic.search import Objective, SearchConfig, search_subnets

ROWS = classification_rows(3)


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objectives": ["speed"]},
            "'speed' is unknown; known: accuracy, loss, perplexity, f1, .*, mse, latency, peak_memory, parameters, flops",
        ),
        ({"objectives": "accuracy"}, "objectives must be a list.*'accuracy'"),
        ({"objectives": ["flops", "flops"]}, "must differ, got flops, flops"),
        ({"constraints": ["latency_ms<10"]}, "'latency_ms<10' must be a name, <= or >=, and a number"),
        ({"constraints": ["latency_ms<=10ms"]}, "'10ms' is not a finite number"),
        ({"constraints": "latency_ms<=10"}, "constraints must be a list"),
        ({"portability": "onnx"}, "'onnx' is unknown; allowed: any, standard"),
        (
            {"algorithm": "guess"},
            "algorithm 'guess' is unknown; allowed: surrogate, evolution, nsga2, nsga3, tpe, random,",
        ),
        ({"n_trials": 0}, "n_trials must be an integer of at least 1, got 0"),
        ({"population_size": 1}, "population_size.*at least 2, got 1"),
        ({"latency_batch_size": -1}, "latency_batch_size.*-1"),
        ({"threads": True}, "threads.*True"),
        ({"runtime": "tvm"}, "runtime: 'tvm' is unknown"),
        ({"measure_at_most": -1}, "measure_at_most must be an integer of at least 0, got -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**options)


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objectives": [Objective("bleu", "maximize")]}, "'bleu'.*give compute_quality"),
        ({"objectives": ["accuracy"], "eval_dataset": None}, "accuracy needs eval_dataset or compute_quality"),
        ({"objectives": ["snip"], "eval_dataset": None}, "snip needs eval_dataset"),
        ({"constraints": ["latency<=10"]}, "unknown value 'latency'; known: .*latency_ms"),
        (
            {"sequence_length": 1000, "objectives": ["latency"]},
            "1000 tokens, but the model has positions for 64",
        ),
        ({"model": torch.nn.Linear(2, 2)}, "elastic model, got Linear"),
        ({"objectives": torch.nn.Linear(2, 2)}, "objectives must be a list .*; got a? ?Linear"),
        ({"compute_quality": 3}, "compute_quality must be a function or None, got 3"),
        ({"compute_quality": lambda view: 3}, "must return a dict of numbers, got 3"),
        ({"compute_quality": lambda view: {"f1": 1}, "objectives": ["loss"]}, "returned no loss; it returned: f1"),
        ({"data_collator": lambda rows: rows}, "data_collator must return a dict of tensors, got list"),
        ({"eval_dataset": []}, "eval_dataset has no rows"),
        ({"eval_dataset": 3}, "eval_dataset must be a data set"),
        ({"eval_dataset": [{"text": "hi"}]}, "tokenized rows with input_ids, got {'text'"),
        ({"eval_dataset": [{"input_ids": [1, 2]}]}, "needs labels for accuracy.*have: input_ids, attention_mask"),
        ({"eval_dataset": [{"input_ids": [1, 2]}], "objectives": ["snip"]}, "snip needs a batch with labels"),
        ({"eval_dataset": [{"input_ids": [1, 2], "label": -100}]}, "no label other than -100"),
        ({"eval_dataset": [{"input_ids": [1, 2], "label": "good"}]}, "1 rows make no batch .*give a data_collator"),
    ],
)
def test_bad_input_is_named(model, arguments, message):
    arguments = {"model": model, "eval_dataset": ROWS, "progress": False, **arguments}
    with pytest.raises(ValueError, match=message):
        search_subnets(**arguments)
