import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark

DATA_DIR = os.environ.get("HF_ELASTIC_DATA_DIR")
COLUMNS = (
    "config",
    "n_layer",
    "d_model",
    "d_embed",
    "div_val",
    "n_head",
    "d_inner",
    "valid_ppl",
    "params_total",
    "params_decoder",
)
TABLES = {
    "random_GPT2_wt103": 4, "pareto_GPT2_lm1b_corei7": 4, "pareto_GPT2_lm1b_titanxp": 4,
    "random_TransXL_lm1b": 5, "pareto_TransXL_lm1b_corei7": 5, "pareto_TransXL_lm1b_titanxp": 5,
}  # fmt: skip
# (layers, d, feed-forward widths, perplexity); the second and third have nearly as many decoder parameters, and the proxy of
# decoder parameters orders just them wrongly.
MODELS = ((1, 8, [16], 90.0), (2, 8, [16, 20], 50.0), (2, 8, [20, 18], 60.0), (2, 16, [64, 64], 30.0))
LAYER = {"operation_type": "SA", "operation_parameter": "SDP", "num_operation_heads": 2}


@pytest.fixture
def run(benchmark_module, monkeypatch, capsys):
    """The script on a folder: its exit status, and what it printed."""
    proxies = benchmark_module("proxies")

    def call(folder: Path) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["proxies.py", "--data-dir", str(folder)])
        status = proxies.main()
        return subprocess.CompletedProcess([], status, *capsys.readouterr())

    return call


def decoder_parameters(kind: int, layers: int, d: int, inner: list[int]) -> int:
    attention = 4 * d * d + 4 * d if kind == 4 else 5 * d * d + 2 * d
    return sum(attention + 2 * d * f + f + d + 4 * d for f in inner) + (2 * d if kind == 4 else 0)


@pytest.fixture
def folder(tmp_path):
    lts, encoders = tmp_path / "nas" / "lts_archai", tmp_path / "nas" / "training_free_nas"
    lts.mkdir(parents=True)
    encoders.mkdir()
    for name, kind in TABLES.items():
        with (lts / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for i, (layers, d, inner, perplexity) in enumerate(MODELS):
                count = decoder_parameters(kind, layers, d, inner)
                heads = " ".join(["2"] * layers)
                writer.writerow([i, layers, d, -1, 1, heads, " ".join(map(str, inner)), perplexity, count + 100 * d, count])
    described = []
    for i in range(3):
        layers = [{**LAYER, "feed_forward_dimension": 512, "num_feed_forward": 1}] * (i + 1)
        overrides = {"hidden_size": 128, "nas_config": {"encoder_layers": layers}}
        described.append({"id": i, "hparams": {"model_hparam_overrides": overrides}})
    (encoders / "BERT_benchmark.json.gz").write_bytes(gzip.compress(json.dumps(described).encode()))
    (encoders / "BERT_results_activation.csv").write_text("ID,GLUE Score,Head Confidence\n0,60.5,3\n1,70.5,2\n2,80.5,1\n")
    return tmp_path


def scores(output: str, table: str) -> dict[str, list[str]]:
    """Proxy -> Spearman, Kendall and concordance, as printed for one table."""
    part = output[output.index(f"{table}: ") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in part.splitlines() if line.startswith("│")]
    return {row[0]: row[2:] for row in rows}


def test_made_up_tables(run, folder):
    done = run(folder)
    assert done.returncode == 0, done.stderr
    for name in TABLES:
        printed = scores(done.stdout, name)
        assert f"{name}: 4 models, quality valid_ppl, 1 pairs within 10%" in done.stdout
        # one pair of six is the wrong way round: tau (5 - 1) / 6, rho 1 - 6 * 2 / (4 * 15)
        assert printed["decoder_parameters"] == ["0.800", "0.667", "0.000"]
        assert printed["total parameters"] == ["0.800", "0.667", "0.000"]
    assert done.stdout.count("the table's own: 0\n") == len(TABLES)
    encoders = scores(done.stdout, "BERT_benchmark")
    assert encoders["decoder_parameters"] == ["1.000", "1.000", "nan"]
    assert encoders["Head Confidence"] == ["-1.000", "-1.000", "nan"]


def test_a_missing_table_is_one_line(run, folder):
    (folder / "nas" / "training_free_nas" / "BERT_benchmark.json.gz").unlink()
    done = run(folder)
    assert done.returncode == 2 and done.stderr.startswith("proxies.py: there is no ") and done.stderr.count("\n") == 1


needs_data = pytest.mark.skipif(
    DATA_DIR is None, reason="HF_ELASTIC_DATA_DIR is not set; it names a folder with nas/lts_archai and nas/training_free_nas"
)


@needs_data
def test_recorded_parameters_of_encoders_are_of_hidden_256_and_feed_forward_1024(benchmark_module):
    tables = benchmark_module("proxies_tables")
    folder = Path(DATA_DIR) / "nas" / "training_free_nas"
    models = json.loads(gzip.decompress((folder / "BERT_benchmark.json.gz").read_bytes()))
    alike = []
    for model in models:
        overrides = model["hparams"]["model_hparam_overrides"]
        layers = [{**layer, "feed_forward_dimension": 1024} for layer in overrides["nas_config"]["encoder_layers"]]
        alike.append({"hidden_size": 256, "nas_config": {"encoder_layers": layers}})
    with (folder / "BERT_results_activation.csv").open(newline="") as file:
        recorded = {int(row["ID"]): int(row["Number of Parameters"]) for row in csv.DictReader(file)}
    shapes = tables.flexibert_shapes(alike)
    ours = (shapes.attention + shapes.ffn + shapes.other).sum(1)
    # Words, positions and types of width 128, their norm, and the projection to 256.
    embeddings = (30522 + 512 + 2 + 2) * 128 + 128 * 256 + 256
    assert [recorded[model["id"]] for model in models] == [int(count) + embeddings for count in ours]


@needs_data
def test_published_results(run):
    done = run(Path(DATA_DIR))
    assert done.returncode == 0, done.stderr
    gpt2, transfo_xl = (scores(done.stdout, name) for name in ("random_GPT2_wt103", "random_TransXL_lm1b"))
    assert [gpt2["decoder_parameters"][i] for i in (0, 2)] == ["0.967", "0.582"]
    assert [transfo_xl["decoder_parameters"][i] for i in (0, 2)] == ["0.999", "0.830"]
    assert done.stdout.count("the table's own: 0\n") == len(TABLES)
    assert float(gpt2["capacity"][0]) >= 0.98 and float(gpt2["capacity"][2]) >= 0.75
    assert all(float(scores(done.stdout, name)["capacity"][0]) >= 0.98 for name in TABLES)
    assert "fitted here: attention 0.39, heads 0.20, w 109" in done.stdout
