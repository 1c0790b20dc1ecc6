"""LoRA adapters of peft that come and go: switches, merging, other adapters, and what is refused."""

import copy

import peft
import pytest
import torch
from adapted import SMALL, TOLERANCE, adapted, classifier, close, differ, logits_of, lora
from peft import LoraConfig, get_peft_model
from tiny import batch, config_of, randomize, space_of

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_switches_reach_views_that_exist(model_type):
    model, peft_model = adapted(model_type)
    twin = copy.deepcopy(model)
    first, view = logits_of(model, SMALL), model.view(SMALL)
    peft_model.add_adapter("second", lora(model_type, r=2))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".second" in name:
            parameter.data.normal_(std=0.3)
    close(logits_of(model, SMALL), first)
    view = model.view(SMALL)
    peft_model.set_adapter("second")
    second = logits_of(model, SMALL)
    assert model.view(SMALL) is view  # only a switch
    assert differ(first, second)
    with peft_model.disable_adapter():
        disabled = logits_of(model, SMALL)
        assert model.view(SMALL) is view
    assert differ(disabled, first) and differ(disabled, second)
    close(logits_of(model, SMALL), second)
    peft_model.set_adapter("default")
    close(logits_of(model, SMALL), first)
    peft_model.delete_adapter("second")
    close(logits_of(model, SMALL), first)
    assert not any(".second" in name for name, _ in model.view(SMALL).named_parameters())
    close(logits_of(twin, SMALL), first)  # a deep copy watches its own tree


def test_switches_reach_the_slices_that_train():
    model, peft_model = adapted("bert")
    model.select(SMALL)
    with torch.enable_grad():
        on = model(**batch()).logits
        with peft_model.disable_adapter():
            off = model(**batch()).logits
            assert not off.requires_grad
        again = model(**batch()).logits
    assert on.requires_grad and again.requires_grad and differ(on, off)
    close(on, again)
    close(on.detach(), logits_of(model, SMALL))


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_merging_in_place_reaches_views(model_type, safe):
    model, peft_model = adapted(model_type)
    sliced = logits_of(model, SMALL)
    with peft_model.disable_adapter():
        plain = logits_of(model, SMALL)
    peft_model.merge_adapter(safe_merge=safe)
    close(logits_of(model, SMALL), sliced)
    with pytest.raises(ValueError, match="live adapters"):
        model.extract(SMALL)
    with peft_model.disable_adapter():  # peft unmerges where it runs: that must not be in the slice alone
        close(logits_of(model, SMALL), plain)
        close(logits_of(model), peft_model(**batch()).logits.detach())
    close(logits_of(model, SMALL), sliced)
    peft_model.merge_adapter(safe_merge=safe)
    peft_model.unmerge_adapter()
    close(logits_of(model, SMALL), sliced)


@torch.no_grad()
def test_a_batch_may_mix_adapters():
    targets = ["query", "value"]
    model, peft_model = adapted("bert", target_modules=targets)
    peft_model.add_adapter("second", lora("bert", target_modules=targets))
    randomize(peft_model, seed=3)
    model.select(SMALL)
    rows = {}
    for name in ("default", "second"):
        peft_model.set_adapter(name)
        rows[name] = peft_model(**batch()).logits
    peft_model.eval()
    mixed = peft_model(**batch(), adapter_names=["second", "default", "second"]).logits
    close(mixed, torch.stack([rows["second"][0], rows["default"][1], rows["second"][2]]))
    close(peft_model(**batch()).logits, rows["second"])


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_gradient_checkpointing(model_type):
    model, peft_model = adapted(model_type, lora_dropout=0.0)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            peft_model.enable_input_require_grads()
            peft_model.gradient_checkpointing_enable({"use_reentrant": True})
        peft_model.zero_grad()
        peft_model.train()
        model.select(SMALL)
        torch.manual_seed(7)  # the same dropout twice
        model(**batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in peft_model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(".lora_" in name or ".modules_to_save." in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=TOLERANCE, rtol=1e-4)


def test_generation_with_an_adapter():
    base = randomize(ElasticForCausalLM.stock_class(config_of("llama"))(config_of("llama")))
    model = ElasticForCausalLM.from_base(base, space=space_of("llama"), importance="none")
    peft_model = get_peft_model(model, lora("llama", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.5)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    model.select(SMALL)
    with peft_model.disable_adapter():
        plain = peft_model.generate(**batch(left=True), **options)
    tokens = peft_model.generate(**batch(left=True), **options)
    assert not torch.equal(tokens, plain)
    peft_model.merge_and_unload()
    assert torch.equal(tokens, model.extract(SMALL).generate(**batch(left=True), **options))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_head_that_an_adapter_unties_stays_untied(model_type):
    config = config_of(model_type, tie_word_embeddings=True)
    base = randomize(ElasticForCausalLM.stock_class(config)(config))
    model = ElasticForCausalLM.from_base(base, space=space_of(model_type), importance="none")
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn", "q_proj"], modules_to_save=["lm_head"]))
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            parameter.data.normal_(std=0.3)
    subnet = {"num_hidden_layers": 2}
    before = logits_of(model, subnet)
    peft_model.merge_and_unload()
    assert not model.config.tie_word_embeddings
    extracted = model.extract(subnet)
    close(before, extracted(**batch()).logits)
    assert model.num_parameters_of(subnet) == sum(p.numel() for p in extracted.parameters())


def test_a_frozen_checkpoint_takes_adapters_as_it_is():
    model = classifier("bert")
    frozen = model.extract({"layers": [0, 2], "num_attention_heads": [2, 4]})
    assert frozen.frozen_cut is not None
    peft_model = randomize(get_peft_model(frozen, lora("bert")))
    before = logits_of(frozen)
    with peft_model.disable_adapter():
        assert differ(before, logits_of(frozen))
    with pytest.raises(ValueError, match="merge them"):
        frozen.num_parameters_of(None)
    peft_model.merge_and_unload()
    close(before, logits_of(frozen))
    assert frozen.num_parameters_of(None) == frozen.num_parameters()


def test_adapters_have_to_be_merged_before_a_size_leaves():
    model, peft_model = adapted("bert")
    peft_model.add_adapter("other", lora("bert"))
    for act in (model.extract, model.portability_of, model.why_elastic, model.nearest_standard):
        with pytest.raises(ValueError, match=r"live adapters \(default, other\).*merge_and_unload\(\)"):
            act(SMALL)
    peft_model.unload()
    assert model.portability_of({"num_hidden_layers": 2}) == "standard"


UNSUPPORTED = {
    "dora": (lambda: lora("bert", target_modules=["query"], use_dora=True), r"query\.lora_A\.default\.weight.*DoraLinearVariant"),
    "ia3": (
        lambda: peft.IA3Config(
            task_type="SEQ_CLS", target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]
        ),
        r"query\.ia3_l\.default",
    ),
    "loha": (lambda: peft.LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]), r"query\.hada_w1_a\.default"),
    "adalora": (
        lambda: peft.AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query"], total_step=10, init_r=2, target_r=1),
        r"query\.lora_(A|E)\.default",
    ),
    "tokens": (
        lambda: lora("bert", target_modules=["query"], trainable_token_indices=[1, 2]),
        r"word_embeddings\.token_adapter\.",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_cut_is_refused_by_name(name):
    make, parameter = UNSUPPORTED[name]
    model = classifier("bert")
    peft_model = get_peft_model(model, make())
    acts = [model.view, model.select, model.resolve, model.num_parameters_of, model.flops_of]
    for act in [*acts, lambda _: model.counts]:
        with pytest.raises(ValueError, match=parameter + r".*supported: plain LoRA"):
            act(SMALL)
    peft_model.unload()
    model.view(SMALL)


def test_transformers_own_adapters_work_too(tmp_path):
    """`add_adapter` of transformers injects the same layers without a PeftModel."""
    classifier().save_pretrained(tmp_path / "base")
    model = ElasticForSequenceClassification.from_pretrained(tmp_path / "base")
    plain = logits_of(model, SMALL)
    try:
        model.base.add_adapter(lora(target_modules=["query", "value"]))
    except ValueError as error:
        pytest.skip(f"so does the stock model: {error}")  # transformers 5.24 wants a peft that is not out yet
    model.base.delete_adapter("default")
    model.add_adapter(lora(target_modules=["query", "value"]))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.3)
    adapted_logits = logits_of(model, SMALL)
    assert differ(plain, adapted_logits)
    model.disable_adapters()
    close(logits_of(model, SMALL), plain)
    model.enable_adapters()
    close(logits_of(model, SMALL), adapted_logits)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    close(logits_of(ElasticForSequenceClassification.from_pretrained(tmp_path / "adapter"), SMALL), adapted_logits)
