"""LoRA adapters of peft: cut along with the weights, in views, in training, in counts and on disk."""

import contextlib

import pytest
import torch
from adapted import SMALL, TARGETS, adapted, classifier, close, differ, logits_of, lora, subnets_of
from peft import PeftModel, get_peft_model
from tiny import batch, randomize
from torch.utils.flop_counter import FlopCounterMode
from zeroing import keep_only

from hf_elastic import ElasticForSequenceClassification
from hf_elastic.core.adapters import plain_name


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"lora_bias": True}, id="bias", marks=pytest.mark.slow),
        pytest.param({"use_rslora": True, "rank_pattern": {"query": 2}}, id="rslora", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("model_type", TARGETS)
def test_a_sliced_adapter_equals_the_merged_one(model_type, options):
    if "lora_bias" in options:  # needs linear layers with a bias
        options = {
            **options,
            "target_modules": [t for t in TARGETS[model_type] if "emb" not in t and t not in ("wte", "project_in")],
        }
        if model_type in ("llama", "phi3", "gemma3_text"):
            pytest.skip("no biases")
    model, peft_model = adapted(model_type, **options)
    subnets = subnets_of(model)
    sliced = [logits_of(model, subnet) for subnet in subnets]
    with peft_model.disable_adapter():
        plain = [logits_of(model, subnet) for subnet in subnets]
    merged = peft_model.merge_and_unload()
    assert merged is model
    for subnet, before, without in zip(subnets, sliced, plain):
        assert differ(before, without), subnet
        extracted = model.extract(subnet)
        with torch.no_grad():
            close(before, extracted(**batch()).logits)
        close(before, logits_of(model, subnet))


@pytest.mark.parametrize("model_type", TARGETS)
def test_gradients_reach_only_the_adapters_slice(model_type):
    model, peft_model = adapted(model_type)
    model.train()
    model.select(SMALL)
    peft_model(**batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
    cut, seen = model.resolve(SMALL), set()
    for entry in model.layout.entries:
        parameter = model.get_parameter(entry.name)
        is_trained = ".lora_" in entry.name or ".modules_to_save." in entry.name
        assert parameter.requires_grad == is_trained, entry.name
        if not is_trained or entry.layer not in (None, *cut.layers):
            assert parameter.grad is None, entry.name
            continue
        kept = cut.sizes(None if entry.layer is None else cut.layers.index(entry.layer))
        assert parameter.grad.abs().sum() > 0, entry.name
        assert torch.equal(parameter.grad, keep_only(parameter.grad, entry.dims, model.layout.full, kept)), entry.name
        seen.add(entry.name.rpartition("lora_")[2].split(".")[0])
    assert {"A", "B"} <= seen
    assert any(".modules_to_save." in entry.name for entry in model.layout.entries)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_a_training_step_of_a_size_equals_that_of_the_extracted_model(model_type):
    """The gradients of a size's factors are those of the same factors on the extracted model."""
    targets = [t for t in TARGETS[model_type] if t not in ("word_embeddings", "wte", "embed_tokens")]
    model, _ = adapted(model_type, target_modules=targets, modules_to_save=None)
    model.select(SMALL)
    with torch.enable_grad():
        model(**batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
    view = model.view(SMALL)
    for parameter in view.parameters():
        parameter.requires_grad_(True)
    view(**batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
    plan = model.layout.plan(model.resolve(SMALL))
    compared = 0
    for name, parameter in view.named_parameters():
        source, steps = plan[name][0].name, plan[name][1]
        gradient = model.get_parameter(source).grad
        if gradient is not None:
            for position, selection in steps:
                index = torch.arange(selection) if isinstance(selection, int) else selection
                gradient = gradient.index_select(position, index)
            close(gradient, parameter.grad)
            compared += ".lora_" in name
    assert compared >= 4 * len(targets)


@pytest.mark.parametrize("model_type", TARGETS)
@torch.no_grad()
def test_counts_are_those_of_the_view(model_type):
    model = classifier(model_type, attn_implementation="eager")
    peft_model = randomize(get_peft_model(model, lora(model_type)))
    with_adapter = model.num_parameters_of(SMALL)
    inputs = {"input_ids": batch(length=7, rows=2)["input_ids"]}
    for context in (contextlib.nullcontext(), peft_model.disable_adapter()):
        with context:
            for subnet in subnets_of(model, 4):
                view = model.view(subnet)
                assert model.num_parameters_of(subnet) == sum(p.numel() for p in view.parameters())
                with FlopCounterMode(display=False) as counter:
                    view(**inputs)
                seen = counter.get_flop_counts()
                rotary = sum(sum(ops.values()) for name, ops in seen.items() if "rotary_emb" in name)  # transformers 4.57
                assert model.flops_of(subnet, 2, 7) == counter.get_total_flops() - rotary, subnet
    peft_model.merge_and_unload()
    assert model.num_parameters_of(SMALL) < with_adapter


@pytest.mark.parametrize("model_type", TARGETS)
def test_an_adapter_is_saved_and_loaded_alone(model_type, tmp_path):
    classifier(model_type).save_pretrained(tmp_path / "base")
    base = ElasticForSequenceClassification.from_pretrained(tmp_path / "base")
    peft_model = randomize(get_peft_model(base, lora(model_type)), seed=1)
    randomize(base)
    classifier_before = base.state_dict()
    with pytest.raises(ValueError, match=r"live adapters \(default\): merge"):
        base.save_pretrained(tmp_path / "no")
    # The frozen weights have to be those on disk.
    fresh = ElasticForSequenceClassification.from_pretrained(tmp_path / "base").state_dict()
    for name, tensor in classifier_before.items():
        if ".lora_" not in name and ".modules_to_save." not in name:
            tensor.copy_(fresh[plain_name(name)])
    peft_model.save_pretrained(tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    again = ElasticForSequenceClassification.from_pretrained(tmp_path / "base")
    before = logits_of(again, SMALL)
    restored = PeftModel.from_pretrained(again, tmp_path / "adapter")
    for subnet in (None, SMALL):
        close(logits_of(again, subnet), logits_of(base, subnet))
    assert differ(before, logits_of(again, SMALL))
    config = restored.peft_config["default"]
    assert config.base_model_name_or_path == str(tmp_path / "base")
