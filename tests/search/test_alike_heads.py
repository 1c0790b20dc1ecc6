"""Heads that give alike contexts become fewer and wider ones, and no parameter changes."""

import json

import numpy as np
import pytest
import torch
from tiny import WORDS, batch, config_of, randomize, save_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM
from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError
from hf_elastic.search import heads
from hf_elastic.search.heads import count_different, merge_alike_heads

BLOCKS = ["bert", "mobilebert"]
# Where a head's rows of the queries, keys and values are, by layer.
PLACES = {
    "elm": "elm.layers.{}.blocks.{}.attention.",
    "bert": "bert.encoder.layer.{}.attention.self.",
}


def supernet(model_type, *, partition=None, **changes):
    config = config_of(model_type, **changes)
    is_encoder = model_type in ("elm", "bert")
    base = randomize((AutoModelForMaskedLM if is_encoder else AutoModelForCausalLM).from_config(config))
    elastic = ElasticForMaskedLM if is_encoder else ElasticForCausalLM
    partition = model_type not in ("elm", "llama") if partition is None else partition
    return elastic.from_base(base, importance="none", head_partition=partition)


@torch.no_grad()
def copy_head(model, place, source, target, width, count=4):
    """Let a head do what another does, up to a rotation and a scale, which linear CKA does not see."""
    size = width // count
    rotation = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]
    for name in ("query", "key", "value"):
        part = model.base.get_submodule(f"{place}{name}")
        for tensor in (part.weight, part.bias):
            copied = tensor[source * size : (source + 1) * size]
            tensor[target * size : (target + 1) * size] = 3 * rotation @ copied if name == "value" else copied


def reference(contexts, count):
    """Linear CKA as its equation has it."""
    parts = np.split(contexts - contexts.mean(0), count, axis=1)
    norm = [[np.linalg.norm(one.T @ two) ** 2 for two in parts] for one in parts]
    return np.array([[norm[i][j] / np.sqrt(norm[i][i] * norm[j][j]) for j in range(count)] for i in range(count)])


def test_alike_heads_of_both_blocks():
    model = supernet("elm", block_type=[BLOCKS])
    size = {"block_type": ["bert", "mobilebert", "bert", "mobilebert"]}
    copy_head(model, PLACES["elm"].format(0, "bert"), 0, 2, 32)
    for target in (1, 2, 3):
        copy_head(model, PLACES["elm"].format(1, "mobilebert"), 0, target, 8)
    copy_head(model, PLACES["elm"].format(2, "mobilebert"), 0, 2, 8)  # of the block that this size does not have
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merge_alike_heads(model, size, [batch(20, 4, seed) for seed in range(4)])
    assert merged == model.subnet({**size, "num_attention_heads": [2, 1, 4, 4]})
    assert model.num_parameters_of(merged) == model.num_parameters_of(size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    extracted = model.extract(merged)
    assert extracted.config.num_attention_heads == [2, 1, 4, 4]


def test_bert_and_the_similarities_of_the_equation(monkeypatch):
    model = supernet("bert")
    copy_head(model, PLACES["bert"].format(3), 1, 2, 32)
    batches = [batch(20, 4, seed) for seed in range(4)]
    seen = []
    matrix = model.view({"layers": [1, 3]}).bert.encoder.layer[1].attention.output.dense
    handle = matrix.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for one in batches:
            model.view({"layers": [1, 3]})(**one)
    handle.remove()
    rows = [states[one["attention_mask"].bool()] for states, one in zip(seen, batches)]
    expected = reference(torch.cat(rows).double().numpy(), 4)
    assert expected[1, 2] > 0.999 and expected[expected < 0.999].max() < 0.9
    found = []
    monkeypatch.setattr(
        heads, "count_different", lambda alike, threshold: found.append(alike) or count_different(alike, threshold)
    )
    assert merge_alike_heads(model, {"layers": [1, 3]}, batches, 0.9)["num_attention_heads"] == (4, 2)
    np.testing.assert_allclose(found[1].numpy(), expected, rtol=1e-4)


def test_the_first_of_alike_heads_is_kept():
    alike = torch.tensor([[1.0, 0.95, 0.5], [0.95, 1.0, 0.95], [0.5, 0.95, 1.0]])
    # The second is alike to the first; the third to the second alone, which is gone.
    assert count_different(alike, 0.9) == 2
    assert count_different(alike, 0.96) == 3
    assert count_different(torch.ones(3, 3), 0.9) == 1


@pytest.mark.parametrize(
    ("model_type", "partition", "message"),
    [
        ("llama", False, "llama.* has heads that share keys and values, which cannot be partitioned anew"),
        ("bert", False, "those of this model are dropped, not partitioned anew; convert it with head_partition"),
    ],
)
def test_heads_that_do_not_partition_a_width(model_type, partition, message):
    with pytest.raises(UserError, match=message):
        merge_alike_heads(supernet(model_type, partition=partition), None, [batch()])


def test_bad_input():
    model = supernet("bert")
    with pytest.raises(UserError, match=r"threshold: 1\.5 is not between 0 and 1"):
        merge_alike_heads(model, None, [batch()], 1.5)
    with pytest.raises(UserError, match="there are none"):
        merge_alike_heads(model, None, [])
    frozen = model.extract({"num_attention_heads": [4, 2, 4, 2]})
    with pytest.raises(UserError, match="frozen at one size"):
        merge_alike_heads(frozen, None, [batch()])


def test_the_command(tmp_path, capsys):
    model = supernet("elm", block_type=[BLOCKS])
    copy_head(model, PLACES["elm"].format(0, "bert"), 0, 2, 32)
    save_tokenizer(tmp_path / "elastic")
    model.save_pretrained(tmp_path / "elastic")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(WORDS[start : start + 12]) for start in range(40)))
    command = ["--model", str(tmp_path / "elastic"), "--calibration", str(texts), "--subnet", json.dumps({"block_type": "bert"})]
    main(["export", *command, "--output_dir", str(tmp_path / "out"), "--alike_heads", "0.9"])
    assert "heads: (2, 4, 4, 4) in each layer, of 4" in capsys.readouterr().out
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.num_attention_heads == [2, 4, 4, 4]
