import json

import pytest
import torch
import transformers
from torch import nn
from transfo_xl_tiny import PER_LAYER, TINY, VOCAB, config_of, every_kind, model_of, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_elastic.models.transfo_xl import TransformerXLConfig, TransformerXLForCausalLM, TransformerXLModel


def test_auto_classes_know_it():
    config = AutoConfig.for_model("transformer_xl", **TINY)
    assert type(config) is TransformerXLConfig
    assert type(AutoModel.from_config(config)) is TransformerXLModel
    assert type(AutoModelForCausalLM.from_config(config)) is TransformerXLForCausalLM


def test_stock_architecture_stays_where_it_exists():
    config_class = type(AutoConfig.for_model("transfo-xl"))
    if transformers.__version__ < "5":
        assert config_class.__module__.startswith("transformers.models.deprecated.transfo_xl")
    else:
        assert config_class is TransformerXLConfig


def test_config_of_a_released_checkpoint_is_read(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["model_type"], written["architectures"] = "transfo-xl", ["TransfoXLLMHeadModel"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    loader = TransformerXLForCausalLM if transformers.__version__ < "5" else AutoModelForCausalLM
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is TransformerXLForCausalLM
    assert loaded.config.to_dict()["model_type"] == "transformer_xl"
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("changes", [{}, PER_LAYER, {"n_head": 1, "d_inner": 200}], ids=["alike", "per layer", "one head"])
def test_decoder_parameters_are_the_closed_form(changes):
    model = TransformerXLModel(config_of(**changes))
    d = model.config.d_model
    for layer, size in zip(model.layers, model.config.layer_sizes()):
        f = size.d_inner
        expected = 5 * d * d + 2 * d + 2 * d * f + f + d + 4 * d
        assert sum(parameter.numel() for parameter in layer.parameters()) == expected
        assert size.n_head * size.d_head == d


def test_defaults():
    config = TransformerXLConfig()
    assert config.cluster_widths == [1024, 256, 64, 16]
    assert config.clusters == [(0, 20000), (20000, 40000), (40000, 200000), (200000, 267735)]
    assert TransformerXLConfig(vocab_size=30000, d_model=64).cutoffs == [20000]
    assert TransformerXLConfig(vocab_size=100, d_model=64).d_embed == 64
    assert TransformerXLConfig(adaptive=False).cutoffs == []


def test_loss_is_shifted_mean_over_labels_that_count():
    model, ids = model_of(), tokens()
    labels = ids.masked_fill(tokens(seed=1) < 20, -100)
    log_probabilities = model(ids).logits
    wanted = labels[:, 1:]
    picked = log_probabilities[:, :-1].gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    expected = -picked[wanted != -100].mean()
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)
    torch.testing.assert_close(model(ids[:, :-1], targets=wanted).loss, expected)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=7).loss * 7, -picked[wanted != -100].sum())
    assert model(ids, labels=torch.full_like(ids, -100)).loss == 0


def test_logits_with_labels_are_on_request():
    model, ids = model_of(), tokens()
    assert model(ids, labels=ids).logits is None
    full = model(ids, labels=ids, return_logits=True).logits
    assert full.shape == (2, 12, VOCAB)
    assert full.dtype == torch.float32
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full[:, -3:])
    model.config.return_logits = True
    assert model(ids, labels=ids).logits is not None
    assert len(model(ids, labels=ids, return_dict=False)) == 3  # loss, logits, mems


@every_kind
def test_segments_with_memory_are_one_pass(changes):
    model, ids = model_of(**changes), tokens(length=15)
    whole = model(ids, output_hidden_states=True, output_attentions=True)
    mems, logits = None, []
    for segment in ids.split(4, dim=1):
        outputs = model(segment, mems=mems)
        mems = outputs.mems
        logits.append(outputs.logits)
        assert not any(memory.requires_grad for memory in mems)
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, atol=1e-4, rtol=1e-4)
    for memory, hidden in zip(mems, whole.hidden_states):
        torch.testing.assert_close(memory.transpose(0, 1), hidden, atol=1e-4, rtol=1e-4)
    assert len(whole.hidden_states) == 4
    assert [weights.shape[1] for weights in whole.attentions] == [size.n_head for size in model.config.layer_sizes()]


def test_memory_ends_after_mem_len_and_counts():
    model = model_of(mem_len=5)
    first = model(tokens())
    assert [memory.shape for memory in first.mems] == [(5, 2, 32)] * 3
    assert [memory.shape for memory in model(tokens()[:, :2], mems=first.mems).mems] == [(5, 2, 32)] * 3
    assert (model(tokens(), mems=first.mems).logits - first.logits).abs().max() > 1e-2
    assert model_of(mem_len=0)(tokens()).mems is None
    assert model(tokens(), use_cache=False).mems is None
    model.config.use_cache = False
    assert model(tokens()).mems is None and model(tokens(), use_cache=True).mems is not None


def test_same_length_attends_to_the_last_positions_only():
    model = model_of(mem_len=4, same_length=True)
    memory = model(tokens(seed=1)).mems
    for weights in model(tokens(), mems=memory, output_attentions=True).attentions:
        for query in range(12):
            seen = weights[:, :, query].amax(dim=(0, 1)) > 0
            assert seen.nonzero().squeeze(1).tolist() == list(range(query + 1, query + 5))  # four of memory come first


def test_distances_are_clamped():
    ids = tokens(length=9)  # the largest distance is 8
    expected = model_of()(ids).logits
    torch.testing.assert_close(model_of(clamp_len=8)(ids).logits, expected)
    assert (model_of(clamp_len=7)(ids).logits - expected).abs().max() > 1e-4
    assert (model_of(clamp_len=3)(ids).logits - expected).abs().max() > 1e-3


def test_padding_is_not_seen_on_either_side_and_in_memory():
    model, ids = model_of(), tokens(1, 9)
    expected = model(ids).logits
    padded, mask = nn.functional.pad(ids, (3, 2), value=7), nn.functional.pad(torch.ones_like(ids), (3, 2))
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 3:-2], expected, atol=1e-5, rtol=1e-4)
    assert model(padded, attention_mask=mask).logits.isfinite().all()
    left = nn.functional.pad(ids, (3, 0), value=7)
    memory = model(left[:, :6], attention_mask=mask[:, :6]).mems
    second = model(left[:, 6:], mems=memory, attention_mask=mask[:, :-2]).logits
    torch.testing.assert_close(second, expected[:, 3:], atol=1e-5, rtol=1e-4)


def test_mems_of_another_model_are_refused():
    model = model_of()
    for mems in (model(tokens()).mems[:2], [], model(tokens(rows=1)).mems):
        with pytest.raises(ValueError, match=r"mems must be 3 tensors.*batch=2, d_model=32"):
            model(tokens(), mems=mems)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


@every_kind
def test_saving_and_loading(changes, tmp_path):
    model = model_of(**changes)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is TransformerXLForCausalLM
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert loaded.num_parameters() == model.num_parameters()
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(ours, theirs), name
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits)
    body = AutoModel.from_pretrained(tmp_path).eval()
    expected = model(tokens(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(body(tokens()).last_hidden_state, expected)


def test_what_is_tied():
    def tied(**changes):
        model = TransformerXLForCausalLM(config_of(**changes))
        embedding, softmax = model.transformer.word_emb, model.crit
        tables = [out.weight is emb.weight for out, emb in zip(softmax.out_layers, embedding.emb_layers)]
        shared = set(map(id, embedding.emb_projs))
        return tables, [id(projection) in shared for projection in softmax.out_projs]

    assert tied() == ([True] * 4, [False, True, True, True])
    assert tied(div_val=1) == ([True], [])
    assert tied(div_val=1, d_embed=20) == ([True], [False, True, True, True])
    assert tied(tie_word_embeddings=False) == ([False] * 4, [False, True, True, True])
    assert tied(proj_share_all_but_first=False) == ([True] * 4, [False] * 4)
    layers = TransformerXLForCausalLM(config_of(untie_r=False)).transformer.layers
    assert layers[0].dec_attn.r_w_bias is layers[2].dec_attn.r_w_bias


@every_kind
def test_every_parameter_learns_whatever_the_tokens(changes):
    model, ids = model_of(**changes).train(), tokens() % 10  # the first cluster's tokens alone
    outputs = model(ids, labels=ids)
    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])


def test_bfloat16_autocast_and_model():
    model, ids = model_of(), tokens()
    expected = model(ids, labels=ids, return_logits=True)
    mems = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            outputs = model(ids, mems=mems, labels=ids, return_logits=True)
            mems = outputs.mems
            if expected is not None:
                torch.testing.assert_close(outputs.loss, expected.loss, atol=0.1, rtol=0.05)
                expected = None
        outputs.loss.backward()
    assert outputs.loss.dtype == outputs.logits.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    low = model.bfloat16()
    torch.testing.assert_close(low(ids, labels=ids).loss, model_of()(ids, labels=ids).loss, atol=0.1, rtol=0.05)
    assert low(ids, mems=low(ids).mems).logits.dtype == torch.float32


BAD = {
    "mem_len must be 0 or a positive integer, got -1": {"mem_len": -1},
    "n_head must divide d_model=32 where d_head is None, got 5": {"n_head": 5},
    r"n_head must be a positive integer or a list of n_layer=3 of them, got \[4, 4\]": {"n_head": [4, 4]},
    r"d_inner must be a positive integer or a list of n_layer=3 of them, got \[8, 0, 8\]": {"d_inner": [8, 0, 8]},
    "vocab_size must be a positive integer, got 0": {"vocab_size": 0},
    "d_model must be even": {"d_model": 33, "n_head": 3},
    r"cutoffs must be rising token ids below vocab_size=60, got \[20, 10\]": {"cutoffs": [20, 10]},
    "adaptive=False takes no cutoffs": {"adaptive": False},
    "d_embed must be at least div_val.* = 64.*, got 32": {"div_val": 4},
    "attn_type must be 0.*, got 2": {"attn_type": 2},
    "sample_softmax must be 0 or less .*, got 5": {"sample_softmax": 5},
    "init must be 'normal' or 'uniform', got 'zeros'": {"init": "zeros"},
    "dropout must be at least 0 and below 1, got 1.5": {"dropout": 1.5},
    r"tie_projs must have one bool for each of 4 clusters, got \[True\]": {"tie_projs": [True]},
    "same_length=True attends to the last mem_len positions, got mem_len=0": {"same_length": True, "mem_len": 0},
    "untie_r=False shares one pair of position biases": {"untie_r": False, **PER_LAYER},
}


@pytest.mark.parametrize(("message", "changes"), BAD.items(), ids=[" ".join(changes) for changes in BAD.values()])
def test_bad_configs_are_refused(message, changes):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_fields_set_later_are_checked_by_the_model():
    config = config_of()
    config.n_head = [4, 4]
    with pytest.raises(ValueError, match="n_layer=3"):
        TransformerXLForCausalLM(config)
    with pytest.raises(ValueError, match="cannot be resized"):
        model_of().resize_token_embeddings(70)
