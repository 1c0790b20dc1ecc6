"""`push_to_hub` of the objects that users of transformers have, with their own signatures."""

import pytest
import torch
import transformers
from datasets import Dataset
from huggingface_hub import ModelCard, constants, file_download, hf_api

from hf_elastic import ElasticForSequenceClassification, ElasticTrainer, ElasticTrainingArguments


@pytest.fixture
def hub(hub, monkeypatch, tmp_path):
    """transformers looks for a card that is there: from this Hub, into a cache of its own."""
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # Clients that were made when the modules were imported, or by an earlier test.
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    return hub


def card_of(hub, repo_id, revision="main") -> ModelCard:
    return ModelCard(hub.files(repo_id, revision)["README.md"].decode())


def test_a_model(hub, model, tokenizer):
    model.push_to_hub("user/model")
    tokenizer.push_to_hub("user/model")
    files = hub.files("user/model")
    assert {"config.json", "model.safetensors", "modeling_elastic.py", "tokenizer.json"} <= set(files)
    card = card_of(hub, "user/model")
    assert card.data.tags[:2] == ["elastic", "hf_elastic"]
    assert "| `small` |" in card.text
    assert '.from_pretrained("user/model", subnet="odd")' in card.text


def test_transformers_own_options(hub, model):
    model.push_to_hub("user/model", private=True, revision="v1", commit_message="one", tags=["mine"])
    assert hub.repositories["user/model"].private
    assert "model.safetensors" in hub.files("user/model", "v1")
    assert 'revision="v1"' in card_of(hub, "user/model", "v1").text
    assert "mine" in card_of(hub, "user/model", "v1").data.tags


def test_save_pretrained_and_push(hub, model, tmp_path):
    model.save_pretrained(str(tmp_path / "model"), push_to_hub=True, repo_id="user/model")
    assert "| `small` |" in card_of(hub, "user/model").text


def test_a_card_that_is_there(hub, model):
    model.push_to_hub("user/model")
    first = card_of(hub, "user/model")
    model.push_to_hub("user/model")  # ours: written again
    assert str(card_of(hub, "user/model")) == str(first)
    hub.create("user/mine", {"README.md": b"---\ntags:\n- mine\n---\n# Mine\n"})
    model.push_to_hub("user/mine")
    assert "# Mine" in card_of(hub, "user/mine").text


def test_a_size_that_is_frozen(hub, model):
    model.extract("odd").push_to_hub("user/odd")
    assert "frozen at this size" in card_of(hub, "user/odd").text


def test_remote_code_has_no_card_of_ours_and_pushes_all_the_same(hub, model, monkeypatch):
    monkeypatch.setattr(ElasticForSequenceClassification, "card_writer", None)
    model.push_to_hub("user/model")
    assert "automatically generated" in card_of(hub, "user/model").text


@pytest.fixture
def trainer(model, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(5, 90, (6,), generator=generator), "labels": index % 2} for index in range(8)]
    args = ElasticTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=0.125,
        train_subnets=["small"],
        report_to=["none"],
        use_cpu=True,
        hub_model_id="user/trained",
        hub_token="hf_right",
    )
    data = Dataset.from_list(rows)
    copy = ElasticForSequenceClassification(model.config, base=model.extract(None))
    return ElasticTrainer(model=copy, args=args, train_dataset=data, eval_dataset=data)


def test_a_trainer(hub, trainer):
    trainer.train()
    metrics = trainer.evaluate()
    trainer.push_to_hub(dataset="glue", license="mit", tags="mine", finetuned_from="a/b")
    files = hub.files("user/trained")
    assert "model.safetensors" in files
    assert all(b"hf_right" not in content for content in files.values())
    assert trainer.args.hub_token == "hf_right"
    card = card_of(hub, "user/trained")
    assert (card.data.license, card.data.datasets, card.data.base_model) == ("mit", ["glue"], "a/b")
    assert "mine" in card.data.tags
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"loss, full": metrics["eval_loss"], "loss, small": metrics["eval_small_loss"]}
    assert "learning_rate: 0.125" in card.text
    assert '.from_pretrained("user/trained"' in card.text
