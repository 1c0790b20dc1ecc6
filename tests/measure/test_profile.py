"""Device profiles, costs that are predicted from them, and the command."""

import json

import numpy as np
import pytest
import tiny
import torch
from measuring import classifier

from hf_elastic.cli.main import main
from hf_elastic.measure.config import MeasureConfig
from hf_elastic.measure.cost_model import CostModel, features
from hf_elastic.measure.profile import DeviceProfile, check_machine, measure_profile, spread_subnets


def test_spread_subnets_reach_both_ends():
    space = classifier().space
    found = spread_subnets(space, 10, seed=1)
    assert found[:2] == [space.largest, space.smallest] and len(set(found)) == 10
    assert len(spread_subnets(space, 1000)) == len(space)
    assert {subnet["num_hidden_layers"] for subnet in found} == {1, 2, 3, 4}


def test_cost_model_predicts_sums_exactly_and_says_how_well():
    model = classifier()
    measured, others = spread_subnets(model.space, 10), list(model.space.enumerate())
    fitted = CostModel.fit(model, measured, [0.5 + 1e-6 * model.flops_of(subnet) for subnet in measured])
    np.testing.assert_allclose(fitted.predict(model, others), [0.5 + 1e-6 * model.flops_of(s) for s in others], rtol=0.02)
    assert fitted.error < 0.05 and fitted.rank_correlation > 0.9
    random = CostModel.fit(model, others, np.random.default_rng(0).random(len(others)) + 0.1)
    assert random.error > 0.3 and abs(random.rank_correlation) < 0.6
    with pytest.raises(ValueError, match="at least 8 measured sizes, got 3"):
        CostModel.fit(model, others[:3], [1, 2, 3])


@pytest.mark.parametrize("name", tiny.backbones())
def test_features_see_every_axis(name):
    """Whatever a backbone calls its axes: two sizes that differ in one differ in a feature."""
    from transformers import AutoModel

    from hf_elastic import ElasticModel

    model = ElasticModel.from_base(AutoModel.from_config(tiny.config_of(name)), space=tiny.space_of(name), importance="none")
    extremes = list(model.space.extremes())
    rows = features(model, extremes)
    assert rows.shape[0] == len(extremes) and rows.max() <= 1
    cuts = [model.resolve(subnet) for subnet in extremes]
    for row, cut in zip(rows, cuts):
        assert np.allclose(row, 1) == (cut == model.resolve(None))


def test_profile_is_saved_and_loaded(tmp_path):
    model = classifier()
    profile = measure_profile(
        model, subnets=["largest", "small"], num_subnets=4, sequence_length=4, threads=1, memory=False, repeats=3
    )
    assert len(profile.measured) == 4 and profile.machine["torch_threads"] == 1
    profile.save(tmp_path / "profile.json")
    assert DeviceProfile.load(tmp_path / "profile.json") == profile
    (tmp_path / "other.json").write_text('{"machine": {}}')
    for name, message in (("other", "lacks the key 'target'"), ("missing", "No such file")):
        with pytest.raises(ValueError, match=message):
            DeviceProfile.load(tmp_path / f"{name}.json")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_profile_of_another_version_of_the_runtime_is_refused(runtime, monkeypatch):
    module = pytest.importorskip(runtime)
    model = classifier()
    profile = measure_profile(model, subnets=["smallest"], sequence_length=4, threads=1, runtime=runtime, memory=False, repeats=1)
    assert profile.machine[runtime] == module.__version__
    assert check_machine(profile, model, force=False) == []
    monkeypatch.setattr(module, "__version__", "0.0.1")
    with pytest.raises(ValueError, match=f"{runtime} is '0.0.1' here, '{profile.machine[runtime]}' in the profile"):
        check_machine(profile, model, force=False)
    torch_profile = measure_profile(model, subnets=["smallest"], sequence_length=4, threads=1, memory=False, repeats=1)
    assert runtime not in torch_profile.machine


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(device, tmp_path, capsys):
    options = ["--model", str(tmp_path), "--output", str(tmp_path / "profile.json"), "--device", device]
    assert main(["measure", *options]) == 2
    error = capsys.readouterr().err
    assert f"error: device: {device!r} cannot be used here: " in error and error.count("\n") == 1


def test_command_line(tmp_path, capsys):
    model = classifier()
    model.save_pretrained(tmp_path / "model")
    command = ["measure", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "p.json"), "--sequence_length", "8"]
    options = ["--num_subnets", "9", "--repeats", "3", "--threads", "1", "--memory", "false"]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert "small" in printed and "latency_ms of other sizes, predicted" in printed
    assert "(3 samples, " in printed and "warning: 9 of 9 latencies are of fewer than 6 samples" in printed
    assert len(json.loads((tmp_path / "p.json").read_text())["measured"]) == 9
    assert main([*command, *options]) == 2
    assert "is there already; add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--subnets", "huge"]) == 2
    assert "unknown subnet 'huge'; known: full, largest, smallest, small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subnets": "small"}, "subnets must be a list of names, got 'small'"),
        ({"num_subnets": -1}, "num_subnets must be an integer of at least 0, got -1"),
        ({"memory_workers": 0}, "memory_workers must be an integer of at least 1, got 0"),
        ({"repeats": 0}, "repeats must be"),
        ({"phase": "decode"}, "phase: 'decode' is unknown"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MeasureConfig(**options)


def test_what_is_no_elastic_model_is_named_by_its_type():
    with pytest.raises(ValueError, match="model must be an elastic model, got Linear; make one"):
        measure_profile(torch.nn.Linear(2, 2))
