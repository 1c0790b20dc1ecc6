"""ELM as a model of transformers: blocks, trigrams, causality, cache, heads."""

import copy

import pytest
import torch
from elm_tiny import BLOCKS, KINDS, UNEQUAL, causal_lm, config_of, masked_lm, other, tokens
from tiny import batch, randomize
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    StaticCache,
)

from hf_elastic.core.errors import UserError
from hf_elastic.models.elm import ElmConfig, ElmForCausalLM, ElmForMaskedLM, ElmForQuestionAnswering, ElmModel
from hf_elastic.models.elm.blocks import block_class

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
HEADS = {
    AutoModelForSequenceClassification: {"labels": torch.tensor([0, 2, 1])},
    AutoModelForTokenClassification: {"labels": torch.randint(0, 3, (3, 9), generator=torch.Generator().manual_seed(0))},
    AutoModelForQuestionAnswering: {"start_positions": torch.tensor([0, 1, 2]), "end_positions": torch.tensor([3, 2, 4])},
}


# --- what is computed -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_bert_block_is_its_equations():
    model = masked_lm(num_hidden_layers=1, attn_implementation="eager")
    block = model.elm.layers[0].blocks["bert"]
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    heads = []
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        query, key, value = (
            hidden @ part.weight[rows].T + part.bias[rows]
            for part in (block.attention.query, block.attention.key, block.attention.value)
        )
        heads.append((query @ key.mT / 8**0.5).softmax(-1) @ value)
    attended = nn.functional.layer_norm(hidden + block.attention.output(torch.cat(heads, -1)), (32,), eps=1e-12)
    attended = attended * block.attention_norm.weight + block.attention_norm.bias
    inner = nn.functional.gelu(block.feed_forward.up(attended), approximate="tanh")
    expected = block.output_norm(attended + block.feed_forward.down(inner))
    torch.testing.assert_close(model.elm.layers[0](hidden)[0], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_mobilebert_block_is_its_equations():
    model = masked_lm(num_hidden_layers=1, block_type="mobilebert", num_attention_heads=2, attn_implementation="eager")
    block = model.elm.layers[0].blocks["mobilebert"]
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        query, key, value = (
            hidden @ part.weight[rows].T + part.bias[rows]
            for part in (block.attention.query, block.attention.key, block.attention.value)
        )
        heads.append((query @ key.mT / 4**0.5).softmax(-1) @ value)
    inner = hidden @ block.squeeze.weight.T + block.squeeze.bias + block.attention.output(torch.cat(heads, -1))
    inner = inner * block.attention_norm.weight + block.attention_norm.bias
    inner = inner + block.feed_forward.down(block.feed_forward.up(inner).relu())
    inner = inner * block.feed_forward_norm.weight + block.feed_forward_norm.bias
    expected = (hidden + block.expand(inner)) * block.output_norm.weight + block.output_norm.bias
    torch.testing.assert_close(model.elm.layers[0](hidden)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_decoder", [False, True])
@torch.no_grad()
def test_the_embedding_is_of_neighbours(is_decoder):
    model = (causal_lm if is_decoder else masked_lm)().elm
    ids = tokens()
    words = model.embeddings.word_embeddings.weight
    trigrams = []
    for row in ids.tolist():
        for position in range(len(row)):
            near = [position - 1, position, *([] if is_decoder else [position + 1])]
            trigrams.append(torch.cat([words[row[i]] if 0 <= i < len(row) else torch.zeros(20) for i in near]))
    trigrams = torch.stack(trigrams).unflatten(0, ids.shape)
    hidden = model.embeddings.projection(trigrams) + model.embeddings.position_embeddings.weight[: ids.shape[1]]
    expected = model.embeddings.norm(hidden + model.embeddings.token_type_embeddings.weight[0])
    found = model(ids, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@each_kind
@pytest.mark.parametrize("is_decoder", [False, True])
@torch.no_grad()
def test_padding_changes_nothing(kind, is_decoder):
    model = (causal_lm if is_decoder else masked_lm)(block_type=kind)
    ids = tokens(1, 6)
    expected = model(ids).logits
    for left in (False, True):
        pads = torch.full((1, 3), 9)
        padded = torch.cat([pads, ids] if left else [ids, pads], 1)
        mask = torch.cat([pads * 0, ids * 0 + 1] if left else [ids * 0 + 1, pads * 0], 1)
        found = model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        torch.testing.assert_close(found[:, 3:] if left else found[:, :6], expected, atol=1e-5, rtol=0)


@each_kind
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@torch.no_grad()
def test_no_position_of_a_causal_model_sees_its_future(kind, kernel):
    model = causal_lm(block_type=kind, attn_implementation=kernel)
    ids = tokens()
    mask = torch.ones_like(ids)
    before = model(ids, attention_mask=mask).logits
    for position in range(1, ids.shape[1]):
        changed = ids.clone()
        changed[:, position:] = other(ids)[:, position:]
        after = model(changed, attention_mask=mask).logits
        assert torch.equal(after[:, :position], before[:, :position])
        assert (after[:, position:] - before[:, position:]).abs().amax(-1).min() > 1e-4


@each_kind
@torch.no_grad()
def test_every_position_of_a_bidirectional_model_sees_all(kind):
    model = masked_lm(block_type=kind)
    ids = tokens()
    before = model(ids).logits
    for position in range(ids.shape[1]):
        changed = ids.clone()
        changed[:, position] = other(ids)[:, position]
        assert (model(changed).logits - before).abs().amax(-1).min() > 1e-6


@each_kind
@torch.no_grad()
def test_kernels_agree(kind):
    for build in (masked_lm, causal_lm):
        eager, fused = (build(block_type=kind, attn_implementation=kernel) for kernel in ("eager", "sdpa"))
        for inputs in (batch(), {"input_ids": tokens()}):
            torch.testing.assert_close(eager(**inputs).logits, fused(**inputs).logits, atol=1e-5, rtol=0)


# --- the cache ------------------------------------------------------------------------------------------------------------


@each_kind
@torch.no_grad()
def test_a_cache_goes_on_in_any_pieces(kind):
    model = causal_lm(block_type=kind, num_attention_heads=[2, 4, 1])
    ids = tokens(length=10)
    expected = model(ids).logits
    for sizes in ([1] * 10, [4, 1, 5], [9, 1]):
        for cache in (None, DynamicCache(), DynamicCache(config=model.config)):
            found = []
            for piece in ids.split(sizes, 1):
                output = model(piece, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                found.append(output.logits)
            assert cache.get_seq_length() == 10
            torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_cropped_cache_goes_on_elsewhere():
    model = causal_lm()
    ids = tokens(length=10)
    cache = model(ids, use_cache=True).past_key_values
    cache.crop(-4)
    other = torch.cat([ids[:, :6], tokens(length=4, seed=1)], 1)
    found = model(other[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(found, model(other).logits[:, 6:], atol=1e-5, rtol=0)


@each_kind
@torch.no_grad()
def test_cached_generation_equals_uncached(kind):
    model = causal_lm(block_type=kind)
    options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}
    for inputs in (batch(left=True), {"input_ids": tokens()}):
        for beams in (1, 3):
            cached = model.generate(**inputs, **options, num_beams=beams, use_cache=True)
            assert torch.equal(cached, model.generate(**inputs, **options, num_beams=beams, use_cache=False))
            assert cached.shape[1] == inputs["input_ids"].shape[1] + 12


@torch.no_grad()
def test_generation_with_an_assistant():
    model, assistant = causal_lm(), causal_lm(block_type="mobilebert")
    options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}
    expected = model.generate(tokens(rows=1), **options)
    assert torch.equal(model.generate(tokens(rows=1), **options, assistant_model=assistant), expected)


def test_caches_that_it_cannot_have():
    with pytest.raises(UserError, match="past_key_values: a bidirectional ELM has none"):
        masked_lm().elm(tokens(), past_key_values=DynamicCache())
    model = causal_lm()
    with pytest.raises(UserError, match="needs a cache of dynamic layers, got a StaticCache"):
        model(tokens(), past_key_values=StaticCache(config=model.config, max_cache_len=20))
    assert model(tokens(), use_cache=False).past_key_values is None
    assert masked_lm().elm(tokens()).past_key_values is None


# --- as any model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_heads(head, tmp_path):
    model = randomize(head.from_config(config_of(**UNEQUAL, num_labels=2 if head is AutoModelForQuestionAnswering else 3)))
    output = model(**batch(), **HEADS[head])
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    again = head.from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.to_dict()["block_type"] == UNEQUAL["block_type"]
    for name, value in again(**batch(), **HEADS[head]).items():
        assert torch.equal(value, output[name]), name
    if head is AutoModelForSequenceClassification:
        expected = nn.functional.cross_entropy(output.logits, HEADS[head]["labels"])
        torch.testing.assert_close(output.loss, expected)
        assert output.logits.shape == (3, 3)


def test_losses_of_the_language_models():
    labels = tokens()
    labels[:, 3] = -100
    masked, causal = masked_lm(), causal_lm()
    found, logits = masked(tokens(), labels=labels)[:2]
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    found, logits = causal(tokens(), labels=labels)[:2]
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    assert causal(tokens(), logits_to_keep=2).logits.shape == (2, 2, 99)


@each_kind
def test_gradient_checkpointing_changes_nothing(kind):
    for build in (masked_lm, causal_lm):
        gradients = []
        for recomputes in (False, True):
            model = build(block_type=kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
            if recomputes:
                model.gradient_checkpointing_enable()
            model(tokens(), labels=tokens()).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@each_kind
def test_save_and_load(kind, tmp_path):
    for build, auto in ((masked_lm, AutoModelForMaskedLM), (causal_lm, AutoModelForCausalLM)):
        model = build(block_type=kind)
        model.save_pretrained(tmp_path / build.__name__)
        again = auto.from_pretrained(tmp_path / build.__name__)
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)
        assert again.lm_head.decoder.weight is again.elm.embeddings.word_embeddings.weight
        bare = AutoModel.from_pretrained(tmp_path / build.__name__)
        assert type(bare) is ElmModel
        assert torch.equal(bare(tokens()).last_hidden_state, model.elm(tokens()).last_hidden_state)
        assert AutoConfig.from_pretrained(tmp_path / build.__name__).to_dict() == again.config.to_dict()


@torch.no_grad()
def test_what_is_returned_on_request():
    model = masked_lm(**UNEQUAL, attn_implementation="eager")
    output = model(tokens(), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 12, 32)] * 4
    assert [weights.shape[1] for weights in output.attentions] == [2, 4, 1]
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    assert isinstance(model(tokens(), return_dict=False), tuple)
    with pytest.raises(UserError, match="output_attentions: only the eager kernel has them"):
        masked_lm()(tokens(), output_attentions=True)


@torch.no_grad()
def test_embeddings_in_place_of_tokens():
    model = causal_lm()
    words = model.get_input_embeddings()(tokens())
    assert torch.equal(model(inputs_embeds=words).logits, model(tokens()).logits)
    with pytest.raises(UserError, match="give either input_ids or inputs_embeds"):
        model(tokens(), inputs_embeds=words)


def test_the_vocabulary_can_be_resized():
    model = masked_lm()
    model.resize_token_embeddings(120)
    assert model(tokens()).logits.shape[-1] == 120
    assert model.lm_head.decoder.weight is model.elm.embeddings.word_embeddings.weight


def test_new_weights():
    model = ElmForMaskedLM(config_of(block_type=[BLOCKS], initializer_range=0.05, pad_token_id=3))
    assert not model.elm.embeddings.word_embeddings.weight[3].any()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embeddings" not in name:
            assert 0.04 < parameter.std() < 0.06, name
        elif "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name


def test_half_precision():
    for build in (masked_lm, causal_lm):
        exact, half = (build(block_type=KINDS["mixed"]) for _ in range(2))
        difference = (half.bfloat16()(tokens()).logits.float() - exact(tokens()).logits).abs().max()
        assert difference < 0.1


def test_blocks_have_the_same_names():
    blocks = [block_class(name)(config_of(attn_implementation="eager"), config_of().layer_sizes()[0], 0) for name in BLOCKS]
    names = [set(dict(block.named_modules())) for block in blocks]
    assert names[0] <= names[1], "a third may have more, and none fewer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_type": "conv"}, "block_type: 'conv' is unknown; known: bert, mobilebert"),
        ({"block_type": [["bert", "bert"]]}, r"block_type: \['bert', 'bert'\] of layer 0 names a block twice"),
        ({"block_type": ["bert", "conv", "bert"]}, "block_type: 'conv' is unknown"),
        ({"block_type": [["bert", "conv"]]}, "block_type: 'conv' is unknown"),
        ({"block_type": ["bert", "bert"]}, r"block_type has 2 entries for num_hidden_layers=3: \['bert', 'bert'\]"),
        ({"block_type": [[], "bert", "bert"]}, "block_type: every layer needs at least one block"),
        (
            {"num_attention_heads": 5},
            "num_attention_heads: 5 does not divide 32, the width of attention in the bert block of layer 0",
        ),
        (
            {"block_type": ["bert", "bert", "mobilebert"], "num_attention_heads": 16},
            "num_attention_heads: 16 does not divide 8, the width of attention in the mobilebert block of layer 2",
        ),
        ({"num_attention_heads": [4, 4]}, "num_attention_heads has 2 entries for num_hidden_layers=3"),
        ({"intermediate_size": 0}, "intermediate_size must be a positive integer or a list of them, got 0"),
        ({"intermediate_size": [7, 8, 1.5]}, "intermediate_size must be a positive integer or a list of them"),
        ({"hidden_size": -1}, "hidden_size must be a positive integer, got -1"),
        ({"hidden_size": 3, "block_type": "mobilebert", "num_attention_heads": 1}, "does not divide 0, the width of attention"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(UserError, match=message):
        config_of(**changes)
    config = config_of()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        ElmModel(config)


@pytest.mark.parametrize(
    ("kind", "is_decoder"), [(ElmForMaskedLM, True), (ElmForCausalLM, False), (ElmForQuestionAnswering, True)]
)
def test_a_head_of_the_other_direction(kind, is_decoder):
    with pytest.raises(UserError, match=f"{kind.__name__} needs a config with is_decoder={not is_decoder}, got {is_decoder}"):
        kind(config_of(is_decoder=is_decoder))


def test_a_config_is_data():
    config = config_of(**UNEQUAL)
    assert ElmConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert copy.deepcopy(config).layer_sizes() == config.layer_sizes()
    assert [tuple(size) for size in config.layer_sizes()] == [
        (("mobilebert",), 2, 7), (("bert",), 4, 48), (("mobilebert",), 1, 20)
    ]  # fmt: skip
    assert config_of(block_type=[BLOCKS]).layer_sizes()[2].blocks == ("bert", "mobilebert")
