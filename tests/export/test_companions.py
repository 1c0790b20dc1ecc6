"""What goes along with the weights: chat templates, sentence-transformers' modules, limits of the tokenizer, tied tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import WORDS, config_of, randomize, save_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_elastic import ElasticForCausalLM, ElasticModel, export_subnet
from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TEXTS = [" ".join(WORDS[:5]), WORDS[7]]


def test_chat_templates_and_limits(tmp_path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    model = ElasticForCausalLM.from_base(
        AutoModelForCausalLM.from_config(config_of("llama")), space={"num_hidden_layers": [1, 4]}
    )
    export_subnet(model, "smallest", tmp_path / "out", ["safetensors", "onnx"], tokenizer=tokenizer)
    export_subnet(model, "smallest", tmp_path / "hub", ["onnx"], tokenizer=tokenizer, layout="hub")
    for folder in (tmp_path / "out", tmp_path / "out" / "onnx", tmp_path / "hub"):
        found = AutoTokenizer.from_pretrained(folder)
        assert found.chat_template == TEMPLATE and found.model_max_length == 64


def test_a_tokenizer_that_takes_less_than_the_model_stays(tmp_path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    tokenizer.model_max_length = 20
    model = ElasticModel.from_base(AutoModel.from_config(config_of("roberta")), space={"num_hidden_layers": [1, 4]})
    for wanted in (20, 62):  # two positions of RoBERTa's table are for padding
        export_subnet(model, None, tmp_path / str(wanted), tokenizer=tokenizer)
        assert AutoTokenizer.from_pretrained(tmp_path / str(wanted)).model_max_length == wanted
        tokenizer.model_max_length = 10**30


def sentence_transformers():
    """The library and where its modules are, which moved in version 6."""
    library = pytest.importorskip("sentence_transformers")
    try:
        from sentence_transformers.sentence_transformer import modules
    except ImportError:
        from sentence_transformers import models as modules
    return library, modules


@pytest.fixture
def sentences(tmp_path):
    """A tiny checkpoint as sentence-transformers saves it."""
    library, modules = sentence_transformers()
    folder = tmp_path / "base"
    save_tokenizer(folder / "bert")
    randomize(AutoModel.from_config(config_of("bert"))).save_pretrained(folder / "bert")
    parts = [modules.Transformer(str(folder / "bert"), max_seq_length=32), modules.Pooling(32, "max"), modules.Normalize()]
    model = library.SentenceTransformer(modules=parts, prompts={"query": "word1 "}, device="cpu")
    model.save(str(folder / "sentence"))
    return model, folder / "sentence"


def test_a_sentence_transformer_stays_one(sentences, tmp_path):
    from sentence_transformers import SentenceTransformer

    model, folder = sentences
    space = json.dumps({"num_hidden_layers": [2, 4], "hidden_size": [16, 32], "head_size": 8})
    options = ["--task", "feature-extraction", "--space", space, "--importance", "none"]
    assert main(["convert", "--model", str(folder), "--output_dir", str(tmp_path / "elastic"), *options]) == 0
    elastic = ElasticModel.from_pretrained(tmp_path / "elastic")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "elastic")
    export_subnet(elastic, None, tmp_path / "full", ["safetensors", "onnx"], tokenizer=tokenizer)
    loaded = SentenceTransformer(str(tmp_path / "full"), device="cpu")
    assert np.abs(loaded.encode(TEXTS) - model.encode(TEXTS)).max() < 1e-5
    assert np.abs(loaded.encode(TEXTS, prompt_name="query") - model.encode(TEXTS, prompt_name="query")).max() < 1e-5
    assert loaded.max_seq_length == 32
    assert (tmp_path / "full" / "onnx" / "1_Pooling" / "config.json").is_file()
    narrow = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    assert elastic.portability_of(narrow) == "standard"
    export_subnet(elastic, narrow, tmp_path / "narrow", tokenizer=tokenizer)
    loaded = SentenceTransformer(str(tmp_path / "narrow"), device="cpu")
    expected = elastic.view(narrow)(**tokenizer(TEXTS[1], return_tensors="pt")).last_hidden_state[0].amax(0)
    assert np.abs(loaded.encode(TEXTS[1]) - torch.nn.functional.normalize(expected, dim=0).detach().numpy()).max() < 1e-5
    export_subnet(elastic, None, tmp_path / "graph", ["onnx"], tokenizer=tokenizer)
    assert {path.name for path in (tmp_path / "graph").iterdir()} == {"onnx", ".hf-elastic.json"}


def test_a_module_with_weights_for_hidden_channels(sentences, tmp_path):
    library, modules = sentence_transformers()
    dense = modules.Dense(32, 8)
    deeper = library.SentenceTransformer(modules=[*list(sentences[0])[:2], dense], device="cpu")
    deeper.save(str(tmp_path / "dense"))
    fixed = ElasticModel.from_base(tmp_path / "dense", space={"num_hidden_layers": [2, 4]}, importance="none")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")
    export_subnet(fixed, None, tmp_path / "out", tokenizer=tokenizer)
    loaded = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert np.abs(loaded.encode(TEXTS) - deeper.encode(TEXTS)).max() < 1e-5
    cut = ElasticModel.from_base(tmp_path / "dense", space={"hidden_size": [16, 32]}, importance="none")
    with pytest.raises(UserError, match="the module 2_Dense of sentence-transformers has weights for the hidden channels"):
        export_subnet(cut, None, tmp_path / "cut", tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tied_tables_are_saved_once(name, tmp_path):
    stock = AutoModelForCausalLM.from_config(config_of(name, tie_word_embeddings=True))
    model = ElasticForCausalLM.from_base(stock, space={"num_hidden_layers": [1, 4], "hidden_size": [16, 32]})
    model.save_pretrained(tmp_path / "elastic")
    export_subnet(model, "smallest", tmp_path / "small")
    for folder in (tmp_path / "elastic", tmp_path / "small"):
        with safe_open(folder / "model.safetensors", "pt") as tensors:
            assert sum(99 in tensors.get_slice(key).get_shape() for key in tensors.keys()) == 1  # noqa: SIM118
    again = ElasticForCausalLM.from_pretrained(tmp_path / "elastic")
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_tied_table_in_int8_is_stored_once(tmp_path):
    import onnx

    stock = AutoModelForCausalLM.from_config(config_of("llama", tie_word_embeddings=True, vocab_size=999))
    model = ElasticForCausalLM.from_base(randomize(stock), space={"num_hidden_layers": [1, 4]})
    record = export_subnet(model, "smallest", tmp_path / "out", ["onnx-int8"])["onnx-int8"]
    graph = onnx.load(tmp_path / "out" / "onnx-int8" / "model.onnx").graph
    assert [sorted(one.dims) for one in graph.initializer if 999 in one.dims and len(one.dims) == 2] == [[32, 999]]
    used = {name for node in graph.node for name in node.input}
    assert {one.name for one in graph.initializer} <= used
    assert record["max_relative_difference"] < 0.05


def test_the_layout_of_the_hub(model, tmp_path):
    names = ["safetensors", "onnx", "onnx-int8"]
    records = export_subnet(model, None, tmp_path / "all", names, layout="hub")
    assert list(records) == names
    graphs = {"model.onnx", "model_quantized.onnx", "parity.json", "parity_quantized.json"}
    assert {path.name for path in (tmp_path / "all" / "onnx").iterdir()} == graphs
    assert {"config.json", "model.safetensors", "parity.json"} <= {path.name for path in (tmp_path / "all").iterdir()}
    export_subnet(model, None, tmp_path / "one", ["onnx-int8"], layout="hub")
    files = {path.relative_to(tmp_path / "one").as_posix() for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert files == {".hf-elastic.json", "config.json", "onnx/model_quantized.onnx", "onnx/parity_quantized.json"}


BAD = {
    "unknown": (["onnx"], "round", "layout: 'round' is unknown; known: folders, hub"),
    "two for one place": (["onnx-int8", "onnx-int8-weights"], "hub", "choose onnx-int8 or onnx-int8-weights"),
    "no place": (["onnx", "openvino"], "hub", "no place for openvino"),
    "no graph": (["safetensors"], "hub", "none of the formats is one"),
}


@pytest.mark.parametrize("name", BAD)
def test_layouts_that_cannot_be(name, model, tmp_path):
    formats, layout, message = BAD[name]
    with pytest.raises(UserError, match=message):
        export_subnet(model, None, tmp_path / "out", formats, layout=layout)
    assert list(Path(tmp_path).iterdir()) == []
