"""What is timed, peak memory in fresh processes, device profiles, and costs that are predicted from them."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, BertForSequenceClassification, GPT2LMHeadModel

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification
from hf_elastic.cli.main import main
from hf_elastic.measure.cost_model import CostModel, features
from hf_elastic.measure.digests import architecture_digest
from hf_elastic.measure.memory import PeakMemory, measure_memory
from hf_elastic.measure.profile import DeviceProfile, Measured, check_machine, measure_profile, spread_subnets
from hf_elastic.measure.workload import Workload
from hf_elastic.search import Latency, search_subnets

SPACE = {"num_hidden_layers": [1, 2, 3, 4], "intermediate_size": [16, 48], "num_attention_heads": [2, 4]}
linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


def classifier(**changes):
    base = tiny.randomize(BertForSequenceClassification(tiny.config_of("bert", num_labels=3, **changes)))
    return ElasticForSequenceClassification.from_base(base, space=SPACE, subnets={"small": {"num_hidden_layers": 2}})


def decoder():
    base = tiny.randomize(GPT2LMHeadModel(tiny.config_of("gpt2")))
    return ElasticForCausalLM.from_base(base, space=SPACE)


@pytest.mark.parametrize("runtime", ["torch", "torch.compile", "onnxruntime", "openvino"])
def test_every_runtime_computes_the_same(runtime, tmp_path):
    """What is timed is the model's own forward: its logits are those of the view."""
    if runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
    model, target = classifier(), Workload(2, 6, runtime=runtime)
    subnet = model.subnet("small")
    with torch.inference_mode():
        expected = model.view(subnet)(**target.make_input(model)).logits
        result = target.call(model, subnet, tmp_path)()
    logits = result["logits"] if runtime != "openvino" else next(iter(result.values()))
    torch.testing.assert_close(torch.as_tensor(np.asarray(logits)), expected, atol=1e-4, rtol=1e-4)


def test_a_token_after_a_prompt_is_timed_with_the_cache_of_the_prompt(tmp_path):
    """Called again and again, the cache stays that of the prompt, and the answer that of the whole text."""
    model, target = decoder(), Workload(2, 5, phase="token")
    subnet = model.subnet({"num_hidden_layers": 3})
    ids = target.make_input(model)["input_ids"]
    with torch.inference_mode():
        call = target.call(model, subnet, tmp_path)
        expected = model.view(subnet)(input_ids=torch.cat([ids, ids[:, -1:]], dim=1)).logits[:, -1:]
        for _ in range(3):
            torch.testing.assert_close(call().logits, expected, atol=1e-4, rtol=1e-4)
        prefilled = Workload(2, 5, phase="prefill").call(model, subnet, tmp_path)()
    assert prefilled.past_key_values.get_seq_length() == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tvm"}, "runtime: 'tvm' is unknown; known: torch, torch.compile, onnxruntime, openvino"),
        ({"phase": "decode"}, "phase: 'decode' is unknown; known: forward, prefill, token"),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ({"runtime": "onnxruntime", "phase": "token"}, "onnxruntime has: forward"),
    ],
)
def test_bad_targets(options, message):
    with pytest.raises(ValueError, match=message):
        Workload(**options)


def test_a_phase_that_the_model_does_not_have():
    with pytest.raises(ValueError, match="for causal language models; ElasticForSequenceClassification has: forward"):
        Workload(phase="token").measure(classifier(), [classifier().subnet(None)])


@pytest.mark.parametrize("phase", ["prefill", "token"])
def test_a_phase_without_a_key_value_cache(phase):
    base = AutoModelForCausalLM.from_config(tiny.config_of("transformer_xl"))
    model = ElasticForCausalLM.from_base(base, importance="none")
    with pytest.raises(ValueError, match=f"phase: '{phase}' needs a key-value cache, which transformer_xl has not"):
        Workload(1, 4, phase=phase).measure(model, [model.subnet(None)])


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(device, tmp_path, capsys):
    options = ["--model", str(tmp_path), "--output", str(tmp_path / "profile.json"), "--device", device]
    assert main(["measure", *options]) == 2
    error = capsys.readouterr().err
    assert f"error: device: {device!r} cannot be used here: " in error and error.count("\n") == 1


@linux
def test_peak_memory_is_a_peak():
    """Weights, and for a batch the activations on top, all within one process's high-water mark; MB."""
    wide = {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 2048, "vocab_size": 5000}
    base = BertForSequenceClassification(tiny.config_of("bert", max_position_embeddings=256, **wide))
    model = ElasticForSequenceClassification.from_base(base, space={"num_hidden_layers": [1, 4]}, importance="none")
    subnets = [model.subnet("largest"), model.subnet("smallest")]
    short = measure_memory(model, subnets, Workload(1, 8, threads=1))
    long = measure_memory(model, subnets[:1], Workload(16, 256, threads=1))[subnets[0]]
    weights = [4e-6 * model.num_parameters_of(subnet) for subnet in subnets]
    for subnet, megabytes in zip(subnets, weights):
        assert megabytes < short[subnet].loaded_mb <= short[subnet].peak_mb < megabytes + 60
    assert short[subnets[0]].peak_mb - short[subnets[1]].peak_mb == pytest.approx(weights[0] - weights[1], rel=0.35)
    # 16 x 256 tokens x 2048 channels of the feed-forward's inside are 34 MB, in and out of its activation.
    assert long.peak_mb > short[subnets[0]].peak_mb + 34


@linux
def test_a_process_that_fails_says_why(monkeypatch):
    model = classifier(max_position_embeddings=8)
    with pytest.raises(ValueError, match=r"peak memory of Subnet.*(Runtime|Index)Error"):
        measure_memory(model, [model.subnet(None)], Workload(1, 9))


def test_spread_subnets_reach_both_ends():
    space = classifier().space
    found = spread_subnets(space, 10, seed=1)
    assert found[:2] == [space.largest, space.smallest] and len(set(found)) == 10
    assert len(spread_subnets(space, 1000)) == len(space)
    assert {subnet["num_hidden_layers"] for subnet in found} == {1, 2, 3, 4}


def made_up_profile(model, subnets, *, noise=0.0, machine=None, memory=True):
    """A profile whose costs are a sum over layers and widths, as those of real machines nearly are."""
    generator = np.random.default_rng(0)
    measured = []
    for subnet in subnets:
        cost = 0.5 + 1e-6 * model.flops_of(subnet) * (1 + noise * generator.standard_normal())
        latency = Latency.from_samples([cost * (1 + step / 100) for step in range(-3, 4)])
        measured.append(Measured(model.subnet(subnet), latency, PeakMemory(10 * cost, 5 * cost) if memory else None))
    real = measure_profile(model, Workload(1, 8, threads=1), memory=False, repeats=1)
    return DeviceProfile({**real.machine, **(machine or {})}, real.target, architecture_digest(model), measured)


def test_cost_model_predicts_sums_exactly_and_says_how_well():
    model = classifier()
    measured, others = spread_subnets(model.space, 10), list(model.space.enumerate())
    profile = made_up_profile(model, measured)
    fitted = CostModel.fit(model, measured, [one.latency.median_ms for one in profile.measured])
    np.testing.assert_allclose(fitted.predict(model, others), [0.5 + 1e-6 * model.flops_of(s) for s in others], rtol=0.02)
    assert fitted.error < 0.05 and fitted.rank_correlation > 0.9
    random = CostModel.fit(model, others, np.random.default_rng(0).random(len(others)) + 0.1)
    assert random.error > 0.3 and abs(random.rank_correlation) < 0.6
    with pytest.raises(ValueError, match="at least 8 measured sizes, got 3"):
        CostModel.fit(model, others[:3], [1, 2, 3])


@pytest.mark.parametrize("name", tiny.CONFIGS)
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
    profile = measure_profile(model, Workload(1, 4, threads=1), ("largest", "small"), 4, memory=False, repeats=3)
    assert len(profile.measured) == 4 and profile.machine["torch_threads"] == 1
    profile.save(tmp_path / "profile.json")
    assert DeviceProfile.load(tmp_path / "profile.json") == profile
    (tmp_path / "other.json").write_text('{"machine": {}}')
    for name, message in (("other", "lacks the key 'target'"), ("missing", "No such file")):
        with pytest.raises(ValueError, match=message):
            DeviceProfile.load(tmp_path / f"{name}.json")


def quality(view):
    return {"accuracy": sum(parameter.numel() for parameter in view.parameters()) / 1e5}


def test_search_predicts_and_measures_the_frontier(tmp_path):
    """Sizes over a limit are refused before they are evaluated; the frontier's costs are of this machine."""
    model = classifier()
    profile = made_up_profile(model, list(model.space.enumerate()))
    median = float(np.median([one.latency.median_ms for one in profile.measured]))
    seen = []
    frontier = search_subnets(
        model,
        ["accuracy", "latency"],
        compute_quality=lambda view: seen.append(view) or quality(view),
        latency_profile=profile,
        threads=1,
        sequence_length=8,
        constraints=[f"latency_ms<={median}"],
        progress=False,
    )
    assert len(seen) < len(model.space)
    assert all(point.details["latency_ms_is"] == "measured" for point in frontier.points)
    assert any(point.details["latency_ms_is"] == "predicted" for point in frontier.evaluated)


@pytest.mark.parametrize("most", [0, 2])
def test_only_some_of_the_predicted_frontier_are_measured(most):
    """What is not measured leaves the frontier and says why; the constraints still hold."""
    model = classifier()
    profile = made_up_profile(model, list(model.space.enumerate()), memory=False)
    options = {"compute_quality": quality, "latency_profile": profile, "progress": False}
    whole = search_subnets(model, ["accuracy", "latency"], measure_at_most=0, **options)
    assert {point.details["latency_ms_is"] for point in whole.evaluated} == {"predicted"}
    assert len(whole.points) > 2
    frontier = search_subnets(model, ["accuracy", "latency"], measure_at_most=most, **options)
    measured = [point for point in frontier.evaluated if point.details["latency_ms_is"] == "measured"]
    assert len([point for point in measured if point.feasible]) == most
    assert {point.details["latency_ms_is"] for point in frontier.points} == {"measured" if most else "predicted"}
    if most:
        left_out = [point for point in frontier.evaluated if not point.feasible]
        assert len(left_out) == len(model.space) - most
        assert all("not among the 2 that were chosen to be measured" in point.details["infeasible"][0] for point in left_out)


def test_how_many_to_measure_is_for_predictions():
    with pytest.raises(ValueError, match="measure_at_most is for a search with latency_profile"):
        search_subnets(classifier(), compute_quality=quality, measure_at_most=3)
    with pytest.raises(ValueError, match="measure_at_most must be an integer of at least 0, got -1"):
        search_subnets(classifier(), compute_quality=quality, measure_at_most=-1)


@pytest.mark.parametrize(
    ("option", "ours", "theirs"),
    [
        ("threads", 2, 1),
        ("sequence_length", 128, 8),
        ("latency_batch_size", 3, 1),
        ("runtime", "openvino", "torch"),
        ("phase", "forward", "prefill"),  # a default counts where it is given
    ],
)
def test_options_that_contradict_the_profile(option, ours, theirs):
    if ours == "openvino":
        pytest.importorskip("openvino")
    model = classifier()
    profile = made_up_profile(model, list(model.space.enumerate()), memory=False)
    if option == "phase":
        profile = replace(profile, target=replace(profile.target, phase=theirs))
    with pytest.raises(ValueError, match=f"{option}: {ours!r} is asked for, and the profile was measured with {theirs!r}"):
        search_subnets(model, compute_quality=quality, latency_profile=profile, progress=False, **{option: ours})


@linux
def test_two_processes_find_the_same_peaks():
    """Weights of zeros weigh as much: the peak is at least that of the parameters."""
    model = classifier(hidden_size=256, intermediate_size=512, num_attention_heads=4, vocab_size=20000)
    subnets = [model.subnet({"num_hidden_layers": depth}) for depth in (1, 4)]
    one, two = (measure_memory(model, subnets, Workload(1, 8, 1), workers=workers) for workers in (1, 2))
    for subnet in subnets:
        assert one[subnet].peak_mb > 4e-6 * model.num_parameters_of(subnet)
        assert abs(one[subnet].peak_mb - two[subnet].peak_mb) < 0.1 * one[subnet].peak_mb
    with pytest.raises(ValueError, match="workers must be an integer of at least 1, got 0"):
        measure_memory(model, subnets, Workload(1, 8, 1), workers=0)


def test_a_profile_of_another_machine_is_refused_or_stays_predicted(tmp_path):
    model = classifier()
    elsewhere = made_up_profile(model, list(model.space.enumerate()), machine={"processor": "Other", "torch_threads": 7})
    elsewhere.save(tmp_path / "profile.json")
    options = {"compute_quality": quality, "latency_profile": tmp_path / "profile.json", "progress": False}
    with pytest.raises(ValueError, match=r"processor is .* here, 'Other' in the profile.*torch_threads.*--force"):
        search_subnets(model, **options)
    frontier = search_subnets(model, ["accuracy", "latency", "peak_memory"], force=True, **options)
    assert len(frontier.facts["warnings"]) == 2 and frontier.facts["machine"]["processor"] == "Other"
    assert all(point.details["peak_memory_mb_is"] == "predicted" for point in frontier.points)
    with pytest.raises(ValueError, match="another model"):
        search_subnets(classifier(num_hidden_layers=5), force=True, **options)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_profile_of_another_version_of_the_runtime_is_refused(runtime, monkeypatch):
    module = pytest.importorskip(runtime)
    model = classifier()
    profile = measure_profile(model, Workload(1, 4, 1, runtime=runtime), ("smallest",), memory=False, repeats=1)
    assert profile.machine[runtime] == module.__version__
    assert check_machine(profile, model, force=False) == []
    monkeypatch.setattr(module, "__version__", "0.0.1")
    with pytest.raises(ValueError, match=f"{runtime} is '0.0.1' here, '{profile.machine[runtime]}' in the profile"):
        check_machine(profile, model, force=False)
    torch_profile = measure_profile(model, Workload(1, 4, 1), ("smallest",), memory=False, repeats=1)
    assert runtime not in torch_profile.machine


@linux
def test_peak_memory_as_an_objective():
    model = classifier()
    options = {"compute_quality": quality, "constraints": ["num_hidden_layers<=1"], "sequence_length": 4, "progress": False}
    with pytest.raises(ValueError, match="unknown value 'num_hidden_layers'"):
        search_subnets(model, ["loss", "peak_memory"], **{**options, "compute_quality": None})
    smaller = ElasticForSequenceClassification.from_base(model.base, space={"num_hidden_layers": [1, 4]}, importance="none")
    options["constraints"] = []
    frontier = search_subnets(smaller, ["accuracy", "peak_memory"], **options)
    assert {point.details["peak_memory_mb_is"] for point in frontier.evaluated} == {"measured"}


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
