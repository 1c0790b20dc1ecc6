"""What recipes/benchmarks/sizes.py says of its recorded runs."""

import json

import pytest

from hf_elastic.training.sampling import check_size_weights, make_sampler

pytestmark = pytest.mark.benchmark


def record(folder, name, seed, **accuracy):
    (folder / f"{name}-{seed}.json").write_text(
        json.dumps({"seed": seed, "sizes": {size: {"accuracy": value} for size, value in accuracy.items()}})
    )


def test_differences_are_paired_by_seed(tmp_path, benchmark_module):
    sizes = benchmark_module("sizes")
    runs = sizes.Runs("sst2", "unused", tmp_path)
    runs.folder.mkdir()
    for seed, elastic in enumerate((0.80, 0.90, 0.85)):
        record(runs.folder, "elastic", seed, largest=0.9, size50=elastic)
    record(runs.folder, "plain-size50", 0, size50=0.79)
    record(runs.folder, "plain-size50", 1, size50=0.93)
    record(runs.folder, "plain-size50", 3, size50=0.10)  # no elastic run has this seed
    record(runs.folder, "elastic", 12, largest=0.9, size50=0.80)
    record(runs.folder, "plain-size50", 12, size50=0.78)
    assert sizes.paired_differences(runs, "plain", "size50", "accuracy") == pytest.approx({0: 1.0, 1: -3.0, 12: 2.0})
    assert sizes.paired_differences(runs, "distilled", "size50", "accuracy") == {}


def test_mean_and_error(benchmark_module):
    sizes = benchmark_module("sizes")
    assert sizes.mean_and_error([1.0, -3.0]) == "-1.00 ± 2.00"
    assert sizes.mean_and_error([0.25]) == "+0.25"
    assert sizes.mean_and_error([]) == "-"


def test_the_recorded_table_is_printed(benchmark_module, capsys, monkeypatch):
    sizes = benchmark_module("sizes")
    monkeypatch.setattr(
        "sys.argv", ["sizes.py", "table", "qnli", "--output", str(sizes.RECIPES["qnli"].parents[1] / "benchmarks/results")]
    )
    sizes.main()
    printed = capsys.readouterr().out
    assert "paired by seed" in printed and "elastic minus" in printed and "mean of the smaller" in printed


def test_chosen_runs_are_compared_with_the_first(benchmark_module, capsys):
    benchmark_module("sizes").compare([{"elastic": 2.0, "pcgrad": 3.0}, {"elastic": 4.0, "pcgrad": 8.0}])
    printed = capsys.readouterr().out
    assert "elastic: 1.00 of elastic" in printed and "pcgrad: 1.75 of elastic (median of 2 rounds)" in printed


@pytest.mark.parametrize("task", ["sst2", "mrpc", "qnli", "cola", "wikitext2"])
def test_variants_fit_every_recipe(task, benchmark_module, tmp_path):
    """The options that a variant changes go together with those that it leaves."""
    found = benchmark_module("sizes_runs")
    runs = found.Runs(task, "unused", tmp_path)
    model = runs.without_weights()
    for changes in found.VARIANTS.values():
        args = runs.arguments("train", 0, str(tmp_path), changes)
        check_size_weights(make_sampler(model, args), args.size_weights)
