"""Against transformers 4's own Transformer-XL."""

import pytest
import torch
import transformers
from transfo_xl_tiny import VOCAB, model_of, tokens

from hf_elastic.models.transfo_xl import TransformerXLForCausalLM

pytestmark = pytest.mark.skipif(transformers.__version__ >= "5", reason="transformers 5 has no Transformer-XL to compare with")
KINDS = {
    "div_val 1": {"div_val": 1},
    "div_val 1, projected": {"div_val": 1, "d_embed": 20},
    "div_val 2": {"div_val": 2},
    "div_val 4": {"div_val": 4, "d_embed": 64},
    "no clusters": {"div_val": 1, "cutoffs": []},
    "normalised inputs": {"pre_lnorm": True},
    "shared position biases": {"untie_r": False},
    "clamped distances, same length": {"clamp_len": 3, "same_length": True, "mem_len": 6},
    "short memory, narrow heads": {"mem_len": 5, "d_head": 6},
    "nothing tied": {"tie_word_embeddings": False, "proj_share_all_but_first": False},
}
every_kind = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def _type_as(monkeypatch):
    """The deprecated class calls `tensor.type_as(dtype=...)`, which no version of torch has."""
    stock = torch.Tensor.type_as

    def type_as(self, other=None, dtype=None):
        return stock(self, other) if dtype is None else self.to(dtype)

    monkeypatch.setattr(torch.Tensor, "type_as", type_as)


def both(changes: dict):
    """Ours, and the deprecated class with our weights."""
    from transformers.models.deprecated.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel

    ours = model_of(**changes)
    fields = {**ours.config.to_dict(), "d_head": ours.config.layer_sizes()[0].d_head}
    theirs = TransfoXLLMHeadModel(TransfoXLConfig(**fields)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.num_parameters() == theirs.num_parameters()
    return ours, theirs


@every_kind
@pytest.mark.parametrize("start", ["empty", "zeros"])
def test_losses_memories_and_outputs_over_segments(changes, start):
    ours, theirs = both(changes)
    # The deprecated class starts from zeros unless it is given memory; ours starts from none unless it is given zeros.
    zeros = [torch.zeros(ours.config.mem_len, 2, 32)] * 3
    our_mems = None if start == "empty" else zeros
    their_mems = [memory[:0] for memory in zeros] if start == "empty" else None
    for segment in tokens(length=28).split(7, dim=1):
        labels = segment.masked_fill(segment % 7 == 0, -100)
        our_output = ours(
            segment, mems=our_mems, labels=labels, return_logits=True, output_hidden_states=True, output_attentions=True
        )
        their_loss = theirs(segment, mems=their_mems, labels=labels.clone()).loss
        their_output = theirs(segment, mems=their_mems, output_hidden_states=True, output_attentions=True)
        close = {"atol": 2e-5, "rtol": 1e-4}
        torch.testing.assert_close(our_output.loss, their_loss, **close)
        torch.testing.assert_close(our_output.logits, their_output.prediction_scores, **close)
        for name in ("mems", "hidden_states", "attentions"):
            assert len(our_output[name]) == len(their_output[name])
            for mine, other in zip(our_output[name], their_output[name]):
                torch.testing.assert_close(mine, other, **close)
        our_mems, their_mems = our_output.mems, their_output.mems


@every_kind
def test_gradients(changes):
    ours, theirs = both(changes)
    ids = torch.randperm(VOCAB).view(2, -1)
    ours(ids, labels=ids).loss.backward()
    theirs(ids, labels=ids.clone(), mems=[torch.zeros(0, 2, 32)] * 3).loss.backward()
    their_parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, their_parameters[name].grad, atol=1e-5, rtol=1e-3)


def test_a_checkpoint_of_the_deprecated_class_loads(tmp_path):
    _, theirs = both({})
    theirs.save_pretrained(tmp_path)
    ours = TransformerXLForCausalLM.from_pretrained(tmp_path).eval()
    expected = theirs(tokens(), mems=[torch.zeros(0, 2, 32)] * 3).prediction_scores
    torch.testing.assert_close(ours(tokens()).logits, expected, atol=1e-4, rtol=1e-4)
