"""Transformer-XL as a supernet: every kind of embedding is cut, memory goes on, and its own config says unequal layers."""

import json

import pytest
import torch
from transfo_xl_tiny import KINDS, PER_LAYER, TINY, every_kind, model_of, tokens
from transformers import AutoModelForCausalLM

from hf_elastic import ElasticForCausalLM
from hf_elastic.core.shapes import SpecError
from hf_elastic.export import export_subnet
from hf_elastic.models.transfo_xl import TransformerXLForCausalLM

UNEQUAL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": [2, 4], "intermediate_size": [48, 7]}
SAME_LAYERS = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 20}


def elastic_of(**options):
    changes = options.pop("changes", {})
    return ElasticForCausalLM.from_base(model_of(**changes), importance="none", **options)


@pytest.mark.parametrize("partition", [False, True])
@every_kind
@torch.no_grad()
def test_every_kind_of_embedding_is_cut(changes, partition):
    if changes == KINDS["sizes per layer"]:
        pytest.skip("refused, see below")
    model = elastic_of(changes=changes, head_partition=partition)
    same_heads = {**UNEQUAL, "num_attention_heads": 2}
    for subnet in (SAME_LAYERS, same_heads if changes == KINDS["shared position biases"] else UNEQUAL):
        assert model.why_elastic(subnet) is None
        extracted = model.extract(subnet)
        assert type(extracted) is TransformerXLForCausalLM
        assert model.num_parameters_of(subnet) == extracted.num_parameters()
        torch.testing.assert_close(model.view(subnet)(tokens()).logits, extracted(tokens()).logits, atol=1e-5, rtol=0)
        labels = {"labels": tokens()}
        torch.testing.assert_close(model.view(subnet)(tokens(), **labels).loss, extracted(tokens(), **labels).loss)
    own_width = changes.get("d_embed", TINY["d_model"]) != TINY["d_model"]
    assert extracted.config.d_embed == (changes["d_embed"] if own_width else 16), "a width of its own is never cut"


def test_supernets_that_cannot_be():
    with pytest.raises(SpecError, match=r"dimension 0 of .*r_w_bias .* is 8, which does not fit \(heads\) with heads=2"):
        elastic_of(changes=PER_LAYER)
    with pytest.raises(ValueError, match=r"heads: \[2, 4\] differ, but this model has one value for all its layers"):
        elastic_of(changes={"untie_r": False}).resolve(UNEQUAL)
    model = elastic_of(changes={"div_val": 4, "d_embed": 32, "cutoffs": [10, 25]})
    with pytest.raises(ValueError, match=r"hidden_size: 8 is too small, embed2 \(hidden // division division\) would be 0"):
        model.resolve({"hidden_size": 8})


@torch.no_grad()
def test_memory_goes_on_from_segment_to_segment():
    model = elastic_of(head_partition=True)
    view, extracted = model.view(UNEQUAL), model.extract(UNEQUAL)
    first = view(tokens(seed=1)).mems
    assert [tuple(memory.shape) for memory in first] == [(12, 2, 16)] * 2
    with_memory = view(tokens(seed=2), mems=first).logits
    expected = extracted(tokens(seed=2), mems=extracted(tokens(seed=1)).mems).logits
    torch.testing.assert_close(with_memory, expected, atol=1e-5, rtol=0)
    assert (with_memory - view(tokens(seed=2)).logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="d_model=32"):
        model(tokens(seed=2), mems=first)


@torch.no_grad()
def test_unequal_layers_are_a_checkpoint_of_the_architecture_itself(tmp_path):
    model = elastic_of(head_partition=True)
    expected = model.view(UNEQUAL)(tokens()).logits
    export_subnet(model, UNEQUAL, tmp_path / "out", ["safetensors"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "transformer_xl"
    assert (config["n_head"], config["d_inner"], config["d_head"]) == ([2, 4], [48, 7], [8, 4])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again(tokens()).logits, expected, atol=1e-5, rtol=0)


def test_sizes_keep_the_ties(tmp_path):
    model = elastic_of()
    model.save_pretrained(tmp_path)
    for one in (model, ElasticForCausalLM.from_pretrained(tmp_path)):
        view = one.view(SAME_LAYERS)
        for table, output in zip(view.transformer.word_emb.emb_layers, view.crit.out_layers):
            assert table.weight.data_ptr() == output.weight.data_ptr()
        projections = list(zip(view.transformer.word_emb.emb_projs, view.crit.out_projs))
        tied = [embedding.data_ptr() == output.data_ptr() for embedding, output in projections]
        assert tied == view.config.tie_projs == [False, True, True, True]


def test_the_full_models_positions_stay_its_own():
    model = elastic_of()
    before = model.base.transformer.pos_emb.inv_freq.clone()
    assert model.view(SAME_LAYERS).transformer.pos_emb.inv_freq.shape == (8,)
    assert torch.equal(model.base.transformer.pos_emb.inv_freq, before)


@every_kind
def test_log_probabilities_in_little_memory_are_the_same(changes):
    """Where no gradient is wanted they are written into the result piece by piece."""
    model = model_of(**changes)
    expected = model(tokens(length=30)).logits
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(model(tokens(length=30)).logits, expected.detach())
