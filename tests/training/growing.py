"""Tiny models that grow, for the tests."""

from tiny import config_of, randomize
from transformers import TrainerCallback
from worker import BLOCKS, make_arguments, make_model, make_rows

from hf_elastic import ElasticForCausalLM, ElasticForMaskedLM, ElasticTrainer

AXIS = "intermediate_size"
SPACE = {"num_hidden_layers": [4], "block_type": BLOCKS, "per_layer": ["block_type"]}
DEPTHS = {"num_hidden_layers": [2, 4], "num_attention_heads": [2, 4]}
GROWTH = {"growth_width": 8, "growth_steps": 4, "growth_pairs": 3, "growth_measure_steps": 1}
SINGLE = {"sampling": "single_path", "distillation": {}, "task_weight": 1.0}
CAP = 23_000


def supernet(space=SPACE):
    return make_model("blocks", space=space, subnets={}, importance="none")


def stock(model_type, space=DEPTHS):
    kind = ElasticForMaskedLM if model_type == "bert" else ElasticForCausalLM
    config = config_of(model_type)
    return kind.from_base(randomize(kind.stock_class(config)(config)), space, importance="none")


def trainer_of(model, folder, **changes):
    args = make_arguments(folder, {**SINGLE, **GROWTH, "growth_cap": CAP, "max_steps": 60, **changes})
    return ElasticTrainer(model=model, args=args, train_dataset=make_rows("masked"), eval_dataset=make_rows("masked", 8))


def grow(model, folder, *, resume=None, **changes):
    trainer = trainer_of(model, folder, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Stop(TrainerCallback):
    """Ends a training after some steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
