"""What `Trainer` promises, and `ElasticTrainer` keeps: losses, evaluation, callbacks, searches."""

import copy
from itertools import pairwise

import pytest
import torch
from test_trainer import arguments, assert_same, classifier, language_rows, rows, train, weights
from tiny import config_of, randomize
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_elastic import ElasticForCausalLM, ElasticForSequenceClassification, ElasticTrainer
from hf_elastic.core.errors import UserError
from hf_elastic.core.portable import IS_OLD

DESCENT = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}


class Recorder(TrainerCallback):
    """Keeps the names of the metrics of every evaluation, and of every line of the log."""

    def __init__(self):
        self.evaluated, self.logged = [], []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.evaluated.append(dict(metrics))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logged.append(dict(logs))


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def summed_loss(counts):
    """A loss of the user's own, as Trainer wants it, which notes the number of items that it is given."""

    def loss(outputs, labels, num_items_in_batch=None):
        counts.append(int(num_items_in_batch))
        shifted = (outputs["logits"], labels) if labels.ndim == 1 else (outputs["logits"][:, :-1], labels[:, 1:])
        logits, wanted = (tensor.flatten(0, -2 if tensor.is_floating_point() else -1) for tensor in shifted)
        return cross_entropy(logits, wanted, reduction="sum") / num_items_in_batch

    return loss


@pytest.mark.parametrize("kind", [ElasticForSequenceClassification, ElasticForCausalLM])
def test_a_loss_of_ones_own_is_that_of_a_plain_trainer(kind, tmp_path):
    """Of several micro-batches and with unequal numbers of labels: numbers of items, losses and weights."""
    name, dataset = "bert", rows()
    if kind is ElasticForCausalLM:
        if IS_OLD:
            pytest.skip("transformers 4.57 counts the first label of a text as well, which nothing predicts")
        labels = [[-100] * (index % 5) + row[index % 5 :] for index, row in enumerate(language_rows()["labels"][:])]
        name, dataset = "llama", language_rows().remove_columns("labels").add_column("labels", labels)
    config = config_of(name, num_labels=3)
    stock = randomize(kind.stock_class(config)(config))
    model = kind.from_base(copy.deepcopy(stock), importance="none")
    options = {"gradient_accumulation_steps": 3, "max_steps": 3, **DESCENT}
    ours, theirs = [], []
    elastic = train(model, arguments(tmp_path, **options), dataset, compute_loss_func=summed_loss(ours), eval_dataset=dataset)
    kept = {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": [], "save_strategy": "no", "seed": 3, **options}
    args, sets = TrainingArguments(str(tmp_path), **kept), {"train_dataset": dataset, "eval_dataset": dataset}
    plain = Trainer(stock, args, compute_loss_func=summed_loss(theirs), **sets)
    plain.train()
    assert ours and ours == theirs
    assert_same(weights(model.base), weights(stock), 1e-6)
    assert elastic.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("split_random_rows", [1, 2])
def test_a_loss_of_ones_own_in_every_size(split_random_rows, tmp_path):
    """The model's own loss, as a function: nothing changes, whatever micro-batches and parts the rows come in."""
    states = []
    for size, accumulate, options in ((8, 1, {}), (4, 2, {}), (4, 2, {"compute_loss_func": summed_loss([])})):
        torch.manual_seed(0)
        model = classifier()
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate, "max_steps": 3}
        train(model, arguments(tmp_path, split_random_rows=split_random_rows, **steps, **DESCENT), **options)
        states.append(weights(model))
    assert_same(states[1], states[2], 1e-5)
    if split_random_rows == 1:  # else each micro-batch deals out its own rows
        assert_same(states[0], states[2], 1e-5)


class Scaled(ElasticTrainer):
    """Its loss is normalised over the whole step."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class Mean(ElasticTrainer):
    """Its loss is a mean over the micro-batch."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_compute_loss_of_a_subclass(tmp_path):
    states = []
    for kind in (ElasticTrainer, Scaled, Mean):
        torch.manual_seed(0)
        model = classifier()
        kind(model, arguments(tmp_path, gradient_accumulation_steps=2, max_steps=3, **DESCENT), train_dataset=rows()).train()
        states.append(weights(model))
    assert_same(states[0], states[1], 1e-5)
    assert_same(states[0], states[2], 1e-5)


def test_evaluation_is_of_every_size_and_keeps_the_selected_one(tmp_path):
    model, recorder = classifier(), Recorder()
    trainer = ElasticTrainer(
        model, arguments(tmp_path), train_dataset=rows(8), eval_dataset=rows(8), compute_metrics=accuracy, callbacks=[recorder]
    )
    plain = trainer.evaluate()
    model.select("half")
    selected = trainer.evaluate()
    assert model.config.subnet == "half"
    for name in ("eval_loss", "eval_half_loss", "eval_smallest_loss", "eval_accuracy", "eval_half_accuracy"):
        assert selected[name] == plain[name]
    assert plain["eval_loss"] != plain["eval_half_loss"]
    batch = {key: torch.tensor(rows(8)[key][:]) for key in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        assert plain["eval_loss"] == pytest.approx(model.view(None)(**batch).loss.item(), abs=1e-5)
        expected = model.view("half")(**batch).logits
    torch.testing.assert_close(torch.tensor(trainer.predict(rows(8)).predictions), expected, atol=1e-5, rtol=0)
    assert model.config.subnet == "half"
    trainer.train()
    assert model.config.subnet == "half"
    assert [metrics.keys() for metrics in recorder.evaluated] == [plain.keys()] * 2
    assert len([line for line in recorder.logged if "eval_loss" in line and "eval_half_accuracy" in line]) == 2

    def fails(prediction):
        raise KeyError("no such metric")

    trainer.compute_metrics = fails
    for call in (trainer.evaluate, lambda: trainer.predict(rows(8))):
        with pytest.raises(KeyError, match="no such metric"):
            call()
        assert model.config.subnet == "half"


@pytest.mark.parametrize("metric", ["half_accuracy", "eval_smallest_loss"])
def test_early_stopping_and_the_best_checkpoint_by_any_size(metric, tmp_path, capsys):
    said = []
    patched = pytest.MonkeyPatch()
    patched.setattr(logging.get_logger("transformers.trainer_callback"), "warning", said.append)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.0}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": "loss" not in metric}
    callbacks = [EarlyStoppingCallback(2)]
    with patched.context():
        trainer = train(
            classifier(), arguments(tmp_path, **options), eval_dataset=rows(8), compute_metrics=accuracy, callbacks=callbacks
        )
    patched.undo()
    assert not said
    assert trainer.state.global_step == 3  # nothing is learned: the first is the best, and two more are waited for
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")


def test_what_metrics_are_given(tmp_path):
    """Several data sets, inputs and losses, and logits that were processed first, each of every size."""
    seen = []

    def count(prediction):
        seen.append((prediction.inputs.shape, prediction.losses.shape, prediction.predictions.shape))
        return {"rows": len(prediction.label_ids)}

    args = arguments(tmp_path, include_for_metrics=["inputs", "loss"], label_names=["labels"])
    metrics = ElasticTrainer(
        classifier(), args, eval_dataset={"a": rows(8), "b": rows(16)}, compute_metrics=count,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    ).evaluate()  # fmt: skip
    assert seen == [((8, 8), (8,), (8,))] * 3 + [((16, 8), (16,), (16,))] * 3
    assert [metrics[f"eval_{name}_rows"] for name in ("a", "a_half", "a_smallest", "b", "b_half")] == [8, 8, 8, 16, 16]


def test_progress_bars_say_which_size(tmp_path, capfd):
    model = classifier()
    trainer = ElasticTrainer(model, arguments(tmp_path, disable_tqdm=False), eval_dataset=rows(32))
    trainer.evaluate()
    model.select({"num_hidden_layers": 2})
    trainer.predict(rows(32))
    bars = capfd.readouterr().err
    places = [bars.index(name) for name in ("full: ", "smallest: ", "half: ", "{'num_hidden_layers': 2}: ")]
    assert all(one < other for one, other in pairwise(places))


def test_a_model_is_made_for_every_training(tmp_path):
    made = []

    def make():
        torch.manual_seed(0)
        made.append(classifier())
        made[-1].select("half")
        return made[-1]

    args = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    trainer = ElasticTrainer(args=args, model_init=make, train_dataset=rows(), eval_dataset=rows(8))
    trainer.train()
    assert trainer.model is made[-1] and len(made) == 2
    assert made[-1].config.subnet == "half"
    again = ElasticTrainer(args=arguments(tmp_path / "again", max_steps=4), model_init=make, train_dataset=rows())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(weights(trainer.model), weights(again.model))
    with pytest.raises(UserError, match="needs an elastic model, got BertForSequenceClassification"):
        ElasticTrainer(args=args, model_init=lambda: classifier().base)
    if not IS_OLD:  # which warns, and takes the model that it makes
        with pytest.raises(UserError, match="either a `model` or `model_init` argument, but not both"):
            ElasticTrainer(classifier(), args, model_init=make)


def test_hyperparameters_are_searched(tmp_path):
    """Options of the sizes too; a trial starts from a new model, and its sizes are drawn by its own options."""
    pytest.importorskip("optuna")
    made, seen = [], []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            drawn = [role for role, _ in trainer.sampler.draw(0, args.max_steps)]
            seen.append((args.sampling, drawn, args.temperature, model is made[-1]))

    def make(trial):
        made.append(classifier())
        return made[-1]

    def space(trial):
        options = {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3), "temperature": 3.0}
        return {**options, "sampling": ["all", "sandwich"][trial.number], "num_random_subnets": 3}

    args = arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer = ElasticTrainer(
        args=args, model_init=make, train_dataset=rows(), eval_dataset=rows(8), callbacks=[Look()], compute_metrics=accuracy
    )
    best = trainer.hyperparameter_search(hp_space=space, n_trials=2, direction="maximize", backend="optuna")
    assert seen == [
        ("all", ["largest", "half"], 3.0, True),
        ("sandwich", ["largest", "random", "random", "random", "smallest"], 3.0, True),
    ]
    assert len(made) == 3 and len({id(model) for model in made}) == 3
    assert 0 <= best.objective <= 1  # the mean accuracy of the sizes
    with pytest.raises(UserError, match="sampling: 'some' is unknown"):
        trainer.hyperparameter_search(hp_space=lambda trial: {"sampling": "some"}, n_trials=1, backend="optuna")
    plain = ElasticTrainer(classifier(), args, train_dataset=rows(), eval_dataset=rows(8))
    with pytest.raises(RuntimeError, match="model_init"):
        plain.hyperparameter_search(n_trials=1, backend="optuna")


def test_the_objective_of_a_search_without_metrics_is_the_mean_loss():
    from hf_elastic.training.evaluation import mean_objective

    metrics = {"eval_loss": 1.0, "eval_small_loss": 3.0, "eval_runtime": 9.0, "eval_steps_per_second": 5.0, "epoch": 2.0}
    assert mean_objective(metrics) == 2.0
    assert mean_objective({**metrics, "eval_f1": 0.5, "eval_em": 0.1, "eval_small_f1": 0.2, "eval_small_em": 0.2}) == 0.5


def test_a_batch_too_large_for_memory_is_tried_smaller(tmp_path):
    sizes = []

    class Small(ElasticTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            sizes.append(len(inputs["input_ids"]))
            if len(sizes) == 4 and sizes[-1] == 4:  # in the second micro-batch
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    model = classifier()
    args = arguments(tmp_path, auto_find_batch_size=True, gradient_accumulation_steps=2, num_random_subnets=0, max_steps=2)
    trainer = Small(model, args, train_dataset=rows())
    trainer.train()
    assert sizes[:4] == [4] * 4 and set(sizes[4:]) < {2, 3}
    assert trainer.state.global_step == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"eval_on_start": True, "eval_strategy": "epoch"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "half_loss", "eval_strategy": "epoch"},
        {"save_strategy": "best", "metric_for_best_model": "half_loss", "eval_strategy": "epoch"},
        {"bf16_full_eval": True, "eval_strategy": "epoch"},
        {"torch_empty_cache_steps": 1},
        {"eval_accumulation_steps": 1, "eval_do_concat_batches": False},
        {"batch_eval_metrics": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_of_trainer(changes, tmp_path):
    def whatever(prediction, compute_result=True):
        return {"one": 1.0}

    args = arguments(tmp_path, max_steps=2, **changes)
    trainer = train(classifier(), args, rows(8), eval_dataset=rows(8), compute_metrics=whatever)
    metrics = trainer.evaluate()
    assert trainer.state.global_step == 2
    assert metrics["eval_one"] == metrics["eval_half_one"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_liger_kernel": True}, "use_liger_kernel: not supported"),
        ({"optim": "lomo"}, "optim: lomo updates the weights in each"),
    ],
)
def test_what_cannot_train_many_sizes_is_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ElasticTrainer(classifier(), arguments(tmp_path, **changes))


def test_arguments_come_in_the_order_of_trainer(tmp_path):
    def collate(features):
        return {key: torch.tensor([row[key] for row in features]) for key in ("input_ids", "labels")}

    trainer = ElasticTrainer(classifier(), arguments(tmp_path), collate, rows(8), rows(8))
    assert (trainer.data_collator, len(trainer.train_dataset), len(trainer.eval_dataset)) == (collate, 8, 8)


def test_prompts_belong_to_one_size(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(classifier(), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(UserError, match=r"PROMPT_TUNING is learned for one size, with transformers' Trainer; .* from add_lora"):
        ElasticTrainer(model, arguments(tmp_path))


def test_a_selected_size_takes_no_prompt_of_another_width():
    peft = pytest.importorskip("peft")
    config = {"hidden_size": [16, 32], "num_hidden_layers": [2, 4]}
    stock = classifier().base
    model = ElasticForSequenceClassification.from_base(stock, space=config)
    prompted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    model.select({"hidden_size": 16})
    with pytest.raises(UserError, match=r"inputs_embeds is 32 wide, the selected size 16; .* or use add_lora"):
        prompted(**{key: torch.tensor(rows(2)[key][:]) for key in ("input_ids", "attention_mask")})
