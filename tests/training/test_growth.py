"""Growth of feed-forward widths on tiny real models: measured, grown up to the cap, saved, resumed, and used by what follows."""

import random

import pytest
import torch
from tiny import batch
from worker import BLOCKS, make_arguments, make_model, make_rows

from hf_elastic import ElasticForMaskedLM, ElasticTrainer

SPACE = {"num_hidden_layers": [4], "block_type": BLOCKS, "per_layer": ["block_type"]}
GROWTH = {"growth_width": 8, "growth_steps": 4, "growth_pairs": 3, "growth_measure_steps": 1}
CAP = 23_000


def supernet(space=SPACE):
    return make_model("blocks", space=space, subnets={}, importance="none")


def grow(model, folder, *, kind="masked", resume=None, **changes):
    args = make_arguments(folder, {"sampling": "single_path", "distillation": {}, "task_weight": 1.0, **GROWTH, **changes})
    trainer = ElasticTrainer(model=model, args=args, train_dataset=make_rows(kind))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_an_elm_grows_is_saved_and_its_sizes_follow(tmp_path):
    model = supernet()
    trainer = grow(model, tmp_path, growth_cap=CAP, max_steps=60)
    logged = [entry["mean_parameters"] for entry in trainer.state.log_history if "mean_parameters" in entry]
    assert logged == sorted(logged) and logged[0] < CAP <= logged[-1]
    # The closed form is the mean over every size of the space.
    assert logged[-1] == model.num_parameters_of(list(model.space.enumerate())).mean()
    trainer.save_model(str(tmp_path / "saved"))
    again = ElasticForMaskedLM.from_pretrained(tmp_path / "saved")
    assert again.config.grown == model.config.grown
    table = again.config.grown["intermediate_size"]
    assert {width % 8 for row in table for width in row.values()} == {0}
    assert len({width for row in table for width in row.values()}) > 1
    drawn = again.space.sample(random.Random(0))
    widths = tuple(row[f"block_type={name}"] for row, name in zip(table, drawn["block_type"]))
    assert again.subnet(drawn)["intermediate_size"] == widths
    extracted = again.extract(drawn)
    assert extracted.config.intermediate_size == list(widths)
    with torch.no_grad():
        torch.testing.assert_close(extracted(**batch()).logits, again.view(drawn)(**batch()).logits)
