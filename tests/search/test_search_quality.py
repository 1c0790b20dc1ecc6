import math

import pytest
import tiny
import torch
from datasets import Dataset
from searching import Quality, classification_rows, classifier
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification, ElasticForTokenClassification
from hf_elastic.measure.quality import QualityPass
from hf_elastic.search import Objective, search_subnets
from hf_elastic.search.proxies.table import score


def test_classification_agrees_with_the_extracted_models():
    model, rows = classifier(), classification_rows()
    data = Dataset.from_list(rows)
    frontier = search_subnets(model, ["accuracy", "loss", "latency"], data, batch_size=4, progress=False)
    for point in frontier.evaluated:
        alone = model.extract(point.subnet)
        hits, loss = 0, 0.0
        for row in rows:
            with torch.no_grad():
                output = alone(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["label"]]))
            hits += int(output.logits.argmax()) == row["label"]
            loss += float(output.loss)
        assert point.values["accuracy"] == hits / len(rows)
        assert point.values["loss"] == pytest.approx(loss / len(rows), abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_perplexity_of_a_causal_language_model(name):
    stock = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[name]
    model = ElasticForCausalLM.from_base(tiny.randomize(stock(tiny.config_of(name))), space={"num_hidden_layers": [2, 4]})
    ids = [row["input_ids"] for row in classification_rows(9)]
    rows = [{"input_ids": row, "labels": [-100, -100, *row[2:]] if i % 2 else row} for i, row in enumerate(ids)]
    rows.append({"input_ids": [7, 8], "labels": [-100, -100]})  # nothing to predict
    frontier = search_subnets(model, ["perplexity", "accuracy", "parameters"], rows, batch_size=1, progress=False)
    together = search_subnets(model, ["perplexity", "accuracy", "parameters"], rows, batch_size=5, progress=False)
    for point, other in zip(frontier.evaluated, together.evaluated):
        alone, losses, hits = model.extract(point.subnet), [], []
        for row in rows:
            with torch.no_grad():
                logits = alone(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for place, label in enumerate(row["labels"][1:]):
                if label != -100:
                    losses.append(-float(logits[place, label]))
                    hits.append(int(logits[place].argmax()) == label)
        assert point.values["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
        assert point.values["accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert other.values == pytest.approx(point.values, rel=1e-4)


def test_token_classification_with_a_collator():
    base = tiny.randomize(BertForTokenClassification(tiny.config_of("bert", num_labels=3)))
    model = ElasticForTokenClassification.from_base(base)
    rows = [{"input_ids": r["input_ids"], "labels": [-100] + [i % 3 for i in r["input_ids"][1:]]} for r in classification_rows(6)]

    class Tokenizer:
        padding_side = "right"

        def pad(self, features, **kwargs):
            length = max(len(feature["input_ids"]) for feature in features)
            ids = [feature["input_ids"] + [0] * (length - len(feature["input_ids"])) for feature in features]
            return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(ids).ne(0).long()}

    collator = DataCollatorForTokenClassification(Tokenizer())
    given = QualityPass(model, rows, ["accuracy", "loss"], 4, collator)(model.view())
    assert given == pytest.approx(QualityPass(model, rows, ["accuracy", "loss"], 2)(model.view()), rel=1e-5)
    hits, count = 0, 0
    for row in rows:
        labels = torch.tensor(row["labels"])
        guess = model.view()(input_ids=torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        hits, count = hits + int((guess == labels).sum()), count + int((labels != -100).sum())
    assert given["accuracy"] == pytest.approx(hits / count)


def test_regression_has_a_loss_but_no_accuracy():
    model = classifier()
    model = ElasticForSequenceClassification.from_base(BertForSequenceClassification(tiny.config_of("bert", num_labels=1)))
    rows = [{"input_ids": row["input_ids"], "label": 0.5} for row in classification_rows(4)]
    assert search_subnets(model, ["loss", "mse"], rows, progress=False).points
    with pytest.raises(ValueError, match=r"accuracy is no score of this head.*: pearson, spearmanr, mse, loss, perplexity"):
        search_subnets(model, ["accuracy"], rows, progress=False)
    with pytest.raises(ValueError, match=r"labels of type torch.int64, which a head with problem_type regression has not"):
        search_subnets(model, ["mse"], [{**row, "label": 1} for row in rows], progress=False)


def test_a_random_collator_draws_once_and_reproducibly():
    def noisy(rows):
        return {"input_ids": torch.randint(5, 99, (len(rows), 4)), "labels": torch.randint(3, (len(rows),))}

    model = classifier()
    options = {"data_collator": noisy, "batch_size": 5, "progress": False}
    frontiers = [search_subnets(model, ["loss"], classification_rows(), **options) for _ in range(2)]
    assert [p.values for p in frontiers[0].evaluated] == [p.values for p in frontiers[1].evaluated]


def test_all_metrics_come_from_one_pass():
    model, calls = classifier({"num_hidden_layers": [4]}), []
    handle = model.base.register_forward_hook(lambda *args: calls.append(1))
    search_subnets(model, ["accuracy", "loss", "perplexity"], classification_rows(8), batch_size=4, progress=False)
    handle.remove()
    assert len(calls) == 2


def test_proxies_by_weights_are_objectives_and_kept_in_the_study(tmp_path, monkeypatch):
    """Each on the first rows as one batch; a second call computes none of them again."""
    model, rows = classifier({"num_hidden_layers": [2, 4]}), classification_rows(8)
    options = {"batch_size": 3, "storage": tmp_path, "progress": False}
    frontier = search_subnets(model, ["synflow", "snip", "v_pca", "parameters"], rows, **options)
    (batch,) = QualityPass(model, rows[:3], (), 3).batches
    for point in frontier.evaluated:
        for name in ("synflow", "snip", "v_pca"):
            assert point.values[name] == pytest.approx(score(name, model, batch, point.subnet), rel=1e-5)
    monkeypatch.setattr("hf_elastic.search.quality.score", None)
    again = search_subnets(model, ["synflow", "snip", "v_pca", "parameters"], rows, **options)
    assert {str(p.subnet): p.values for p in again.evaluated} == {str(p.subnet): p.values for p in frontier.evaluated}
    with pytest.raises(ValueError, match=r"belongs to another search \(proxy_batch was"):
        search_subnets(model, ["synflow", "snip", "v_pca", "parameters"], rows[1:], **options)


def test_a_proxy_without_data_beside_ones_own_quality():
    quality = Quality()
    frontier = search_subnets(classifier(), ["accuracy", "synflow"], compute_quality=quality, progress=False)
    assert len(quality.views) == 8 and {"accuracy", "synflow"} <= set(frontier.points[0].values)


def test_a_subnet_that_computes_nan_is_infeasible():
    quality = Quality(lambda parameters: math.nan if parameters > 20000 else 0.5)
    frontier = search_subnets(classifier(), ["accuracy", "parameters"], compute_quality=quality, progress=False)
    full = next(point for point in frontier.evaluated if point.name == "full")
    assert not full.feasible and full.details["infeasible"] == ["accuracy is not a finite number"]
    message = "is allowed: no subnet has a finite accuracy; the closest: accuracy is not a finite number"
    with pytest.raises(ValueError, match=message):
        search_subnets(classifier(), ["accuracy"], compute_quality=Quality(lambda _: math.inf), progress=False)


def test_objectives_of_ones_own():
    f1 = Objective("f1", "maximize")
    options = {"compute_quality": lambda view: {"f1": 0.5, "recall": 0.7}, "constraints": ["recall>=0.6"], "progress": False}
    frontier = search_subnets(classifier(), [f1, "parameters"], **options)
    assert frontier.points[0].values["recall"] == 0.7 and len(frontier.points) == 1
