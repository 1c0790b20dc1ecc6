"""Bad input of `hf-elastic evaluate`: one line that says what is wrong, and exit status 2."""

import sys

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hf-elastic[evaluate]'")

from made_up import write
from tiny import config_of
from transformers import AutoModelForMaskedLM

from hf_elastic import ElasticForMaskedLM
from hf_elastic.cli.main import main

pytestmark = pytest.mark.one_lane

SHARED = ["--model", "{elastic}", "--data_dir", "{data}", "--latency", "false", "--output", "{out}"]
BAD = {
    "unknown task": ([*SHARED, "--tasks", "piqa,glue"], "tasks: 'glue' is unknown; known: arc_challenge, arc_easy, boolq"),
    "a task twice": ([*SHARED, "--tasks", "piqa", "piqa"], "tasks: piqa is given twice"),
    "missing data": ([*SHARED, "--data_dir", "{empty}"], "data_dir: arc_challenge needs arc_challenge.jsonl.gz, which is not in"),
    "data that is no JSON": ([*SHARED, "--data_dir", "{broken}", "--tasks", "copa"], "is not gzipped JSON lines"),
    "data that breaks off": ([*SHARED, "--data_dir", "{broken}", "--tasks", "siqa"], "siqa.jsonl.gz is not gzipped"),
    "data without a key": ([*SHARED, "--data_dir", "{broken}", "--tasks", "piqa"], "piqa cannot use line 2 of"),
    "a right answer that is none": ([*SHARED, "--data_dir", "{broken}", "--tasks", "wsc273"], "its 'gold' is 2"),
    "too few for a shot": (
        [*SHARED, "--data_dir", "{broken}", "--tasks", "boolq", "--num_fewshot", "1"],
        "num_fewshot: boolq has 1 items, too few for 1 shots",
    ),
    "elastic, not causal": ([*SHARED, "--model", "{masked}"], "ElasticForMaskedLM is no causal language model"),
    "stock, not causal": ([*SHARED, "--model", "{encoder}"], "holds a BertForMaskedLM, which is no causal language model"),
    "no such model": ([*SHARED, "--model", "/no/such/model"], "no checkpoint folder '/no/such/model'"),
    "unknown size": ([*SHARED, "--subnets", "tiny"], "tiny"),
    "impossible size": ([*SHARED, "--subnets", '{"intermediate_size": 480}'], "480"),
    "broken JSON": (
        [*SHARED, "--subnets", '{"intermediate_size"'],
        "subnets: '{\"intermediate_size\"' is neither a JSON mapping",
    ),
    "sizes of a stock model": ([*SHARED, "--model", "{exported}", "--subnets", "small"], "is not elastic, so it has one size"),
    "generation with a graph": ([*SHARED, "--model", "{exported}/onnx", "--tasks", "triviaqa"], "triviaqa: it generates text"),
    "too long to time": (
        [*SHARED, "--latency", "true", "--sequence_length", "999"],
        "sequence_length: 999 tokens, but",
    ),
    "too long for the graph": (
        [*SHARED, "--model", "{exported}/onnx", "--latency", "true", "--sequence_length", "999"],
        "sequence_length: the graph cannot run 999",
    ),
    "no such device": ([*SHARED, "--device", "nonsense"], "device: 'nonsense' cannot be used here"),
    "no items": ([*SHARED, "--limit", "0"], "limit must be an integer of at least 1, got 0"),
    "a folder as output": ([*SHARED, "--output", "{empty}"], "is a folder; give a file"),
    "another file as output": ([*SHARED, "--output", "{exported}/config.json"], "config.json is there and holds no evaluation"),
}


@pytest.fixture(scope="module")
def places(elastic, exported, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    for name in ("empty", "broken"):
        (folder / name).mkdir()
    (folder / "broken" / "copa.jsonl.gz").write_text("not gzipped")
    write(folder / "broken", "piqa", [{"query": "w1", "choices": ["w1", "w2"], "gold": 0}, {"query": "w1", "gold": 0}])
    write(folder / "broken", "winograd_wsc", [{"context_options": ["w1", "w2"], "continuation": "w3", "gold": 2}])
    write(folder / "broken", "boolq", [{"query": "w1", "choices": ["no", "yes"], "gold": 0}])
    whole = (data / "siqa.jsonl.gz").read_bytes()
    (folder / "broken" / "siqa.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    encoder = AutoModelForMaskedLM.from_config(config_of("bert"))
    encoder.save_pretrained(folder / "encoder")
    ElasticForMaskedLM.from_base(encoder, importance="none").save_pretrained(folder / "masked")
    names = {"elastic": elastic, "exported": exported, "data": data}
    return names | {name: folder / name for name in ("empty", "broken", "encoder", "masked")}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2(name, places, tmp_path, capsys):
    options, message = BAD[name]
    filled = [option if option.startswith('{"') else option.format(**places, out=tmp_path / "out.json") for option in options]
    assert main(["evaluate", *filled]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "error" in line]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in error, error


def test_without_lm_eval(elastic, data, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("lm_eval", "hf_elastic.evaluation."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", "--model", str(elastic), "--data_dir", str(data), "--output", str(tmp_path / "out.json")]) == 2
    assert "pip install 'hf-elastic[evaluate]'" in capsys.readouterr().err
