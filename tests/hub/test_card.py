"""Model cards: valid metadata, and no number that is not counted or read."""

import json
import re

import pytest
import yaml
from hf_elastic_files import frontier_of
from huggingface_hub import ModelCard, ModelCardData
from tiny import config_of

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.core.space import Subnet
from hf_elastic.hub.card_parts import (
    Place,
    cell,
    columns,
    counted,
    from_evaluation,
    from_frontier,
    from_metrics,
    kept_text,
    markdown_table,
)
from hf_elastic.hub.cards import CARD, STOCK_CARDS, CardFacts, check_card, elastic_card, is_kept, size_card

METRICS = {"eval_accuracy": 0.875, "eval_small_accuracy": 0.8125, "eval_small_loss": 0.5, "eval_runtime": 3.5, "epoch": 1.0}


def row(card, size: str) -> list[str]:
    [line] = [line for line in card.text.splitlines() if line.startswith(f"| `{size}` |")]
    return [part.strip() for part in line.strip("|").split("|")]


def test_metadata_for_the_hub(model):
    facts = CardFacts(
        base_model="google-bert/bert-base-uncased",
        license="apache-2.0",
        language=["en"],
        datasets=["stanfordnlp/sst2"],
        tags=["mine"],
        measurements=from_metrics(model, METRICS),
    )
    data = ModelCard(str(elastic_card(model, Place("user/model"), facts))).data.to_dict()
    assert data["base_model"] == "google-bert/bert-base-uncased"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-classification"
    assert data["tags"] == ["elastic", "hf_elastic", "bert", "mine"]
    assert (data["license"], data["datasets"]) == ("apache-2.0", ["stanfordnlp/sst2"])
    assert data["metrics"] == ["accuracy"]
    [entry] = data["model-index"]
    assert entry["name"] == "model"
    [result] = entry["results"]
    assert result["task"] == {"type": "text-classification"}
    assert result["dataset"] == {"name": "stanfordnlp/sst2", "type": "stanfordnlp/sst2"}
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {"accuracy, full": 0.875, "accuracy, small": 0.8125, "loss, small": 0.5}


def test_the_metadata_survive_a_round_trip_through_the_library(model):
    card = elastic_card(model, Place("user/model"), CardFacts(datasets=["d"], measurements=from_metrics(model, METRICS)))
    again = ModelCardData(**yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)[1]))
    assert again.to_dict() == card.data.to_dict()
    assert len(again.eval_results) == 3
    assert again.model_name == "model"


def test_metadata_that_say_too_little_are_refused(model):
    card = elastic_card(model, Place("user/model"), CardFacts())
    card.data.library_name = None
    with pytest.raises(ValueError, match="lacks library_name"):
        check_card(card)


def test_without_knowing_the_data_nothing_is_claimed(model):
    card = elastic_card(model, Place("user/model"), CardFacts(measurements=from_metrics(model, METRICS)))
    assert "model-index" not in card.data.to_dict()
    assert "The files do not say on which data" in card.text
    assert "No results on a task" in elastic_card(model, Place("user/model"), CardFacts()).text


@pytest.mark.parametrize("name", ["./runs/model", "a b", "/tmp/model"])
def test_a_local_path_is_no_base_model(name):
    with pytest.raises(ValueError, match=re.escape(name)):
        CardFacts(base_model=name)


def test_the_size_table_counts(model):
    facts = CardFacts(measurements=from_metrics(model, METRICS), sequence_length=32)
    card = elastic_card(model, Place("user/model"), facts, {"small": Place("user/model-small")})
    full, small = (model.num_parameters_of(name) for name in (None, "small"))
    assert row(card, "small")[2] == counted(small, full)
    flops = [model.flops_of(name, sequence_length=32) for name in ("small", None)]
    assert row(card, "small")[3] == counted(*flops)
    assert row(card, "small")[4:6] == ["standard", "[model-small](https://huggingface.co/user/model-small)"]
    assert row(card, "odd")[4] == "elastic"
    assert row(card, "full")[6:] == ["0.875", ""]
    assert row(card, "small")[6:] == ["0.8125", "0.5"]


def test_a_frontier_brings_intervals_the_machine_and_its_picture(model):
    frontier = frontier_of(model)
    facts = CardFacts(measurements=from_frontier(model, frontier), frontier=frontier, picture="frontier.png")
    card = elastic_card(model, Place("user/model"), facts)
    assert row(card, "small")[-2:] == ["0.75", "1.5 [1.25, 1.75]"]
    assert row(card, "odd")[-1] == "2.5 predicted"
    assert "- processor: Imaginary 3000" in card.text
    assert "![quality against cost of every size that was evaluated](frontier.png)" in card.text
    assert "The search warned: the machine was busy" in card.text
    assert "the machine and the shapes named above" in card.text
    assert card.data.metrics == ["accuracy"]  # a latency is none


def test_a_frontier_of_another_model(model):
    with pytest.raises(ValueError, match="the frontier is of another model"):
        from_frontier(model, frontier_of(model, {"num_hidden_layers": 40}))


def test_an_evaluation(model, tmp_path):
    path = tmp_path / "results.json"
    sizes = {
        "largest": {"subnet": None, "scores": {"boolq": {"value": 0.5, "stderr": 0.125}}},
        "small": {"subnet": model.config.subnets["small"], "scores": {"boolq": {"value": 0.25, "stderr": None}}},
    }
    path.write_text(json.dumps({"tasks": {"boolq": {"metric": "acc"}}, "sizes": sizes}))
    found = from_evaluation(model, path)
    assert columns(found) == ["boolq: acc"]
    assert cell(found, model.resolve(None), "boolq: acc") == "0.5 ± 0.12"
    assert cell(found, model.resolve("small"), "boolq: acc") == "0.25"
    card = elastic_card(model, Place("user/model"), CardFacts(measurements=found))
    assert card.data.eval_results[0].dataset_name == "boolq"
    with pytest.raises(ValueError, match="cannot read the results"):
        from_evaluation(model, tmp_path / "none.json")
    path.write_text("{}")
    with pytest.raises(ValueError, match="holds no evaluation"):
        from_evaluation(model, path)


def test_the_card_of_a_size(model):
    records = {
        "": {"format": "safetensors", "max_abs_difference": 1.5e-8, "argmax_agreement": 1.0, "rows": 4, "tolerance": {"x": 1e-4}},
        "onnx": {"format": "onnx", "max_abs_difference": 2e-7, "argmax_agreement": 1.0, "rows": 4, "tolerance": {"x": 1e-4}},
    }
    facts = CardFacts(base_model="a/b", datasets=["d"], measurements=from_metrics(model, METRICS))
    card = size_card(model, "small", Place("user/model", revision="small"), facts, records, parent="user/model")
    assert card.data.base_model == "user/model"
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert [result.metric_value for result in card.data.eval_results] == [0.8125, 0.5]
    assert '.from_pretrained("user/model", revision="small")' in card.text
    assert "import hf_elastic" not in card.text
    assert 'ORTModelForSequenceClassification.from_pretrained("user/model", revision="small", subfolder="onnx/")' in card.text
    assert "| the checkpoint | safetensors | 1.5e-08 | 100.0% of 4 | x 0.0001 |" in card.text
    assert "| `onnx/` | onnx | 2e-07 |" in card.text
    others = {"openvino-int8": "openvino-int8", "tensorrt": "tensorrt", "by hand/graph": "onnx-int8", "notes": "text"}
    records |= {folder: {**records["onnx"], "format": name} for folder, name in others.items()}
    card = size_card(model, "small", Place("user/model", subfolder="small"), facts, records)
    assert 'OVModelForSequenceClassification.from_pretrained("user/model", subfolder="small/openvino-int8")' in card.text
    assert 'subfolder="small/by hand/graph/")' in card.text and 'subfolder="small/notes' not in card.text
    assert 'snapshot_download("user/model", allow_patterns="small/tensorrt/*") + "/small/tensorrt"' in card.text
    elastic = size_card(model, "odd", Place("user/model", subfolder="odd"), facts, {})
    assert "import hf_elastic" in elastic.text
    assert model.why_elastic("odd") in elastic.text
    assert '.from_pretrained("user/model", subfolder="odd")' in elastic.text
    assert "No results on a task" in elastic.text


def test_an_architecture_of_our_own():
    """Its standard sizes carry its code; its elastic ones carry only that which makes it elastic."""
    config = config_of("elm", num_labels=2)
    model = ElasticForSequenceClassification.from_base(
        ElasticForSequenceClassification.stock_class(config)(config), {"num_hidden_layers": [2, 4]}
    )
    place = Place("user/model"), CardFacts()
    whole, cut = str(elastic_card(model, *place)), str(size_card(model, "smallest", *place, {}))
    assert "import hf_elastic\n" in whole and "needs `hf_elastic`, whose architecture it is, or `trust_remote_code=True`" in whole
    assert "import hf_elastic  # or pass trust_remote_code=True\n" in cut and "comes with `hf_elastic`" in cut
    assert not any("nothing but `transformers`" in text for text in (whole, cut))


def test_a_family_without_its_supernet(model):
    card = elastic_card(model, None, CardFacts(), {"small": Place("user/model", "small")}, name="model")
    assert card.text.strip().startswith("# model")
    assert "`full`" not in card.text
    assert "revision=" in card.text


def test_what_is_published_of_a_recipe(model):
    recipe = {"learning_rate": 1e-4, "output_dir": "/home/me", "data_dir": "/home/me", "hub_token": "hf_x", "api_secret": "y"}
    card = elastic_card(model, Place("user/model"), CardFacts(recipe=recipe))
    assert "```yaml\nlearning_rate: 0.0001\n```" in card.text


def test_cards_that_somebody_wrote_are_known(model, tmp_path):
    assert not is_kept(tmp_path)
    for text in (str(elastic_card(model, Place("user/model"), CardFacts())), *(f"# x\n{stock} More." for stock in STOCK_CARDS)):
        (tmp_path / CARD).write_text(text)
        assert not is_kept(tmp_path)
    (tmp_path / CARD).write_text("# My model\n\nI trained this.")
    assert is_kept(tmp_path)


def test_small_things():
    assert markdown_table(["a", "b", "c"], [["1", "", "x|y"]]) == "| a | c |\n| --- | --- |\n| 1 | x/y |"
    assert kept_text(Subnet(layers=[0, 2], num_attention_heads=[2, 4])) == "2 layers, num_attention_heads 2 to 4"
    mixed = Subnet(num_hidden_layers=3, block_type=["bert", "mobilebert", "bert"])
    assert kept_text(mixed) == "num_hidden_layers 3, block_type 2 bert + 1 mobilebert"
    assert counted(999, 999) == "999"
    assert counted(22_700_000, 45_400_000) == "22.7 M (50%)"
