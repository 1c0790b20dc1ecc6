"""What one major version of transformers saves, the other loads: standard extracts without this package, elastic ones too.

Set HF_ELASTIC_OTHER_PYTHON to the interpreter of an environment with the other major version.
"""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import ENCODERS, GROUPED, NEWER, STOCK, backbones, batch, config_of, randomize
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticForSequenceClassification
from hf_elastic.core.portable import IS_OLD, portable_config
from hf_elastic.export.checkpoint import save_standard

OTHER = "HF_ELASTIC_OTHER_PYTHON"
TOLERANCE = 1e-5
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 5.0, 7.0]}
EAGER = {"attn_implementation": "eager"}

# No rotary base may be a default: that is what a field which the other version does not read turns into.
THETA = {
    "modernbert": {"global_rope_theta": 3000.0, "local_rope_theta": 70.0},
    "gpt_neox": {"rotary_emb_base": 300, "rotary_pct": 0.5},
    "gemma3_text": {"rope_theta": 3000.0, "rope_local_base_freq": 70.0},
    **{name: {"rope_theta": 300.0} for name in (*GROUPED, "nomic_bert") if name != "gemma3_text"},
    "glm4": {"rope_theta": 300.0, "partial_rotary_factor": 0.25},
    "phi": {"rope_theta": 300.0, "partial_rotary_factor": 0.75},
    "stablelm": {"rope_theta": 300.0, "partial_rotary_factor": 0.75},
}
CASES = {name: (name, THETA.get(name, {})) for name in (*STOCK, *NEWER)} | {
    # The fused kernels of the versions differ in whether they cap the attention scores.
    "gemma2": ("gemma2", {**THETA["gemma2"], **EAGER}),
    "gpt_neox-tied": ("gpt_neox", {**THETA["gpt_neox"], "tie_word_embeddings": True}),
    # An untied BERT has two biases in transformers 5, of which 4.57 makes one whatever the config says.
    **({"bert-untied": ("bert", {"tie_word_embeddings": False})} if IS_OLD else {}),
    "llama-tied": ("llama", {**THETA["llama"], "tie_word_embeddings": True}),
    "llama-scaled": ("llama", {**THETA["llama"], "rope_scaling": LLAMA3}),
    "qwen2-sliding": ("qwen2", {**THETA["qwen2"], "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "phi3-longrope": ("phi3", {**THETA["phi3"], "rope_scaling": LONGROPE, "original_max_position_embeddings": 16}),
    "phi3-partial": ("phi3", {**THETA["phi3"], "partial_rotary_factor": 0.5}),
    "gemma3_text-scaled": ("gemma3_text", {**THETA["gemma3_text"], "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "modernbert-all-global": ("modernbert", {**THETA["modernbert"], "global_attn_every_n_layers": 1}),
    "bert-classifier": ("bert", {"num_labels": 3}),
    "modernbert-classifier": ("modernbert", {**THETA["modernbert"], "num_labels": 3}),
    "llama-classifier": ("llama", {**THETA["llama"], "num_labels": 3}),
}
ACROSS = [case for case, (model_type, _) in CASES.items() if model_type not in NEWER]
SUBNETS = {
    "full": None,
    "depth": {"num_hidden_layers": 2},
    "ffn": {"num_hidden_layers": 3, "intermediate_size": 33},
    "layers": {"layers": [0, 2, 3], "intermediate_size": 16},
    "heads": {"num_attention_heads": 2, "num_key_value_heads": 1},
}
SPACE = {"num_hidden_layers": [2, 4], "intermediate_size": [16, 48]}

# Runs in the other environment, where this package cannot be imported.
SCRIPT = """
import json, sys, warnings
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_elastic":
            raise ImportError("hf_elastic is not installed here")

sys.meta_path.insert(0, Refuse())
import torch, transformers
from safetensors.torch import load_file

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
root, results = Path(sys.argv[1]), {}
for description in sorted(root.glob("*/expected.json")):
    folder = description.parent
    expected = json.loads(description.read_text())
    tensors = load_file(folder / "expected.safetensors")
    auto_class = getattr(transformers, expected["auto_class"])
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **expected["arguments"])
    inputs = {key: tensors[key] for key in ("input_ids", "attention_mask")}
    result = {"version": transformers.__version__, "class": type(model).__name__}
    result["missing"] = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["unexpected_keys"]))
    with torch.no_grad():
        difference = (model(**inputs).logits - tensors["logits"]).abs()
        # What a row of padding attends to is up to the version.
        result["difference"] = (difference[inputs["attention_mask"].bool()] if difference.dim() == 3 else difference).max().item()
        if "generated" in tensors:
            generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
            result["same_text"] = bool(torch.equal(generated, tensors["generated"]))
    if "ids" in expected:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        result["ids"] = tokenizer(expected["text"])["input_ids"]
        result["specials"] = sorted(set(tokenizer.all_special_tokens))
    results[folder.name] = result
print(json.dumps(results))
"""


def elastic(case):
    model_type, changes = CASES[case]
    if "num_labels" in changes:
        auto, elastic_class = AutoModelForSequenceClassification, ElasticForSequenceClassification
    elif model_type in ENCODERS:
        auto, elastic_class = AutoModelForMaskedLM, ElasticForMaskedLM
    else:
        auto, elastic_class = AutoModelForCausalLM, ElasticForCausalLM
    torch.manual_seed(0)
    base = randomize(auto.from_config(config_of(model_type, **changes)))
    return auto, elastic_class.from_base(base, space=SPACE, subnets={"small": SUBNETS["ffn"]}, importance="none")


def standard_subnets(model, model_type):
    names = [name for name in SUBNETS if name != "heads" or model_type in GROUPED]
    return [name for name in names if model.portability_of(SUBNETS[name]) == "standard"]


@torch.no_grad()
def describe(folder, auto, model, arguments, **more):
    """Write down what the model computes, for the other version to compare with."""
    inputs = batch(left=True, length=20)
    tensors = {**inputs, "logits": model(**inputs).logits.contiguous()}
    if auto is AutoModelForCausalLM:
        tensors["generated"] = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    if model.config._attn_implementation == "eager":
        arguments = {**arguments, **EAGER}
    (folder / "expected.json").write_text(json.dumps({"auto_class": auto.__name__, "arguments": arguments, **more}))


def tiny_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", additional_special_tokens=["<extra>"]
    )


def found_elsewhere(root, elsewhere):
    """What the other version found of every checkpoint in a folder, by the checkpoint's name."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")}
    command = [os.environ[OTHER], "-I", "-c", SCRIPT, str(root)]
    run = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every checkpoint saved here and loaded there: its folder's name -> what the other version found."""
    root = tmp_path_factory.mktemp("cross")
    for case in ACROSS:
        model_type = CASES[case][0]
        auto, model = elastic(case)
        for name in standard_subnets(model, model_type):
            folder = root / f"{case}.{name}"
            extracted = model.extract(SUBNETS[name])
            save_standard(extracted, folder)
            describe(folder, auto, extracted, {})
        folder = root / f"{case}.elastic"
        model.save_pretrained(folder)
        describe(folder, auto, model.view("small"), {"subnet": "small", "trust_remote_code": True})
        frozen = {"layers": [0, 3], "intermediate_size": [16, 33]}
        folder = root / f"{case}.frozen"
        model.extract(frozen).save_pretrained(folder)
        describe(folder, auto, model.view(frozen), {"trust_remote_code": True})
    auto, model = elastic("bert")
    tokenizer = tiny_tokenizer()
    save_standard(model.extract("small"), root / "tokenizer", tokenizer)
    text = "a b <extra> c d"
    describe(root / "tokenizer", auto, model.view("small"), {}, text=text, ids=tokenizer(text)["input_ids"])
    return found_elsewhere(root, tmp_path_factory.mktemp("elsewhere"))


def check(result):
    assert result["version"].startswith("5" if IS_OLD else "4"), "the other Python has the same major version"
    assert not result["missing"]
    assert result["difference"] <= TOLERANCE
    assert result.get("same_text", True)


@pytest.mark.other_lane
@pytest.mark.parametrize("case", ACROSS)
def test_standard_extracts(case, results):
    found = {name: result for name, result in results.items() if name.rpartition(".")[0] == case}
    found = {name: result for name, result in found.items() if not name.endswith((".elastic", ".frozen"))}
    names = {name.rpartition(".")[2] for name in found}
    assert names >= {"full", "depth", "ffn"}
    assert "heads" in names or CASES[case][0] not in GROUPED or CASES[case][0] in ("phi3", "stablelm")
    for name, result in found.items():
        assert not result["class"].startswith("Elastic")
        check(result)
        assert name


# BERT's two names for one bias are tied or not by version; GPT-NeoX's untied head has another name in transformers 5.
STOCK_DIFFERS = ("bert-untied", "gpt_neox")


@pytest.mark.other_lane
@pytest.mark.parametrize("case", [case for case in ACROSS if case not in STOCK_DIFFERS])
@pytest.mark.parametrize("kind", ["elastic", "frozen"])
def test_elastic_checkpoints(case, kind, results):
    result = results[f"{case}.{kind}"]
    assert result["class"].startswith("Elastic")
    check(result)


@pytest.mark.other_lane
def test_tokenizer(results):
    check(results["tokenizer"])
    expected = tiny_tokenizer()
    assert results["tokenizer"]["ids"] == expected("a b <extra> c d")["input_ids"]
    assert results["tokenizer"]["specials"] == sorted({*expected.all_special_tokens, "<extra>"})


# --- in one version --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", backbones(CASES))
@torch.no_grad()
def test_standard_extracts_load_here(case, tmp_path):
    auto, model = elastic(case)
    for name in standard_subnets(model, CASES[case][0]):
        extracted = model.extract(SUBNETS[name])
        save_standard(extracted, tmp_path / name)
        options = {key: value for key, value in CASES[case][1].items() if key in EAGER}
        again, info = auto.from_pretrained(tmp_path / name, output_loading_info=True, **options)
        assert type(again) is type(extracted)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(again(**batch(length=20)).logits, extracted(**batch(length=20)).logits)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["architectures"] == [type(extracted).__name__]
        assert config["dtype"] == "float32"
        save_standard(again, tmp_path / f"{name}-again")
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"{name}-again" / file).read_bytes()


def test_layer_patterns_without_words_in_the_other_version():
    _, model = elastic("modernbert")
    assert model.base.config.num_hidden_layers == 4
    assert model.portability_of({"layers": [0, 1]}) == "standard"
    assert model.portability_of({"layers": [1, 2]}) == "elastic"
    if not IS_OLD:
        assert "fixed interval" in model.why_elastic({"layers": [1, 2]})
        config = config_of("modernbert", layer_types=["full_attention"] * 2 + ["sliding_attention"] * 2)
        with pytest.raises(ValueError, match="fixed interval"):
            portable_config(config)
        with pytest.raises(ValueError, match="use_bidirectional_attention"):
            portable_config(config_of("gemma2", use_bidirectional_attention=True))


def test_save_standard_refuses_elastic_models(tmp_path):
    _, model = elastic("bert")
    with pytest.raises(ValueError, match="extract a standard subnet"):
        save_standard(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_save_standard_leaves_nothing_half_written(tmp_path, monkeypatch):
    _, model = elastic("bert")
    save_standard(model.extract("small"), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "notes.txt").write_text("mine")

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            save_standard(model.extract(None), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".txt"} == before
    save_standard(model.extract(None), str(tmp_path / "out"), tiny_tokenizer())
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4


def test_sampled_subnets_say_the_truth(tmp_path):
    """Whatever is called standard can be saved as such."""
    for case in ("modernbert", "gemma2", "smollm3"):
        auto, model = elastic(case)
        generator = random.Random(0)
        for _ in range(8):
            layers = sorted(generator.sample(range(4), generator.randint(1, 4)))
            if model.portability_of({"layers": layers}) == "standard":
                extracted = model.extract({"layers": layers})
                save_standard(extracted, tmp_path / case)
                attention = extracted.config._attn_implementation
                again = auto.from_pretrained(tmp_path / case, attn_implementation=attention)
                with torch.no_grad():
                    assert torch.equal(again(**batch()).logits, extracted(**batch()).logits)
