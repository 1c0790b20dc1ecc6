"""An elastic model behaves as a Hugging Face user expects: Auto classes, copies, dtypes, remote code."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from elastic_heads import (
    HEADS,
    PER_LAYER,
    SMALL,
    SPACE,
    SUBNETS,
    TOLERANCE,
    assert_same,
    classifier,
    inputs_of,
    labels_of,
    masked_lm,
    train_step,
)
from tiny import batch, config_of, randomize
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_elastic import ElasticConfig, ElasticForCausalLM, ElasticForSequenceClassification, ElasticModel

# --- making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("elastic_class", "auto_class"), HEADS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ["folder", "model"])
def test_from_base(elastic_class, auto_class, kind, tmp_path):
    changes = {"is_decoder": True} if elastic_class is ElasticForCausalLM else {}
    base = randomize(auto_class.from_config(config_of("bert", **changes)))
    source = base
    if kind == "folder":
        base.save_pretrained(tmp_path)
        source = str(tmp_path)
    model = elastic_class.from_base(source, space=SPACE, subnets=SUBNETS)
    inputs = inputs_of(elastic_class)
    assert not model.training
    with torch.no_grad():
        assert_same(model(**inputs), base(**inputs))
        model.select("small")
        assert_same(model(**inputs), model.extract("small")(**inputs))
    labels = labels_of(elastic_class, inputs)
    if labels:
        assert train_step(model, **inputs, **labels).isfinite()


def test_from_base_passes_keywords_on(tmp_path):
    AutoModelForMaskedLM.from_config(config_of("bert")).save_pretrained(tmp_path)
    model = ElasticForSequenceClassification.from_base(str(tmp_path), num_labels=5, dtype=torch.bfloat16)
    assert model.num_labels == model.config.num_labels == 5
    assert model.dtype == torch.bfloat16
    assert model(**batch()).logits.shape == (3, 5)


@pytest.mark.parametrize(
    ("auto_class", "elastic_class"),
    [(AutoModelForCausalLM, ElasticForCausalLM), (AutoModelForSequenceClassification, ElasticForSequenceClassification)],
)
def test_from_config(auto_class, elastic_class):
    model = auto_class.from_config(ElasticConfig(base_config=config_of("gpt2"), space=SPACE, subnets=SUBNETS))
    assert isinstance(model, elastic_class)
    assert model.base.config.n_embd == 32
    inputs = batch()
    for subnet in (None, "small"):
        model.select(subnet)
        labels = labels_of(elastic_class, inputs)
        assert train_step(model, **inputs, **labels) > train_step(model, **inputs, **labels)


def test_from_config_initialises_as_the_stock_class():
    torch.manual_seed(3)
    stock = AutoModelForCausalLM.from_config(config_of("gpt2"))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(ElasticConfig(base_config=config_of("gpt2")))
    for name, parameter in stock.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


# --- saving and loading ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_from_pretrained_selects_a_subnet(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    expected = model.view("small")(**batch()).logits
    for subnet in ("small", SMALL):
        small = AutoModelForSequenceClassification.from_pretrained(tmp_path, subnet=subnet)
        assert isinstance(small, ElasticForSequenceClassification)
        assert small.config.subnet == subnet
        assert torch.equal(small(**batch()).logits, expected)
    full = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert full.config.subnet is None
    assert torch.equal(full(**batch()).logits, model(**batch()).logits)
    small.save_pretrained(tmp_path / "selected")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "selected")
    assert torch.equal(again(**batch()).logits, expected)


@torch.no_grad()
def test_another_head_and_number_of_labels(tmp_path):
    model = masked_lm()
    model.save_pretrained(tmp_path)
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert isinstance(again, ElasticForSequenceClassification)
    assert again.num_labels == again.config.num_labels == again.config.base_config.num_labels == 5
    assert again(**batch()).logits.shape == again.view("small")(**batch()).logits.shape == (3, 5)
    assert {"classifier.weight", "classifier.bias"} <= set(info["missing_keys"])
    assert all(key.startswith("cls.") for key in info["unexpected_keys"])
    backbone = [name for name, _ in model.named_parameters() if name.startswith("bert.")]
    assert backbone
    for name in backbone:
        assert torch.equal(again.get_parameter(name), model.get_parameter(name)), name
    assert again.classifier.weight.isfinite().all()
    again.save_pretrained(tmp_path / "classifier")
    reloaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(reloaded(**batch()).logits, again(**batch()).logits)


@torch.no_grad()
def test_headless_checkpoint_into_a_head_and_back(tmp_path):
    base = randomize(AutoModel.from_config(config_of("bert")))
    ElasticModel.from_base(base, space=SPACE).save_pretrained(tmp_path / "backbone")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "backbone", num_labels=4)
    assert torch.equal(
        again.bert.encoder.layer[1].output.dense.weight,
        ElasticModel.from_pretrained(tmp_path / "backbone").encoder.layer[1].output.dense.weight,
    )
    again.save_pretrained(tmp_path / "head")
    headless = AutoModel.from_pretrained(tmp_path / "head")
    assert torch.equal(headless.encoder.layer[1].output.dense.weight, again.bert.encoder.layer[1].output.dense.weight)


def test_dtype(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {p.dtype for p in half.view("small").parameters()} == {torch.bfloat16}
    assert half(**batch()).logits.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half", dtype="auto")
    assert again.dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "gpt_neox", "llama"])
@torch.no_grad()
def test_cast_views_equal_extract(model_type):
    model = classifier(model_type)
    model.view("small")
    model.to(torch.bfloat16)
    for subnet in ("small", "largest"):
        view = model.view(subnet)
        assert {p.dtype for p in view.parameters()} == {torch.bfloat16}
        inputs = {"input_ids": batch()["input_ids"][:1]}
        torch.testing.assert_close(view(**inputs).logits, model.extract(subnet)(**inputs).logits, atol=1e-2, rtol=0)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@torch.no_grad()
def test_copies_are_independent(model_type, way):
    model = classifier(model_type)
    model.select("small")
    expected = model(**batch()).logits
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(**batch()).logits, expected)
    assert twin.base.config is not model.base.config
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(**batch()).logits, expected)
    assert twin(**batch()).logits.abs().max() == 0
    with torch.enable_grad():
        train_step(twin, **batch(), labels=torch.tensor([0, 1, 2]))
    assert torch.equal(model(**batch()).logits, expected)


# Runs in an interpreter where this package cannot be imported.
REMOTE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_elastic":
            raise ImportError("hf_elastic is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(1)
results = {}
for name, arguments in json.loads(sys.argv[2]).items():
    folder = f"{sys.argv[1]}/{name.partition('-')[0]}"
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **arguments)
    with torch.no_grad():
        results[name] = model(**torch.load(f"{sys.argv[1]}/inputs.pt")).logits.tolist()
    model.save_pretrained(f"{sys.argv[1]}/again-{name}")
    results[name + "-class"] = type(model).__module__
print(json.dumps(results))
"""


@torch.no_grad()
def test_trust_remote_code_without_this_package(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path / "supernet")
    model.extract(PER_LAYER).save_pretrained(tmp_path / "frozen")
    torch.save(batch(), tmp_path / "inputs.pt")
    runs = {"supernet-full": {}, "supernet-small": {"subnet": "small"}, "supernet-other": {"subnet": PER_LAYER}, "frozen": {}}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", REMOTE, str(tmp_path), json.dumps(runs)]
    run = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    results = json.loads(run.stdout.splitlines()[-1])
    expected = {"supernet-full": None, "supernet-small": "small", "supernet-other": PER_LAYER, "frozen": PER_LAYER}
    for name, subnet in expected.items():
        assert results[f"{name}-class"].startswith("transformers_modules")
        logits = model.view(subnet)(**batch()).logits
        torch.testing.assert_close(torch.tensor(results[name]), logits, atol=TOLERANCE, rtol=0)
        # What the copied code saves is as complete as what it was loaded from.
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"again-{name}")
        assert isinstance(again, ElasticForSequenceClassification)
        torch.testing.assert_close(again(**batch()).logits, logits, atol=TOLERANCE, rtol=0)


def test_generation_config_is_one_for_all_sizes(tmp_path):
    base = randomize(AutoModelForCausalLM.from_config(config_of("llama")))
    base.generation_config.repetition_penalty = 1.7
    model = ElasticForCausalLM.from_base(base, space={"num_hidden_layers": [2, 4]}, subnets={"small": {"num_hidden_layers": 2}})
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, again):
        for one in (each, each.view("small"), each.extract("small"), each.extract({"layers": [0, 2]})):
            assert one.generation_config.eos_token_id == 2
            assert one.generation_config.repetition_penalty == 1.7
    again.generation_config = copy.deepcopy(again.generation_config)
    again.generation_config.eos_token_id = 7
    assert again.view("small").generation_config.eos_token_id == again.base.generation_config.eos_token_id == 7


def test_extract_keeps_the_attention_implementation():
    for implementation in ("eager", "sdpa"):
        model = classifier(attn_implementation=implementation)
        for subnet in (None, SMALL, PER_LAYER):
            assert model.extract(subnet).config._attn_implementation == implementation
