"""recipes/benchmarks/lts.py from end to end on tiny supernets, and what it makes of its measurements."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "benchmarks"))
import lts  # noqa: E402
from lts_report import best, compare  # noqa: E402

pytestmark = pytest.mark.benchmark

TINY = {
    "gpt2": {"vocab_size": 99, "n_positions": 16, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 96},
    "transfo_xl": {"vocab_size": 99, "cutoffs": [20, 60], "d_model": 64, "n_layer": 3, "n_head": 4, "d_inner": 96},
}


def tiny_recipes(folder: Path, backbone: str) -> Path:
    """The shipped recipes with a small model, a small space and a short schedule."""
    shipped = ROOT / "recipes" / "lts" / backbone
    convert, search = (yaml.safe_load((shipped / f"{name}.yaml").read_text()) for name in ("convert", "search"))
    convert["model_config"] |= TINY[backbone]
    convert["space"] |= {
        "num_hidden_layers": [1, 2, 3], "hidden_size": [16, 32, 64], "num_attention_heads": [2, 4], "intermediate_size": [16, 96]
    }  # fmt: skip
    search |= {"n_trials": 60, "population_size": 20, "sequence_length": 16}
    folder.mkdir()
    for name, values in (("convert", convert), ("search", search)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "div_val"), [("gpt2", None), ("transfo_xl", None), ("transfo_xl", 4)])
def test_end_to_end(backbone, div_val, tmp_path, capsys):
    baseline = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    options = [backbone, "--output", str(tmp_path / "out"), "--recipes", str(tiny_recipes(tmp_path / "recipes", backbone))]
    options += ["--baseline", json.dumps(baseline), "--profile-sizes", "8", "--repeats", "3", "--memory-workers", "2"]
    options += ["--div-val", str(div_val)] if div_val else []
    assert lts.main(options) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "largest ratio of latency at equal or more decoder parameters" in printed and "held out" in printed
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    measured = {one["name"]: one for one in record["measured"]}
    assert [name for name in measured if name.startswith("homogeneous")] == [f"homogeneous-{depth}" for depth in (1, 2, 3)]
    assert measured["homogeneous-2"]["subnet"] == {"num_hidden_layers": 2, **baseline}
    rounds = {len(one["latency"]["samples_ms"]) for one in record["measured"]}
    assert len(rounds) == 1, "found and homogeneous models are measured in the same rounds"
    for row in record["comparison"]:
        for cost in ("latency", "memory"):
            found = measured[row[cost]["found"]]
            assert found["decoder_parameters"] >= measured[row["baseline"]]["decoder_parameters"]
    found = [one for one in record["measured"] if not one["is_baseline"]]
    assert found
    for one in found:
        config = AutoConfig.from_pretrained(tmp_path / "out" / "found" / one["name"])
        built = AutoModelForCausalLM.from_config(config)
        assert getattr(config, "div_val", None) == (div_val or (1 if backbone == "transfo_xl" else None))
        assert built.num_parameters() == one["parameters"]
        assert isinstance(built, ElasticForCausalLM) == (one["portability"] == "elastic")
    for name in ("report.html", "profile.json", "frontier.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert lts.main(options) == 2
    assert "is not empty" in capsys.readouterr().err


def test_div_val_is_for_transformer_xl(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        lts.main(["gpt2", "--div-val", "4", "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "gpt2 has no adaptive embedding" in capsys.readouterr().err


def one(name, quality, latency, memory):
    times = {"median_ms": latency, "low_ms": 0.9 * latency, "high_ms": 1.1 * latency, "samples_ms": [latency]}
    baseline = name.startswith("homogeneous")
    return {"name": name, "is_baseline": baseline, "decoder_parameters": quality, "latency": times, "memory": {"peak_mb": memory}}


def test_ratios_are_at_equal_or_more_decoder_parameters():
    measured = [
        one("homogeneous-1", 100, 30.0, 90.0),
        one("homogeneous-2", 200, 40.0, 100.0),
        one("homogeneous-3", 300, 50.0, 110.0),
        one("found-1", 99, 1.0, 1.0),
        one("found-2", 150, 15.0, 80.0),
        one("found-3", 200, 25.0, 50.0),
    ]
    rows = compare(measured, "decoder_parameters")
    assert [row["baseline"] for row in rows] == ["homogeneous-1", "homogeneous-2"], "nothing found reaches the third"
    assert rows[0]["latency"] == {"ratio": 2.0, "low": 27.0 / 16.5, "found": "found-2"}
    assert rows[0]["memory"] == {"ratio": 1.8, "found": "found-3"}
    record = {"comparison": rows}
    assert best(record, "latency")["baseline"] == "homogeneous-1"
    assert best(record, "memory")["memory"]["ratio"] == 2.0
