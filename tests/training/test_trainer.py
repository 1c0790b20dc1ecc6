"""ElasticTrainer on tiny real models: what it trains, accumulates, resumes and reports."""

import copy

import pytest
import torch
from tiny import config_of
from transformers import Trainer, TrainingArguments
from worker import make_model, make_rows

from hf_elastic import ElasticForSequenceClassification, ElasticTrainer, ElasticTrainingArguments
from hf_elastic.core.errors import UserError


def classifier(dropout=0.0, **changes):
    return make_model("classifier", dropout, **changes)


def rows(count=32, length=8):
    return make_rows("classifier", count, length).add_column("text", ["dropped"] * count)


def language_rows(count=16, length=12):
    dataset = rows(count, length).remove_columns("labels")
    return dataset.add_column("labels", dataset["input_ids"][:])


def arguments(tmp_path, **changes):
    options = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": ["none"],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return ElasticTrainingArguments(**{**options, **changes})


def train(model, args, dataset=None, *, resume=None, **kwargs):
    trainer = ElasticTrainer(model=model, args=args, train_dataset=dataset or rows(), **kwargs)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(ours, theirs, tolerance=0.0):
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=tolerance, rtol=0, msg=name)


def descend(model, loss, rate=0.1):
    """One step of plain descent."""
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad


def test_single_size_equals_plain_trainer(tmp_path):
    """With one size and no teacher an elastic step is a plain Trainer's step.

    Plain descent, because Adam turns the rounding noise of gradients that should be zero (key biases) into whole steps.
    """
    base = classifier(importance="none").extract(None)
    plain = copy.deepcopy(base)
    model = ElasticForSequenceClassification.from_base(base, importance="none")
    arguments_of_both = arguments(tmp_path, optim="sgd", learning_rate=0.1)
    train(model, arguments_of_both)
    shared = ("output_dir", "max_steps", "learning_rate", "seed", "use_cpu", "optim")
    options = {name: getattr(arguments_of_both, name) for name in shared}
    args = TrainingArguments(per_device_train_batch_size=4, report_to=["none"], save_strategy="no", **options)
    Trainer(model=plain, args=args, train_dataset=rows()).train()
    assert_same(weights(model.base), weights(plain), 1e-6)


def test_one_sandwich_step_by_hand(tmp_path):
    model = classifier()
    twin = copy.deepcopy(model)
    args = arguments(
        tmp_path,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        num_random_subnets=0,
    )
    trainer = train(model, args)
    batch = next(iter(trainer.get_train_dataloader()))
    twin.train()
    total, teacher = 0, None
    for name in ("largest", "smallest"):
        twin.select(name)
        output = twin(**batch)
        if name == "largest":
            teacher, loss = output.logits.detach(), output.loss
        else:
            log_ours, log_theirs = (logits.div(2.0).log_softmax(-1) for logits in (output.logits, teacher))
            divergence = 4.0 * (log_theirs.exp() * (log_theirs - log_ours)).sum(-1).mean()
            loss = 0.5 * output.loss + 0.5 * divergence
        total = total + loss / 2
    descend(twin, total)
    # The seeded sampler starts over, so the loader's first batch is the one that was trained on.
    assert_same(weights(model), weights(twin), 1e-6)


@pytest.mark.parametrize("sampling", ["sandwich", "all", "single_path", "progressive"])
def test_learns_and_logs(sampling, tmp_path):
    model = classifier()
    before = weights(model)
    trainer = train(model, arguments(tmp_path, sampling=sampling, max_steps=30, learning_rate=3e-3))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert any((before[name] != tensor).any() for name, tensor in weights(model).items())
    role = {"single_path": "loss_random", "all": "loss_half"}.get(sampling, "loss_smallest")
    assert any(role in entry for entry in trainer.state.log_history)
    assert model.config.subnet is None


@pytest.mark.parametrize("kind", ["classification", "causal", "masked"])
def test_accumulation_changes_nothing(kind, tmp_path):
    """Two micro-batches of four give the step of one batch of eight, with and without equal numbers of labels."""
    states = []
    for size, accumulate in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        if kind == "classification":
            model, dataset = classifier(), rows()
        else:
            model, dataset = make_model(kind), language_rows()
            labels = dataset["labels"][:]
            labels = [[-100] * (index % 5) + row[index % 5 :] for index, row in enumerate(labels)]
            dataset = dataset.remove_columns("labels").add_column("labels", labels)
        args = arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            max_steps=3,
            optim="sgd",
            learning_rate=0.05,
            max_grad_norm=0.0,
        )
        train(model, args, dataset)
        states.append(weights(model))
    assert_same(states[0], states[1], 1e-5)


def test_resume_equals_uninterrupted(tmp_path):
    whole = classifier(dropout=0.1)
    train(whole, arguments(tmp_path / "whole", max_steps=8, save_strategy="steps", save_steps=4))
    resumed = classifier(dropout=0.1)
    train(
        resumed,
        arguments(tmp_path / "again", max_steps=8, save_strategy="no"),
        resume=str(tmp_path / "whole" / "checkpoint-4"),
    )
    assert_same(weights(whole), weights(resumed))


def test_evaluates_named_sizes(tmp_path):
    from hf_elastic.metrics import compute_accuracy

    model = classifier()
    args = arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = train(model, args, eval_dataset=rows(16), compute_metrics=compute_accuracy)
    metrics = trainer.evaluate()
    assert {"eval_accuracy", "eval_smallest_accuracy", "eval_half_accuracy", "eval_half_loss"} <= metrics.keys()
    assert any("eval_half_loss" in entry for entry in trainer.state.log_history)
    batch = {key: torch.tensor(rows(16)[key][:]) for key in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        logits = model.view("half")(**batch).logits
    assert metrics["eval_half_accuracy"] == pytest.approx((logits.argmax(-1) == batch["labels"]).float().mean().item())
    several = trainer.evaluate({"a": rows(8), "b": rows(16)})
    assert {"eval_a_half_loss", "eval_b_smallest_loss"} <= several.keys()


def test_hidden_states_and_external_teacher(tmp_path):
    model = classifier()
    config = config_of("bert", num_labels=3, num_hidden_layers=3)
    teacher = ElasticForSequenceClassification.stock_class(config)(config)
    before = weights(teacher)
    args = arguments(
        tmp_path,
        distillation={"logits": 0.5, "hidden": 1.0},
        max_steps=25,
        learning_rate=3e-3,
        sampling="single_path",
        task_weight=0.0,
    )
    dataset = rows()
    batch = {key: torch.tensor(dataset[key][:]) for key in ("input_ids", "attention_mask")}

    def distance():
        with torch.no_grad():
            theirs = teacher(**batch, output_hidden_states=True).hidden_states[-1]
            return float((model(**batch, output_hidden_states=True).hidden_states[-1] - theirs).pow(2).mean())

    start = distance()
    train(model, args, dataset, teacher=teacher)
    model.eval()
    assert distance() < start
    assert_same(weights(teacher), before)


def test_autocast_and_gradient_checkpointing(tmp_path):
    model = classifier()
    trainer = train(model, arguments(tmp_path, bf16=True, gradient_checkpointing=True))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert trainer.state.global_step == 6


@pytest.mark.slow
def test_compiled_training_is_the_same(tmp_path):
    """Every size is traced once (aot_eager: traced and differentiated like inductor, without its compiler)."""
    states = []
    for compiled in ({}, {"torch_compile_backend": "aot_eager"}):
        torch.manual_seed(0)
        model = classifier()
        options = {"optim": "sgd", "learning_rate": 0.1, "sampling": "all", **compiled}
        train(model, arguments(tmp_path, distillation={"logits": 0.5, "relation": 0.5}, relation_heads=4, max_steps=3, **options))
        states.append(weights(model))
    assert_same(*states, 1e-5)


def test_label_smoothing_shifts_a_causal_model(tmp_path):
    from transformers.trainer_pt_utils import LabelSmoother

    model, args = make_model("causal"), arguments(tmp_path, label_smoothing_factor=0.2)
    trainer = ElasticTrainer(model=model, args=args, train_dataset=language_rows())
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = LabelSmoother(epsilon=0.2)(model(**batch), batch["labels"], shift_labels=True)
        assert trainer.compute_loss(model, dict(batch)) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": "some"}, "sampling: 'some' is unknown; known: sandwich, all, single_path, progressive"),
        (
            {"distillation": {"attention": 1.0}},
            "distillation: 'attention' is unknown; known: logits, hidden, relation, pkd, pkd_parts, dist",
        ),
        ({"size_weights": "depth"}, "size_weights: 'depth' is unknown; known: uniform, flops"),
        ({"temperature": 0.0}, "temperature: 0.0 must be a finite number above 0"),
        ({"distillation": {"hidden": -1.0}}, "distillation: hidden: -1.0 is not a weight"),
        ({"task_weight": 0.0, "distillation": "{}"}, "would learn nothing"),
        ({"eval_strategy": "sometimes"}, "sometimes is not a valid IntervalStrategy"),
        ({"relation_heads": 0}, "relation_heads must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **changes)


def test_no_memory_is_pinned_without_an_accelerator(tmp_path):
    assert arguments(tmp_path).dataloader_pin_memory == torch.accelerator.is_available()


@pytest.mark.parametrize("text", ['{"logits": 5e-1}', "{logits: 0.5}"])
def test_mappings_as_json_and_as_recipes_write_them(text, tmp_path):
    assert arguments(tmp_path, distillation=text).distillation == {"logits": 0.5}
    assert arguments(tmp_path, size_weights=text.replace("logits", "largest")).size_weights == {"largest": 0.5}
    with pytest.raises(ValueError, match=r"distillation: '\{logits: ' is neither a JSON mapping nor a JSON file"):
        arguments(tmp_path, distillation="{logits: ")


@pytest.mark.parametrize("sampling", ["sandwich", "single_path"])
@pytest.mark.parametrize("distillation", [{}, {"logits": 1.0, "hidden": 1.0}])
def test_a_frozen_size_is_trained_as_in_the_full_model(sampling, distillation, tmp_path):
    """Layers that differ are one size: the largest, the smallest and every random one are itself."""
    model = classifier()
    frozen = model.extract({"layers": [0, 2, 3], "intermediate_size": [40, 16, 48]})
    assert frozen.frozen_cut is not None
    before, view = weights(frozen), copy.deepcopy(frozen.base)
    options = {"sampling": sampling, "distillation": distillation, "max_steps": 1}
    options |= {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "learning_rate": 0.1}
    trainer = train(frozen, arguments(tmp_path, **options), rows(4), teacher=classifier().base if distillation else None)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(frozen).items())
    assert trainer.evaluate(rows(4))["eval_loss"] > 0
    if not distillation:
        inputs = {key: torch.tensor(rows(4)[key][:]) for key in ("input_ids", "attention_mask", "labels")}
        view.train()(**inputs).loss.backward()
        expected = {name: p.detach() - 0.1 * p.grad for name, p in view.named_parameters()}
        assert_same(expected, {name: p.detach() for name, p in frozen.named_parameters()}, 1e-6)


def test_bad_models_and_names(tmp_path):
    model = classifier()
    with pytest.raises(ValueError, match="unknown subnet 'tiny'; known: full, largest, smallest, half"):
        ElasticTrainer(model=model, args=arguments(tmp_path, eval_subnets=["tiny"]))
    with pytest.raises(ValueError, match="needs an elastic model, got Bert"):
        ElasticTrainer(model=model.base, args=arguments(tmp_path))
    with pytest.raises(UserError, match="needs ElasticTrainingArguments, got TrainingArguments"):
        ElasticTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(UserError, match="you didn't pass an `eval_dataset`"):
        ElasticTrainer(model=model, args=arguments(tmp_path, eval_strategy="epoch"), train_dataset=rows())
    with pytest.raises(UserError, match="the teacher must be a model, got str"):
        ElasticTrainer(model=model, args=arguments(tmp_path), teacher="bert-large-uncased")
    with pytest.raises(ValueError, match="frozen at one size, which is trained without the term 'relation'"):
        frozen = model.extract({"num_attention_heads": [2, 4, 4, 4]})
        ElasticTrainer(model=frozen, args=arguments(tmp_path, distillation={"relation": 1.0}))
    config = config_of("bert", num_labels=5)
    with pytest.raises(ValueError, match="the teacher's num_labels is 5, the model's is 3"):
        teacher = ElasticForSequenceClassification.stock_class(config)(config)
        ElasticTrainer(model=model, args=arguments(tmp_path), teacher=teacher)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0 for"):
        train(model, arguments(tmp_path))
