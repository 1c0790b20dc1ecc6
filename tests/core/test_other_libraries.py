"""What other libraries and users do around a size: done right, or refused with the reason."""

import copy
import gc
import random
import threading
import types

import pytest
import torch
from elastic_heads import causal_lm, classifier
from test_features import MIXED, SMALL, logits, make
from tiny import VOCAB, batch, config_of, randomize
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.generation import GenerationConfig

from hf_elastic import ElasticConfig, ElasticForCausalLM, ElasticForSequenceClassification
from hf_elastic.core.errors import UserError
from hf_elastic.core.portable import IS_OLD

GROUPED = {"num_key_value_heads": 1, "num_attention_heads": 2}
IDS = torch.arange(5, 12)[None]


def grouped_llama(**changes):
    """Two key-value heads of two queries each."""
    torch.manual_seed(0)
    base = randomize(AutoModelForCausalLM.from_config(config_of("llama", eos_token_id=None, **changes)))
    space = {"num_hidden_layers": [4], "num_key_value_heads": [1, 2], "num_attention_heads": [2, 4]}
    return ElasticForCausalLM.from_base(base, space=space, importance="none")


@pytest.mark.skipif(IS_OLD, reason="transformers 4.57 has another interface")
def test_continuous_batching_of_a_selected_size():
    from transformers.generation import ContinuousBatchingConfig

    model = grouped_llama()
    model.select(GROUPED)
    expected = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, 7:].tolist()
    found = model.generate_batch(
        [IDS[0].tolist()],
        generation_config=GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
    )
    assert [(each.generated_tokens, each.error) for each in found.values()] == [(expected, None)]


@pytest.mark.parametrize("way", ["view", "extract"])
def test_a_static_cache_of_layers_with_different_heads(way):
    model = grouped_llama()
    mixed = {"num_key_value_heads": (2, 1, 2, 1), "num_attention_heads": (4, 2, 4, 2)}
    one = getattr(model, way)(mixed)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = one.generate(IDS, **options).tolist()
    static = {"cache_implementation": "static", "disable_compile": True, **options}
    assert one.generate(IDS, **static).tolist() == one.generate(IDS, prefill_chunk_size=3, **static).tolist() == expected


def test_quantized_layers_run_whole_and_are_refused_in_sizes():
    model = classifier()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert quantized(**batch()).logits.shape == (3, 3)
    with pytest.raises(UserError, match="cannot be cut"):
        quantized.view(SMALL)


def test_a_head_of_ones_own_runs_whole_and_is_refused_in_sizes():
    model = classifier()
    model.classifier = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 5))
    assert model(**batch()).logits.shape == (3, 5)
    with pytest.raises(UserError, match=r"classifier\.0"):
        model.view(SMALL)
    model.classifier = nn.Linear(32, 5)
    assert model.view(SMALL)(**batch()).logits.shape == (3, 5)
    with pytest.raises(UserError, match=r"replaced by one of another shape than the config says: .*classifier\.weight"):
        model.extract(SMALL)


@pytest.mark.parametrize("grad", [False, True])
def test_a_replaced_forward_runs_in_sizes_or_is_refused(grad):
    model, twin = make("bert", "selected")
    layer = model.bert.encoder.layer[0]
    logits(model, grad=grad)
    calls = []

    def counted(self, *args, **kwargs):
        calls.append(self)
        return type(self).forward(self, *args, **kwargs)

    layer.forward = types.MethodType(counted, layer)
    torch.testing.assert_close(logits(model, grad=grad), logits(twin), atol=1e-5, rtol=0)
    assert calls and calls[0] is not layer
    del layer.forward
    inner = layer.forward
    layer.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    with pytest.raises(UserError, match="BertLayer was replaced"):
        logits(model, grad=grad)
    del layer.forward
    torch.testing.assert_close(logits(model, grad=grad), logits(twin), atol=1e-5, rtol=0)


def test_config_subnet_says_what_runs():
    model = causal_lm("llama")
    for act, layers in (
        (lambda: setattr(model.config, "subnet", "small"), 2),
        (lambda: setattr(model.config, "subnet", None), 4),
        (lambda: model.select({"num_hidden_layers": 2}), 2),
    ):
        act()
        options = {"output_hidden_states": True, "return_dict_in_generate": True}
        generated = model.generate(IDS, max_new_tokens=1, min_new_tokens=1, pad_token_id=0, **options).hidden_states[0]
        with torch.no_grad():
            plain = model(IDS, output_hidden_states=True).hidden_states
        with_gradients = model(IDS, output_hidden_states=True).hidden_states
        assert len(generated) == len(plain) == len(with_gradients) == layers + 1
    model.config.subnets["small"] = {"num_hidden_layers": 3}
    assert len(model.view("small").model.layers) == 3
    model.config.subnet = "smal"
    with pytest.raises(UserError, match="unknown subnet 'smal'"):
        model(IDS)


def test_a_converted_view_is_nobody_elses():
    model = classifier()
    model.select("small")
    view = model.view("small").to(torch.float64)
    assert view(**batch()).logits.dtype == torch.float64 or view.dtype == torch.float64
    assert model(**batch()).logits.dtype == torch.float32
    with torch.no_grad():
        assert model(**batch()).logits.dtype == torch.float32


def test_hooks_of_a_view_are_its_own():
    model = classifier()
    view, calls = model.view("small"), []
    view.bert.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    model.config.output_hidden_states = True  # something to follow
    model(**batch())
    model.select("small")
    model(**batch())
    assert not calls
    assert view(**batch()).hidden_states is not None and calls == [1]


def test_a_held_view_follows():
    model = classifier()
    view = model.view("small")
    before = logits(view)
    model.resize_token_embeddings(VOCAB + 3)
    model.config.output_hidden_states = True
    assert view(**batch()).hidden_states is not None
    assert view.get_input_embeddings().weight.shape[0] == view.config.vocab_size == VOCAB + 3
    torch.testing.assert_close(logits(view), before, atol=1e-5, rtol=0)
    assert view is model.view("small")


def test_tied_later():
    torch.manual_seed(0)
    model = causal_lm("llama", tie_word_embeddings=False)
    view = model.view("small")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.num_parameters_of(None) == sum(p.numel() for p in model.parameters())
    assert model.view("small") is view
    assert view.lm_head.weight.data_ptr() == view.model.embed_tokens.weight.data_ptr()
    assert model.extract("small").config.tie_word_embeddings


@pytest.mark.skipif(IS_OLD, reason="rope_parameters are those of transformers 5")
def test_what_was_fed_before_does_not_make_a_size_elastic():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config = LlamaConfig(**{**config_of("llama").to_dict(), "max_position_embeddings": 8, "rope_parameters": rope})
    model = ElasticForCausalLM.from_base(LlamaForCausalLM(config), space={"num_hidden_layers": [2, 4]})
    assert model.portability_of("smallest") == "standard"
    model.forget_views()
    with torch.no_grad():
        model(torch.randint(5, 99, (1, 30)))
    assert model.portability_of("smallest") == "standard"


def test_a_frozen_config_says_its_own_sizes(tmp_path):
    model = classifier()
    frozen = model.extract(MIXED)
    frozen.save_pretrained(tmp_path)
    for config in (frozen.config, AutoConfig.from_pretrained(tmp_path)):
        assert (config.num_hidden_layers, config.intermediate_size) == (2, 16)
    headless = AutoModel.from_pretrained(tmp_path)
    assert headless.config.hidden_size == headless(**batch()).last_hidden_state.shape[-1]
    with torch.no_grad():
        again = ElasticForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(again(**batch()).logits, model.view(MIXED)(**batch()).logits)
    assert again.config.own == {"intermediate_size": 16, "num_hidden_layers": 2}


def test_a_resized_frozen_checkpoint_loads_again(tmp_path):
    frozen = causal_lm("llama").extract({"layers": [0, 2], "intermediate_size": [16, 48]})
    frozen.resize_token_embeddings(VOCAB + 10)
    assert frozen.config.vocab_size == frozen.vocab_size == VOCAB + 10
    frozen.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.shape[0] == VOCAB + 10
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, frozen(IDS).logits, atol=0, rtol=0)


def test_a_hidden_size_that_is_cut_has_embeddings_of_its_own():
    torch.manual_seed(0)
    base = randomize(AutoModelForCausalLM.from_config(config_of("llama")))
    model = ElasticForCausalLM.from_base(base, space={"hidden_size": [16, 32]}, importance="none")
    model.select({"hidden_size": 16})
    assert model.get_input_embeddings().weight.shape[1] == model.get_output_embeddings().weight.shape[1] == 16
    with torch.no_grad():
        given = model(inputs_embeds=model.get_input_embeddings()(IDS)).logits
        torch.testing.assert_close(given, model(IDS).logits, atol=1e-5, rtol=0)
    model.select(None)
    assert model.get_input_embeddings() is model.base.get_input_embeddings()


def test_a_stock_checkpoint_is_named(tmp_path):
    randomize(AutoModelForCausalLM.from_config(config_of("llama"))).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="from_base"):
        ElasticForCausalLM.from_pretrained(tmp_path)


def held_bytes() -> int:
    """Bytes of all tensors that somebody holds, every storage once."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_training_many_sizes_holds_little():
    """GPT-2's heads are cut out of a fused matrix: slices of theirs are copies."""
    space = {"num_hidden_layers": [2, 4], "num_attention_heads": [1, 2, 4], "intermediate_size": [16, 48]}
    space["per_layer"] = ["num_attention_heads", "intermediate_size"]
    model = ElasticForCausalLM(ElasticConfig(base_config=config_of("gpt2"), space=space)).train()
    generator, before = random.Random(0), None
    for turn in range(60):
        model.select(model.space.sample(generator))
        model(IDS, labels=IDS).loss.backward()
        model.zero_grad(set_to_none=True)
        if turn == 5:
            before = held_bytes()
    model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    assert held_bytes() - before < 0.5 * model_bytes


def test_views_in_threads_while_settings_change():
    model = classifier()
    view, errors = model.view("small"), []
    expected = logits(view)

    def work():
        try:
            for _ in range(30):
                torch.testing.assert_close(logits(view), expected, atol=1e-5, rtol=0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        model.config.id2label = {0: str(turn), 1: "b", 2: "c"}
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def test_a_copy_of_a_view_stands_alone():
    model = classifier()
    view = model.view("small")
    expected, again = logits(view), copy.deepcopy(view)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(logits(again), expected, atol=0, rtol=0)
