"""`add_lora` and `load_adapter`: which modules train, which options are refused, and adapters on the command line."""

import builtins
import json
import os

import pytest
import torch
from tiny import CLASSIFIERS, ENCODERS, batch, config_of, randomize, save_tokenizer, space_of
from transformers import AutoModelForSequenceClassification

import hf_elastic
from hf_elastic import (
    ElasticForCausalLM,
    ElasticForMaskedLM,
    ElasticForMultipleChoice,
    ElasticForQuestionAnswering,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    ElasticModel,
)
from hf_elastic.cli.data import load_elastic, load_tokenizer
from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError
from hf_elastic.training.lora import add_lora, load_adapter

SMALL = {"num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 2}
HEADS = {
    ElasticModel: ("bert", "FEATURE_EXTRACTION", set()),
    ElasticForMaskedLM: ("bert", None, set()),
    ElasticForCausalLM: ("llama", "CAUSAL_LM", set()),
    ElasticForSequenceClassification: ("bert", "SEQ_CLS", {"classifier"}),
    ElasticForTokenClassification: ("bert", "TOKEN_CLS", {"classifier"}),
    ElasticForQuestionAnswering: ("bert", "QUESTION_ANS", {"qa_outputs"}),
    ElasticForMultipleChoice: ("bert", None, {"classifier"}),
}


def elastic(model_type="bert", head=ElasticForSequenceClassification, **changes):
    config = config_of(model_type, **changes)
    return head.from_base(randomize(head.stock_class(config)(config)), space=space_of(model_type), importance="none")


def trained_heads(model):
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad and ".lora_" not in name)
    return {name.partition(".modules_to_save.")[0] for name in names}


@pytest.mark.parametrize(
    "model_type",
    [name if name in ("bert", "gpt2", "llama") else pytest.param(name, marks=pytest.mark.slow) for name in CLASSIFIERS],
)
def test_every_backbone_has_default_targets(model_type):
    model = elastic(model_type, num_labels=3)
    before = model.view(SMALL)(**batch()).logits
    peft_model = add_lora(model, {"r": 2})
    torch.testing.assert_close(model.view(SMALL)(**batch()).logits, before)  # a new adapter adds nothing
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(adapted) >= 4
    parts = ("attn", "attention", *(("mlp",) if model_type == "phi" else ()))  # peft's own choice for it
    assert all(any(part in name for part in parts) for name in adapted), adapted
    assert trained_heads(model) and not any("layer" in name for name in trained_heads(model))
    randomize(peft_model)
    inside = model.view(SMALL)(**batch()).logits
    assert (inside - before).abs().max() > 1e-3
    torch.testing.assert_close(peft_model.merge_and_unload().view(SMALL)(**batch()).logits, inside, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_the_task_and_the_trained_head_follow_from_the_class(head):
    model_type, task, trained = HEADS[head]
    model = elastic(model_type, head)
    peft_model = add_lora(model, {})
    assert peft_model.peft_config["default"].task_type == task
    assert trained_heads(model) == trained


def test_every_new_module_of_a_head_trains():
    model = elastic("distilbert")
    add_lora(model)
    assert trained_heads(model) == {"pre_classifier", "classifier"}


def test_options_reach_peft():
    model = elastic()
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["attention.output.dense"], "modules_to_save": ["pooler"]}
    config = add_lora(model, options).peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 6)
    assert options["modules_to_save"] == ["pooler"]
    adapted = [name for name, _ in model.named_parameters() if ".lora_A" in name]
    assert len(adapted) == 4 and all(".attention.output.dense." in name for name in adapted)
    assert "bert.pooler" in trained_heads(model)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(query|key)"])
def test_targets_may_be_a_pattern(targets):
    model = elastic()
    add_lora(model, {"r": 2, "target_modules": targets})
    model.view(SMALL)
    assert any(".query.lora_A" in name for name, _ in model.named_parameters())


BAD = {
    "option": ({"rank": 8}, r"lora: 'rank' is not an option.*known: .*lora_alpha.*target_modules"),
    "target": ({"target_modules": ["query", "q_proj"]}, r"'q_proj' matches no weight.*known: .*attention\.self\.query"),
    "norm": ({"target_modules": ["LayerNorm"]}, r"'LayerNorm' matches no weight"),
    "pattern": ({"target_modules": r".*q_proj"}, r"q_proj' matches no weight"),
    "dora": ({"use_dora": True}, r"query\.lora_.*DoraLinearVariant.*supported: plain LoRA"),
    "value": ({"init_lora_weights": "perhaps"}, "lora: Unknown initialization"),
    "rank": ({"r": 0}, "lora: r: 0 must be a number above 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused_and_leave_the_model_alone(name):
    options, message = BAD[name]
    model = elastic()
    before = model(**batch()).logits
    with pytest.raises(UserError, match=message):
        add_lora(model, options)
    torch.testing.assert_close(model(**batch()).logits, before)
    assert model.portability_of({"num_hidden_layers": 2}) == "standard"


def test_one_adapter_at_a_time():
    model = elastic()
    add_lora(model)
    with pytest.raises(ValueError, match=r"live adapters \(default\)"):
        add_lora(model)


def test_a_missing_peft_is_named_with_its_extra(monkeypatch):
    real = builtins.__import__

    def without_peft(name, *args, **kwargs):
        if name.partition(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *args, **kwargs)

    model = elastic()
    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ImportError, match=r"hf-elastic\[peft\]"):
        add_lora(model)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_load_adapter(model_type, tmp_path):
    head = ElasticForMaskedLM if model_type in ENCODERS else ElasticForCausalLM
    elastic(model_type, head).save_pretrained(tmp_path / "base")
    model = head.from_pretrained(tmp_path / "base")
    peft_model = add_lora(model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.3)
    peft_model.save_pretrained(tmp_path / "adapter")
    again = head.from_pretrained(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert not any(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(again.view(SMALL)(**batch()).logits, model.view(SMALL)(**batch()).logits)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_adapter(head.from_pretrained(tmp_path / "base"), "./nowhere")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An elastic checkpoint with a tokenizer, and an adapter for it that a relative path was used for."""
    folder = tmp_path_factory.mktemp("lora")
    save_tokenizer(folder / "base")
    elastic(num_labels=2).save_pretrained(folder / "base")
    here = os.getcwd()
    os.chdir(folder)
    try:
        model = ElasticForSequenceClassification.from_pretrained("base")
        peft_model = randomize(add_lora(model, {"r": 2}))
        for name, tensor in ElasticForSequenceClassification.from_pretrained("base").state_dict().items():
            for own, parameter in model.named_parameters():
                if hf_elastic.core.adapters.plain_name(own) == name and not parameter.requires_grad:
                    parameter.data.copy_(tensor)
        peft_model.save_pretrained("adapter")
    finally:
        os.chdir(here)
    return folder / "adapter", model.view(SMALL)(**batch()).logits.detach()


def test_an_adapter_folder_is_a_model_for_the_commands(adapter, tmp_path, capsys):
    folder, expected = adapter
    model = load_elastic(str(folder))
    assert isinstance(model, ElasticForSequenceClassification)
    torch.testing.assert_close(model.view(SMALL)(**batch()).logits, expected, atol=1e-5, rtol=0)
    subnet = {"num_hidden_layers": 2}
    options = ["--subnet", json.dumps(subnet), "--output_dir", str(tmp_path / "out")]
    assert main(["export", "--model", str(folder), *options]) == 0, capsys.readouterr().err
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(stock(**batch()).logits, model.view(subnet)(**batch()).logits, atol=1e-5, rtol=0)


def test_the_tokenizer_of_an_adapter_comes_first(adapter, tmp_path):
    folder, _ = adapter
    assert "mine" not in load_tokenizer(str(folder)).get_vocab()
    own = tmp_path / "own"
    own.mkdir()
    for path in folder.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["mine"])
    tokenizer.save_pretrained(own)
    assert "mine" in load_tokenizer(str(own)).get_vocab()


@pytest.mark.parametrize("base", [None, "./nowhere"])
def test_an_adapter_without_its_base_is_one_line(adapter, base, tmp_path, capsys):
    folder, _ = adapter
    values = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": base}))
    assert main(["export", "--model", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert ("no base_model_name_or_path" if base is None else "./nowhere") in error and "is an adapter" in error
