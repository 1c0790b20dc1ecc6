"""Gradients, memory and threads of an elastic model."""

import copy
import threading

import pytest
import torch
from elastic_heads import PER_LAYER, SPACE, SUBNETS, TOLERANCE, assert_same, causal_lm, classifier, train_step
from safetensors.torch import load_file
from tiny import CONFIGS, FAMILIES, VOCAB, batch, config_of, randomize, space_of
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import hf_elastic
from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticModel
from hf_elastic.core.errors import UserError

NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout"), 0.0
)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "modernbert", "llama"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(model_type, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = classifier(model_type, **NO_DROPOUT)
        model.select(PER_LAYER)
        model.train()
        runs = []
        layer = model.get_submodule(f"{model.layout.container}.0")
        leaf = next(module for module in layer.modules() if module._parameters)
        leaf.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
            if use_reentrant:
                model.enable_input_require_grads()
        model(**batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
        assert len(runs) == 1 + checkpointing  # the layer ran again in the backward pass
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


# BERT's stock class ties the bias of an untied head when it resizes, and loses it when it saves: nothing to compare with.
@pytest.mark.parametrize(
    ("model_type", "tie"), [("bert", True), ("gpt2", True), ("gpt2", False), ("llama", True), ("llama", False)]
)
@torch.no_grad()
def test_resize_token_embeddings(model_type, tie, tmp_path):
    if model_type == "bert":
        base = randomize(AutoModelForMaskedLM.from_config(config_of("bert", tie_word_embeddings=tie)))
        model = ElasticForMaskedLM.from_base(base, space=SPACE, subnets=SUBNETS, importance="none")
    else:
        model = causal_lm(model_type, tie_word_embeddings=tie)
    before = model.view("small")(**batch()).logits
    model.resize_token_embeddings(VOCAB + 7)
    assert model.config.vocab_size == model.base.config.vocab_size == VOCAB + 7
    assert model.get_input_embeddings().weight.shape[0] == VOCAB + 7
    for subnet in (None, "small", {"num_hidden_layers": 2}):
        view = model.view(subnet)
        assert view(**batch()).logits.shape[-1] == VOCAB + 7
        assert model.num_parameters_of(subnet) == sum(p.numel() for p in view.parameters())
        assert_same(view(**batch()), model.extract(subnet)(**batch()))
    torch.testing.assert_close(model.view("small")(**batch()).logits[..., :VOCAB], before, atol=TOLERANCE, rtol=0)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.num_parameters_of(None) == model.num_parameters_of(None)
    assert torch.equal(again.view("small")(**batch()).logits, model.view("small")(**batch()).logits)
    with torch.enable_grad():
        again.select("small")
        train_step(again, **batch(), labels=batch()["input_ids"])


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "modernbert", "llama"])
def test_threads(model_type):
    model = classifier(model_type)
    subnets = ["small", "largest", {"num_hidden_layers": 3, "num_attention_heads": 2}, {"layers": [1, 3], "intermediate_size": 7}]
    inputs = [batch(seed=seed) for seed in range(4)]
    with torch.no_grad():
        expected = [[model.extract(subnet)(**each).logits for each in inputs] for subnet in subnets]
        reference = [[classifier(model_type).view(subnet)(**each).logits for each in inputs] for subnet in subnets]
    errors = []

    def work(index):
        # Every thread has its own size most of the time, and makes and uses the others' too.
        try:
            with torch.no_grad():
                for turn in range(40):
                    which = index if turn % 4 else (index + turn // 4) % 4
                    logits = model.view(subnets[which])(**inputs[turn % 4]).logits
                    assert torch.equal(logits, reference[which][turn % 4]), (index, turn)
                    torch.testing.assert_close(logits, expected[which][turn % 4], atol=TOLERANCE, rtol=0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "modernbert", "gpt_neox", "phi3"])
@pytest.mark.parametrize("change", ["optimizer", "load_state_dict"])
def test_views_see_new_weights(model_type, change):
    model = classifier(model_type)
    subnet = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    view = model.view(subnet)
    with torch.no_grad():
        before = view(**batch()).logits.clone()
    model.select(subnet)
    if change == "optimizer":
        train_step(model, **batch(), labels=torch.tensor([0, 1, 2]))
        model.eval()
    else:
        model.load_state_dict({name: tensor + 0.1 for name, tensor in model.state_dict().items()})
    with torch.no_grad():
        expected = copy.deepcopy(model).extract(subnet)(**batch()).logits  # a copy has no views yet
        assert (expected - before).abs().max() > 1e-4
        torch.testing.assert_close(model.view(subnet)(**batch()).logits, expected, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(model(**batch()).logits, expected, atol=TOLERANCE, rtol=0)


def test_every_backbone_is_known():
    assert set(CONFIGS) == {name for name in hf_elastic.core.spec.SPECS if name in CONFIG_MAPPING}


def test_heads_that_all_layers_share_have_one_value():
    """MPNet's table of position biases has a column for each head."""
    stock = AutoModelForMaskedLM.from_config(config_of("mpnet"))
    with pytest.raises(UserError, match=r"num_attention_heads: \[2, 4\] differ"):
        ElasticForMaskedLM.from_base(stock, space={"num_attention_heads": [4]}).view({"num_attention_heads": [4, 4, 4, 2]})
    model = ElasticForMaskedLM.from_base(stock, space={"num_attention_heads": [2, 4]})
    assert model.view({"num_attention_heads": 2}).get_parameter("mpnet.encoder.relative_attention_bias.weight").shape == (32, 2)


@pytest.mark.parametrize(
    "changes", [{"conv_kernel_size": 3}, {"share_att_key": False}], ids=["convolution", "projections of positions"]
)
def test_a_deberta_of_another_build_is_refused(changes):
    stock = AutoModelForMaskedLM.from_config(config_of("deberta-v2", **changes))
    with pytest.raises(UserError, match=r"conv\.conv|pos_key_proj"):
        ElasticForMaskedLM.from_base(stock, space={"num_hidden_layers": [2, 4]})


@pytest.mark.one_lane  # transformers 4.57 cannot initialise them
@pytest.mark.parametrize("embedding_width", [16, 32])
def test_norms_without_weights_are_cut(embedding_width):
    """Nothing but the module itself says how wide they are."""
    config = config_of("opt", layer_norm_elementwise_affine=False, word_embed_proj_dim=embedding_width)
    model = ElasticForCausalLM.from_base(
        randomize(AutoModelForCausalLM.from_config(config)), space={"hidden_size": [16, 32], "num_hidden_layers": [1, 2, 4]}
    )
    assert not any("layer_norm" in name for name, _ in model.named_parameters())
    for subnet in ("smallest", {"hidden_size": 16, "layers": [0, 2]}):
        model.select(subnet)
        expected = model.extract(subnet)(**batch()).logits
        torch.testing.assert_close(model.view(subnet)(**batch()).logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(**batch()).logits, expected, atol=1e-5, rtol=0)


def test_weights_are_contiguous_wherever_they_come_from(tmp_path):
    """torch's and safetensors' tools ask for it."""
    stock = AutoModelForCausalLM.from_config(config_of("llama"))
    space = {"hidden_size": [16, 32], "intermediate_size": [16, 48], "num_key_value_heads": [1, 2]}
    made = ElasticForCausalLM.from_base(stock, space=space)
    made.save_pretrained(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 16}
    for model in (
        made,
        ElasticForCausalLM.from_pretrained(tmp_path),
        made.extract(small),
        made.extract(None),
        copy.deepcopy(made),
    ):
        assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("size", [{"num_hidden_layers": 2}, {"num_hidden_layers": 2, "intermediate_size": [16, 48]}], ids=str)
def test_a_view_is_saved_as_the_model_that_it_is(model_type, size, tmp_path):
    """Its slices are of the full model's storage, and stock files have no words for layers that differ."""
    model = ElasticModel.from_base(randomize(AutoModel.from_config(config_of(model_type))), space=space_of(model_type))
    view = model.view(size)
    view.save_pretrained(tmp_path / "view")
    model.extract(size).save_pretrained(tmp_path / "extract")
    saved = [load_file(tmp_path / name / "model.safetensors") for name in ("view", "extract")]
    assert saved[0].keys() == saved[1].keys() and all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])
    again = AutoModel.from_pretrained(tmp_path / "view").eval()
    torch.testing.assert_close(again(**batch())[0], view(**batch())[0], atol=1e-5, rtol=0)
    copy.deepcopy(view).to(torch.float64)  # a copy is nobody's view
