"""Growth of feed-forward widths on tiny real models: measured, grown up to the cap, and used by what follows."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from growing import AXIS, CAP, DEPTHS, GROWTH, SINGLE, SPACE, Stop, grow, stock, supernet, trainer_of
from tiny import CONFIGS, ENCODERS, WORDS, backbones, batch, config_of, save_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from worker import BLOCKS, make_arguments

from hf_elastic import ElasticForMaskedLM, ElasticTrainingArguments, search_subnets
from hf_elastic.cli.main import main
from hf_elastic.core.errors import UserError
from hf_elastic.core.layout import Layout
from hf_elastic.core.spec import SPECS
from hf_elastic.search.encoding import Encoding
from hf_elastic.search.population import population
from hf_elastic.training.growth import Growth, count_components, find_networks
from hf_elastic.training.lora import add_lora

# --- measuring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "channels"), [(200, 12), (9, 40)])
def test_components_are_those_of_the_singular_values(tokens, channels):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(tokens, channels)) @ np.diag(0.8 ** np.arange(channels)) + 5
    squares = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    for variance in (0.5, 0.9, 0.99, 0.999):
        expected = int(np.argmax(np.cumsum(squares) / squares.sum() >= variance)) + 1
        with torch.autocast("cpu", dtype=torch.bfloat16):  # too coarse to count in
            assert count_components(torch.tensor(rows, dtype=torch.float32), variance) == expected


def test_components_of_what_does_not_vary():
    assert count_components(torch.full((5, 3), 2.0), 0.99) == 0
    assert count_components(torch.full((5, 3), float("nan")), 0.99) == 0
    assert count_components(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), 0.99) == 1


@pytest.mark.parametrize(
    ("model_type", "path"), [("bert", "bert.encoder.layer.3.intermediate.dense"), ("llama", "model.layers.3.mlp.gate_proj")]
)
def test_what_is_measured_and_where(model_type, path):
    """Pre-activations of the width grown to, of a gate where there is one, without padding."""
    model = stock(model_type)
    growth = Growth(model, make_arguments(Path("unused"), {**SINGLE, **GROWTH, "growth_cap": 22_000, "growth_measure_steps": 2}))
    cut, inputs, seen = model.resolve("largest"), batch(), []
    module = model.trained_module(cut)
    handle = module.get_submodule(path).register_forward_hook(lambda _, args, output: seen.append(output))
    model.select("largest")
    with growth.watch(module, cut, inputs, step=1):
        model(**inputs)
    with growth.watch(module, cut, inputs, step=0):
        model(**inputs)
    model(**inputs)
    handle.remove()
    assert len(growth.networks) == 4 and len(seen) == 3
    rows = seen[1][inputs["attention_mask"].bool()]
    assert rows.shape[1] == 8
    assert growth.networks[3].own_components == count_components(rows, 0.99)
    assert [network.own_count for network in growth.networks] == [1, 1, 1, 1]


@pytest.mark.parametrize("model_type", backbones())
def test_every_backbone_has_its_networks(model_type):
    """One for each layer, whose matrix writes the width; or the width and what it is gated with, side by side."""
    config = config_of(model_type)
    base = (AutoModel if model_type in ENCODERS else AutoModelForCausalLM).from_config(config)
    layout, widths = Layout(SPECS[model_type], base), []
    found = find_networks(layout, base, 8)
    assert [network.layer for network in found] == [0, 1, 2, 3]
    for network in found:
        matrix = base.get_submodule(f"{layout.container}.{network.layer}.{network.path}")
        matrix.register_forward_hook(lambda _, args, output: widths.append(output.shape[-1]))
    with torch.no_grad():
        base(torch.full((1, 6), 7))
    assert widths in ([48] * 4, [96] * 4)


# --- growing -------------------------------------------------------------------------------------------------------------


def growth_of(**changes):
    return Growth(supernet(), make_arguments(Path("unused"), {**SINGLE, **GROWTH, "growth_cap": CAP, **changes}))


def measure(growth, components):
    for network, number in zip(growth.networks, components):
        network.components, network.count = 2 * number, 2


def widths(growth):
    return [network.width for network in growth.networks]


def test_the_highest_need_grows():
    growth = growth_of(growth_pairs=2)
    assert [(network.layer, network.choice) for network in growth.networks[:2]] == [
        (0, "block_type=bert"),
        (0, "block_type=mobilebert"),
    ]
    measure(growth, [3, 7, 1, 7, 2, 5, 8, 1])
    growth.grow()
    assert widths(growth) == [8, 16, 8, 8, 8, 8, 16, 8]  # the second of 7 comes after the first
    assert growth.elastic.config.grown[AXIS][0] == {"block_type=bert": 8, "block_type=mobilebert": 16}
    measure(growth, [3, 7, 1, 6, 2, 5, 8, 1])
    growth.grow()
    assert widths(growth) == [8, 24, 8, 8, 8, 8, 24, 8]


def test_need_by_channel():
    growth = growth_of(growth_pairs=2, growth_need="share")
    measure(growth, [3, 7, 1, 7, 2, 5, 8, 1])
    growth.grow()
    measure(growth, [3, 7, 1, 6, 2, 5, 8, 1])
    growth.grow()
    assert widths(growth) == [8, 16, 8, 16, 8, 16, 16, 8]


def test_growth_ends_at_the_cap_and_at_full_width():
    growth = growth_of(growth_cap=26_000, growth_width=20, growth_pairs=8)
    sizes = [growth.mean_size()]
    while not growth.is_done:
        measure(growth, [8, 7, 6, 5, 4, 3, 2, 1])
        growth.grow()
        sizes.append(growth.mean_size())
    assert widths(growth) == [48, 48, 48, 48, 48, 40, 40, 40] or sizes[-2] < 26_000 <= sizes[-1]
    assert max(widths(growth)) == 48 and growth.mean_size() >= 26_000


@pytest.mark.parametrize(
    ("space", "cap"), [(DEPTHS, 20_000), ({**DEPTHS, "hidden_size": [16, 32], "per_layer": ["num_attention_heads"]}, 16_000)]
)
def test_the_mean_size_is_exact(space, cap):
    model = stock("bert", space)
    growth = Growth(model, make_arguments(Path("unused"), {**SINGLE, **GROWTH, "growth_cap": cap}))
    for network, width in zip(growth.networks, (8, 24, 16, 40)):
        network.width = width
    model.grow(growth.table())
    depths = [model.num_parameters_of([one for one in model.space.enumerate() if one["num_hidden_layers"] == n]) for n in (2, 4)]
    assert growth.mean_size() == pytest.approx(np.mean([of_depth.mean() for of_depth in depths]), rel=1e-12)


# --- training ------------------------------------------------------------------------------------------------------------


def test_an_elm_grows_is_saved_and_its_sizes_follow(tmp_path):
    model = supernet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = grow(model, tmp_path)
    logged = [entry["mean_parameters"] for entry in trainer.state.log_history if "mean_parameters" in entry]
    assert logged == sorted(logged) and logged[0] < CAP <= logged[-1]
    # The closed form is the mean over every size of the space.
    assert logged[-1] == pytest.approx(model.num_parameters_of(list(model.space.enumerate())).mean(), rel=1e-12)
    trainer.save_model(str(tmp_path / "saved"))
    again = ElasticForMaskedLM.from_pretrained(tmp_path / "saved")
    assert again.config.grown == model.config.grown
    table = again.config.grown[AXIS]
    assert {width % 8 for row in table for width in row.values()} == {0}
    assert len({width for row in table for width in row.values()}) > 1
    for layer, row in enumerate(table):
        for name in BLOCKS:
            key, width = f"elm.layers.{layer}.blocks.{name}.feed_forward.up.weight", row[f"block_type={name}"]
            changed = (model.state_dict()[key] != before[key]).any(1)
            assert changed[:width].any() and not changed[width:].any()
    drawn = again.space.sample(random.Random(0))
    grown = tuple(row[f"block_type={name}"] for row, name in zip(table, drawn["block_type"]))
    assert again.subnet(drawn)[AXIS] == grown
    extracted = again.extract(drawn)
    assert extracted.config.intermediate_size == list(grown)
    with torch.no_grad():
        assert torch.equal(extracted(**batch()).logits, again.view(drawn)(**batch()).logits)
    assert again.subnet(None)[AXIS] == 48


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_stock_backbones_grow(model_type, tmp_path):
    model = stock(model_type)
    cap = 22_000
    grow(model, tmp_path, growth_cap=cap, sampling="sandwich", distillation={"logits": 0.5}, growth_pairs=1)
    table = model.config.grown[AXIS]
    assert cap <= model.num_parameters_of(list(model.space.enumerate())).mean() < cap + 3 * 8 * 32
    assert all(isinstance(width, int) for width in table) and len(set(table)) > 1
    assert model.subnet({"num_hidden_layers": 2})[AXIS] == tuple(table[:2])
    size = model.space.largest
    with torch.no_grad():
        torch.testing.assert_close(model.extract(size)(**batch()).logits, model.view(size)(**batch()).logits)


def test_a_search_has_the_grown_widths():
    model = supernet()
    rows = [{f"block_type={name}": width for name, width in zip(BLOCKS, pair)} for pair in ((8, 24), (16, 8), (48, 40), (24, 16))]
    model.grow({AXIS: rows})
    encoding = Encoding(model.space.genes())
    places = encoding.sample(np.random.default_rng(0), 40)
    table, kept = population(model, model.space, encoding, places)
    subnets = [model.space.from_genes(encoding.chosen(row)) for row in places]
    expected, _ = model.counts.columns(subnets)
    assert np.array_equal(table["ffn"], expected["ffn"])
    assert np.array_equal(model.counts.parameters(table, kept), model.counts.parameters_of(subnets))
    frontier = search_subnets(model, ["decoder_parameters", "parameters"], n_trials=16, progress=False)
    for point in frontier.points:
        named = {key: value for key, value in point.subnet.items() if key != AXIS}
        assert point.values["parameters"] == model.num_parameters_of(named) == model.extract(named).num_parameters()


def test_layers_of_one_choice():
    """Depth keeps some of the layers, and each has its own width."""
    model = stock("bert")
    model.grow({AXIS: [8, 16, 24, 32]})
    assert model.subnet({"layers": [1, 3]})[AXIS] == (16, 32)
    assert model.subnet({"layers": [1, 3], AXIS: 40})[AXIS] == 40
    values = {"num_hidden_layers": np.array([2, 4])}
    table, kept = model.counts.population(values, 2)
    expected = model.counts.parameters_of([{"num_hidden_layers": 2}, {"num_hidden_layers": 4}])
    assert np.array_equal(model.counts.parameters(table, kept), expected)
    model.grow(None)
    assert model.subnet({"layers": [1, 3]})[AXIS] == 48


def test_what_has_not_grown_takes_no_part(tmp_path):
    """It would be seen at once: it is not a number."""
    model = supernet()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("feed_forward.up.bias"):
                tensor[8:] = float("nan")
    trainer = trainer_of(model, tmp_path, distillation={"logits": 0.5})
    trainer.add_callback(Stop(3))
    assert np.isfinite(trainer.train().training_loss)
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_growth_after_every_epoch(tmp_path):
    trainer = grow(supernet(), tmp_path, growth_steps=None, growth_cap=21_300, max_steps=-1, num_train_epochs=4)
    steps = [entry["step"] for entry in trainer.state.log_history if entry.get("mean_parameters", 0) > 20_027]
    assert trainer.state.max_steps == 64 and steps[0] == 20  # logged every 5 steps, and an epoch has 16
    assert trainer.sampler.growth.rounds in (1, 2, 3)


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"growth_cap": 20_000}, r"growth_cap: 20,000 is not above what random sizes start with, 20,027 parameters on average"),
        (
            {"growth_cap": 27_000},
            r"growth_cap: 27,000 is above what random sizes have at full width, 26,587 parameters on average",
        ),
        ({"growth_width": 48}, "growth_width: 48 leaves nothing to grow to, the model's intermediate_size is 48"),
        ({"train_subnets": []}, "growth_cap: random sizes of the space have to be drawn"),
        ({"sampling": "all"}, "growth_cap: random sizes of the space have to be drawn"),
    ],
)
def test_growth_that_cannot_be(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        trainer_of(supernet(), tmp_path, **changes)


def test_models_that_do_not_grow(tmp_path):
    for model, message in (
        (supernet({**SPACE, AXIS: [16, 48]}), "growth_cap: the space has intermediate_size, which is for growth to decide"),
        (add_lora(stock("bert"), {}), "growth_cap: adapters"),
        (stock("bert").extract({AXIS: [8, 16, 24, 32]}), "growth_cap: this checkpoint is frozen at one size"),
    ):
        with pytest.raises(UserError, match=message):
            trainer_of(model, tmp_path)


def test_a_training_too_short_for_the_cap(tmp_path):
    with pytest.raises(UserError, match="is out of reach in this training: after 1 rounds of 3 networks sizes have at most"):
        grow(supernet(), tmp_path, max_steps=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_cap": 0}, "growth_cap must be an integer of at least 1"),
        ({"growth_steps": 4}, "growth_steps: only with growth_cap"),
        ({"growth_variance": 1.0}, r"growth_variance: 1\.0 is not between 0 and 1"),
        ({"growth_need": "most"}, "growth_need: 'most' is unknown; known: components, share"),
        ({"growth_measure_steps": 0}, "growth_measure_steps must be an integer of at least 1"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ElasticTrainingArguments(tmp_path, use_cpu=True, **options)


@pytest.mark.parametrize(
    ("grown", "message"),
    [
        ({AXIS: [8, 8]}, "grown: intermediate_size has 2 entries for 4 layers"),
        ({AXIS: [8, 8, 8, 64]}, "intermediate_size: 64 is larger than the model"),
        ({AXIS: [8, 8, 8, 0]}, "intermediate_size: 0 is not allowed"),
        ({"hidden_size": [8, 8, 8, 8]}, "grown: hidden_size is no axis of the layers of bert"),
        ({AXIS: [{"block_type=gpt": 8}, 8, 8, 8]}, "grown: intermediate_size: block_type=gpt is no choice of this model"),
    ],
)
def test_bad_tables(grown, message):
    with pytest.raises(UserError, match=message):
        stock("bert").grow(grown)


# --- the commands --------------------------------------------------------------------------------------------------------


def words(options: dict) -> list[str]:
    pairs = [(f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in options.items()]
    return [word for pair in pairs for word in pair]


def test_the_commands(tmp_path, capsys):
    """A supernet grows, is searched, and its best size is written with fewer heads and its widths."""
    save_tokenizer(tmp_path / "tokenizer")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(random.Random(seed).choices(WORDS, k=12)) for seed in range(60)))
    config = {**CONFIGS["elm"], "model_type": "elm", "block_type": [BLOCKS]}
    common = {"task": "masked-lm", "tokenizer": str(tmp_path / "tokenizer"), "model_config": config, "space": SPACE}
    main(["convert", *words({**common, "output_dir": str(tmp_path / "supernet")})])
    options = {**SINGLE, **GROWTH, "growth_cap": CAP, "max_steps": 40, "per_device_train_batch_size": 4, "use_cpu": True}
    data = {"dataset": str(texts), "max_length": 16, "model": str(tmp_path / "supernet"), "disable_tqdm": True}
    main(["train", *words({**options, **data, "output_dir": str(tmp_path / "trained")})])
    trained = {"model": str(tmp_path / "trained")}
    objectives = ["--objectives", "decoder_parameters", "parameters"]
    main(["search", *words({**trained, "n_trials": 8, "output_dir": str(tmp_path / "search")}), *objectives])
    capsys.readouterr()
    exported = {"frontier": str(tmp_path / "search" / "frontier.json"), "calibration": str(texts), "alike_heads": 0.5}
    main(["export", *words({**trained, **exported, "output_dir": str(tmp_path / "winner")})])
    found = AutoConfig.from_pretrained(tmp_path / "winner")
    table = ElasticForMaskedLM.from_pretrained(tmp_path / "trained").config.grown[AXIS]
    blocks = [found.block_type] * 4 if isinstance(found.block_type, str) else found.block_type
    expected = [row[f"block_type={name}"] for row, name in zip(table, blocks)]
    assert found.intermediate_size in (expected, expected[0])
    assert "heads: " in capsys.readouterr().out
