"""The tables in docs are what onnx_graphs.py makes of its records."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = {"graphs": "export.md", "speed": "export.md", "tensorrt": "tensorrt.md"}


@pytest.fixture(scope="module")
def onnx_graphs(benchmark_module):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    return benchmark_module("onnx_graphs")


def test_tables_are_those_of_the_records(onnx_graphs):
    made = onnx_graphs.tables()
    assert set(made) == set(DOCS)
    for kind, table in made.items():
        text = (ROOT / "docs" / DOCS[kind]).read_text(encoding="utf-8")
        assert table in text, f"records changed: put the table {kind} of `onnx_graphs.py --tables` into docs/{DOCS[kind]}"


def test_the_worst_size_is_shown(onnx_graphs, monkeypatch, tmp_path):
    sizes = {
        "full": {"max_abs_difference": 1e-7, "generated_tokens": 4, "generated_tokens_identical": 4},
        "odd": {"max_abs_difference": 3e-5, "generated_tokens": 4, "generated_tokens_identical": 3},
    }
    (tmp_path / "graphs-1.2.0.json").write_text(json.dumps({"transformers": "1.2.0", "backbones": {"one": sizes}}))
    monkeypatch.setattr(onnx_graphs, "RESULTS", tmp_path)
    assert onnx_graphs.tables()["graphs"].splitlines()[-1] == "| one | 3.0e-05 | 4 of 4 / 3 of 4 |"
