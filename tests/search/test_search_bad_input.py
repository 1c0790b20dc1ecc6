import pytest
import torch
from searching import classification_rows, classifier

from hf_elastic.search import Objective, search_subnets

ROWS = classification_rows(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"objectives": ["speed"]},
            "unknown objective 'speed'; known: accuracy, loss, perplexity, latency, peak_memory, parameters, flops",
        ),
        ({"objectives": []}, r"at least one of: accuracy.*got \[\]"),
        ({"objectives": "accuracy"}, "objectives must be a list.*'accuracy'"),
        ({"objectives": ["flops", "flops"]}, "must differ, got flops, flops"),
        ({"objectives": [Objective("f1", "maximize")]}, "'f1'.*give compute_quality"),
        ({"objectives": ["accuracy"], "eval_dataset": None}, "accuracy needs eval_dataset or compute_quality"),
        ({"constraints": ["loss<=1"], "eval_dataset": None}, "loss needs eval_dataset"),
        ({"constraints": ["latency<=10"]}, "unknown value 'latency'; known: .*latency_ms"),
        ({"constraints": ["latency_ms<10"]}, "'latency_ms<10' must be a name, <= or >=, and a number"),
        ({"constraints": ["latency_ms<=10ms"]}, "'10ms' is not a finite number"),
        ({"constraints": ["latency_ms<=inf"]}, "'inf' is not a finite number"),
        ({"constraints": "latency_ms<=10"}, "constraints must be a list"),
        ({"constraints": [3]}, "constraint 3 must be"),
        ({"portability": "onnx"}, "'onnx' is unknown; allowed: any, standard"),
        ({"n_trials": 0}, "n_trials must be an integer of at least 1, got 0"),
        ({"population_size": 1}, "population_size.*at least 2, got 1"),
        ({"batch_size": 2.5}, "batch_size.*2.5"),
        ({"sequence_length": 0}, "sequence_length.*0"),
        ({"latency_batch_size": -1}, "latency_batch_size.*-1"),
        ({"threads": True}, "threads.*True"),
        ({"seed": -1}, "seed.*at least 0, got -1"),
        ({"sequence_length": 1000, "objectives": ["latency"]}, "sequence_length 1000: the model cannot run"),
        ({"model": torch.nn.Linear(2, 2)}, "elastic model, got Linear"),
        ({"compute_quality": 3}, "compute_quality must be a function or None, got 3"),
        ({"compute_quality": lambda view: 3}, "must return a dict of numbers, got 3"),
        ({"compute_quality": lambda view: {"f1": 1}, "objectives": ["loss"]}, "returned no loss; it returned: f1"),
        ({"data_collator": "pad"}, "data_collator must be a function"),
        ({"data_collator": lambda rows: rows}, "data_collator must return a dict of tensors, got list"),
        ({"eval_dataset": []}, "eval_dataset has no rows"),
        ({"eval_dataset": 3}, "eval_dataset must be a data set"),
        ({"eval_dataset": [{"text": "hi"}]}, "tokenized rows with input_ids, got {'text'"),
        ({"eval_dataset": [{"input_ids": [1, 2]}]}, "needs labels for accuracy.*have: input_ids, attention_mask"),
        ({"eval_dataset": [{"input_ids": [1, 2], "label": -100}]}, "no label other than -100"),
        ({"eval_dataset": [{"input_ids": [1, 2], "label": "good"}]}, "1 rows make no batch .*give a data_collator"),
    ],
)
def test_bad_input_is_named(arguments, message):
    arguments = {"model": classifier(), "eval_dataset": ROWS, "progress": False, **arguments}
    with pytest.raises(ValueError, match=message):
        search_subnets(**arguments)
