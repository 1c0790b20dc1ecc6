"""Every distillation term against its equation written out, and on every kind of task."""

import math

import pytest
import torch
from datasets import Dataset
from tiny import GROUPED, batch, config_of, randomize

import hf_elastic
from hf_elastic import (
    ElasticForCausalLM,
    ElasticForSequenceClassification,
    ElasticModel,
    ElasticTrainer,
    ElasticTrainingArguments,
)
from hf_elastic.core.layout import Layout
from hf_elastic.core.spec import spec_for
from hf_elastic.training.losses import DISTILLATION, DistillationInputs
from hf_elastic.training.relations import Projections

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def inputs_of(student, teacher, *, batch=None, shifted=False, heads=2):
    batch = {"attention_mask": MASK} if batch is None else batch
    return DistillationInputs(batch, student, teacher, shifted=shifted, temperature=2.0, relation_heads=heads)


def divergence(teacher, student):
    """KL of two lists of probabilities."""
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(teacher, student) if p > 0)


def softmax(values):
    top = max(values)
    exponents = [math.exp(value - top) for value in values]
    return [e / sum(exponents) for e in exponents]


def pearson(ours, theirs):
    a, b = ([x - sum(values) / len(values) for x in values] for values in (ours, theirs))
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_logits_by_hand():
    ours, theirs = torch.randn(2, 3), torch.randn(2, 3)
    rows = [divergence(softmax((t / 2).tolist()), softmax((s / 2).tolist())) for s, t in zip(ours, theirs)]
    found = DISTILLATION["logits"](inputs_of({"logits": ours}, {"logits": theirs}))
    assert float(found) == pytest.approx(4 * sum(rows) / 2, abs=1e-6)


def test_several_labels_are_decisions_of_their_own():
    """Each of them against its absence: the softmax over all would not see that all logits have grown alike."""
    ours, theirs = torch.randn(2, 3), torch.randn(2, 3)
    batch = {"attention_mask": MASK, "labels": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])}
    pairs = [(softmax([t / 2, 0.0]), softmax([s / 2, 0.0])) for s, t in zip(ours.flatten().tolist(), theirs.flatten().tolist())]
    found = DISTILLATION["logits"](inputs_of({"logits": ours}, {"logits": theirs}, batch=batch))
    assert float(found) == pytest.approx(4 * sum(divergence(*pair) for pair in pairs) / 6, abs=1e-6)
    for name in ("logits", "dist"):
        assert float(DISTILLATION[name](inputs_of({"logits": ours}, {"logits": ours + 3}, batch=batch))) > 0.01


def test_dist_by_hand():
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    p, q = ([softmax((row / 2).tolist()) for row in x] for x in (ours, theirs))
    rows = sum(pearson(a, b) for a, b in zip(p, q)) / 4
    columns = sum(pearson(a, b) for a, b in zip(zip(*p), zip(*q))) / 3
    found = DISTILLATION["dist"](inputs_of({"logits": ours}, {"logits": theirs}))
    assert float(found) == pytest.approx(4 * ((1 - rows) + (1 - columns)), abs=1e-5)


def test_hidden_and_pkd_by_hand():
    """Two layers of three channels follow the fourth and second of four layers of five; padding is left out."""
    student, teacher = [torch.randn(2, 4, 3) for _ in range(3)], [torch.randn(2, 4, 5) for _ in range(5)]
    marked = [(row, token) for row in range(2) for token in range(4) if MASK[row, token]]
    squares, unlike = [], []
    for ours, theirs in ((0, 0), (1, 2), (2, 4)):
        columns = [[[float(x[i][r, t, c]) for r, t in marked] for c in range(3)] for x, i in ((student, ours), (teacher, theirs))]
        if ours:
            squares.append(sum((a - b) ** 2 for s, t in zip(*columns) for a, b in zip(s, t)) / (3 * len(marked)))
        unlike.append(sum(2 * (1 - pearson(s, t)) for s, t in zip(*columns)) / 3)
    states = inputs_of({"hidden_states": tuple(student)}, {"hidden_states": tuple(teacher)})
    assert float(DISTILLATION["hidden"](states)) == pytest.approx(sum(squares) / 2, abs=1e-5)
    assert float(DISTILLATION["pkd"](states)) == pytest.approx(sum(unlike) / 3, abs=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_relation_by_hand(shifted):
    """Students of width 4, a teacher of width 6, two relation heads; causal models look back only."""
    student = {role: torch.randn(2, 4, 4) for role in ("query", "key", "value")}
    teacher = {role: torch.randn(2, 4, 6) for role in ("query", "key", "value")}
    total, count = 0.0, 0
    for role in student:
        for row, query in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)):
            for head in range(2):
                keys = [k for k in range(4) if MASK[row, k] and (k <= query or not shifted)]
                found = []
                for x, width in ((teacher[role], 3), (student[role], 2)):
                    part = x[row, :, head * width : (head + 1) * width]
                    found.append(softmax([float(part[query] @ part[k]) / math.sqrt(width) for k in keys]))
                total, count = total + divergence(*found), count + 1
    found = DISTILLATION["relation"](inputs_of({"relations": student}, {"relations": teacher}, shifted=shifted))
    assert float(found) == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("name", DISTILLATION)
def test_padding_never_counts(name):
    """What stands at a padded position changes no term, whatever the kind of prediction."""

    def outputs(width, seed):
        generator = torch.Generator().manual_seed(seed)

        def random(*shape):
            return torch.randn(*shape, generator=generator)

        kept = {"logits": random(2, 4, 5), "start_logits": random(2, 4), "end_logits": random(2, 4)}
        kept["hidden_states"] = tuple(random(2, 4, width) for _ in range(3))
        kept["relations"] = {role: random(2, 4, width) for role in ("query", "key", "value")}
        kept["parts"] = [{role: ("hidden", random(2, 4, width)) for role in ("attention", "feed_forward")} for _ in range(2)]
        return kept

    def disturbed(value):
        if isinstance(value, dict):
            return {key: disturbed(one) for key, one in value.items()}
        if isinstance(value, (tuple, list)):
            return [disturbed(one) for one in value]
        if isinstance(value, str):
            return value
        return torch.where(MASK.bool().view(2, 4, *[1] * (value.dim() - 2)), value, value + 7.0)

    student, teacher = outputs(4, 0), outputs(8, 1)
    expected = DISTILLATION[name](inputs_of(student, teacher))
    torch.testing.assert_close(DISTILLATION[name](inputs_of(disturbed(student), disturbed(teacher))), expected)
    assert float(DISTILLATION[name](inputs_of(outputs(4, 2), teacher))) != pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("name", ["logits", "dist"])
def test_ignored_labels_never_count(name):
    labels = torch.tensor([[1, -100, 2, 3], [-100, -100, 1, 0]])
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    for shifted, ignored in ((False, labels == -100), (True, torch.cat([labels[:, 1:] == -100, torch.ones(2, 1).bool()], 1))):
        states = {"batch": {"labels": labels}, "shifted": shifted}
        expected = DISTILLATION[name](inputs_of({"logits": student}, {"logits": teacher}, **states))
        changed = torch.where(ignored[..., None], torch.randn(2, 4, 5), student)
        torch.testing.assert_close(DISTILLATION[name](inputs_of({"logits": changed}, {"logits": teacher}, **states)), expected)


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_perfect_student_has_no_loss(name):
    states = {
        "logits": torch.randn(2, 3),
        "hidden_states": tuple(torch.randn(2, 4, 8) for _ in range(3)),
        "relations": {role: torch.randn(2, 4, 8) for role in ("query", "key", "value")},
        "parts": [{role: ("hidden", torch.randn(2, 4, 8)) for role in ("attention", "feed_forward")} for _ in range(2)],
    }
    assert float(DISTILLATION[name](inputs_of(states, states))) == pytest.approx(0.0, abs=1e-5)


FAMILIES = ["bert", "distilbert", "modernbert", "gpt2", "opt", "gpt_neox", "llama", "qwen3", "phi3", "gemma2"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_projections_of_every_family(model_type):
    """In a cut model they are found in its last layer, in the widths of the cut; separate ones under their own names."""
    config = config_of(model_type)
    elastic = ElasticForCausalLM if model_type not in ("bert", "distilbert", "modernbert") else ElasticModel
    stock = randomize(elastic.stock_class(config)(config))
    layout = Layout(spec_for(model_type), stock)
    cut = layout.resolve({"num_hidden_layers": 2, **({} if model_type in GROUPED else {"num_attention_heads": 2})})
    view = elastic.from_base(stock, space={"num_hidden_layers": [2, 4]}, importance="none").view(layout.subnet_of(cut))
    kept = {}
    for name, module in view.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in ("query", "key", "value") or leaf[1:] in ("_proj", "_lin"):  # deeper layers overwrite earlier ones
            module.register_forward_hook(lambda _m, _a, output, leaf=leaf: kept.update({leaf[0]: output}))
    with Projections(layout, stock).record(view, layout.sizes(cut, 1), 2) as found, torch.no_grad():
        view(**batch())
    queries, others = (32, 16) if model_type in GROUPED else (16, 16)
    assert {role: tuple(x.shape) for role, x in found.items()} == {
        "query": (3, 9, queries),
        "key": (3, 9, others),
        "value": (3, 9, others),
    }
    for role in found:
        if {"q", "k", "v"} <= kept.keys():
            torch.testing.assert_close(found[role], kept[role[0]])


def test_fused_projections_are_told_apart():
    """GPT-2 stacks Q, K and V; GPT-NeoX interleaves them by head; Phi-3 concatenates unequal ones."""
    x = torch.randn(1, 3, 32)
    config = config_of("gpt2")
    for model_type in ("gpt2", "gpt_neox", "phi3"):
        config = config_of(model_type)
        stock = randomize(ElasticForCausalLM.stock_class(config)(config))
        layout = Layout(spec_for(model_type), stock)
        projections = Projections(layout, stock)
        path, _ = projections._found[0]
        module = stock.get_submodule(f"{layout.container}.{layout.num_layers - 1}.{path}")
        cut = layout.resolve(None)
        with projections.record(stock, layout.sizes(cut, layout.num_layers - 1), layout.num_layers) as found, torch.no_grad():
            output = module(x)
        heads, head = config.num_attention_heads, 8
        if model_type == "gpt2":
            expected = output.split(32, dim=-1)
        elif model_type == "gpt_neox":  # as in GPTNeoXAttention.forward
            parts = output.view(1, 3, heads, 3 * head).chunk(3, dim=-1)
            expected = [part.reshape(1, 3, -1) for part in parts]
        else:  # as in Phi3Attention.forward
            query, shared = heads * head, config.num_key_value_heads * head
            expected = output[..., :query], output[..., query : query + shared], output[..., query + shared :]
        for role, tensor in zip(("query", "key", "value"), expected):
            torch.testing.assert_close(found[role], tensor)


TASKS = ["classification", "regression", "tokens", "questions", "choices", "masked", "causal"]


def task(kind):
    """A tiny elastic model of a task and its batch."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    inputs = batch(length=8, rows=4)
    space = {"num_hidden_layers": [1, 2, 4], "num_attention_heads": [2, 4], "intermediate_size": [16, 48]}
    heads = {
        "classification": ("SequenceClassification", "bert", {"num_labels": 3, **quiet}),
        "regression": ("SequenceClassification", "bert", {"num_labels": 1, **quiet}),
        "tokens": ("TokenClassification", "bert", {"num_labels": 3, **quiet}),
        "questions": ("QuestionAnswering", "bert", quiet),
        "choices": ("MultipleChoice", "bert", quiet),
        "masked": ("MaskedLM", "bert", quiet),
        "causal": ("CausalLM", "llama", {}),
    }
    head, model_type, changes = heads[kind]
    if kind == "causal":
        space["num_key_value_heads"] = [1, 2]
    elastic = getattr(hf_elastic, f"ElasticFor{head}")
    config = config_of(model_type, **changes)
    model = elastic.from_base(randomize(elastic.stock_class(config)(config)), space=space)
    ignored = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = {
        "classification": torch.tensor([0, 1, 2, 1]),
        "regression": torch.tensor([0.5, -1.0, 2.0, 0.1]),
        "tokens": torch.where(ignored == -100, -100, ignored % 3),
        "choices": torch.tensor([0, 1]),
        "masked": ignored,
        "causal": ignored,
    }
    if kind == "choices":
        inputs = {key: value.view(2, 2, 8) for key, value in inputs.items()}
    if kind == "questions":
        return model, {**inputs, "start_positions": torch.tensor([1, 2, 0, 3]), "end_positions": torch.tensor([2, 3, 1, 4])}
    return model, {**inputs, "labels": labels[kind]}


@pytest.mark.parametrize(
    "kind", [kind if kind in ("classification", "causal") else pytest.param(kind, marks=pytest.mark.slow) for kind in TASKS]
)
def test_every_term_on_every_task(kind, tmp_path):
    """A step with all terms is finite, and each term moves the weights."""
    states = {}
    for terms in ({}, *({name: 1.0} for name in DISTILLATION), dict.fromkeys(DISTILLATION, 0.5)):
        torch.manual_seed(0)
        model, inputs = task(kind)
        args = ElasticTrainingArguments(
            str(tmp_path),
            max_steps=1,
            distillation=terms,
            relation_heads=4,
            task_weight=1.0,
            use_cpu=True,
            report_to=["none"],
            save_strategy="no",
            optim="sgd",
            learning_rate=0.1,
            per_device_train_batch_size=4,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        rows = Dataset.from_dict({key: value.tolist() for key, value in inputs.items()})
        ElasticTrainer(model=model, args=args, train_dataset=rows).train()
        states[tuple(terms)] = torch.cat([tensor.flatten() for tensor in model.state_dict().values()])
    for terms, state in states.items():
        assert torch.isfinite(state).all(), terms
        assert terms == () or not torch.equal(state, states[()]), terms


def test_gradient_checkpointing_keeps_the_relations(tmp_path):
    """Recomputed activations give the gradients of kept ones; where they cannot, training stops and says so."""
    states = []
    options = {"use_cpu": True, "report_to": ["none"], "save_strategy": "no", "disable_tqdm": True, "max_steps": 2}
    options |= {"distillation": {"relation": 1.0}, "relation_heads": 4, "optim": "sgd", "learning_rate": 0.1}
    for checkpointing in ({}, {"use_reentrant": False}, {"use_reentrant": True}):
        torch.manual_seed(0)
        model, inputs = task("classification")
        rows = Dataset.from_dict({key: value.tolist() for key, value in inputs.items()})
        extra = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": checkpointing} if checkpointing else {}
        args = ElasticTrainingArguments(str(tmp_path), **options, **extra)
        trainer = ElasticTrainer(model=model, args=args, train_dataset=rows)
        if checkpointing.get("use_reentrant"):
            with pytest.raises(ValueError, match="set gradient_checkpointing_kwargs"):
                trainer.train()
        else:
            trainer.train()
            states.append(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]))
    torch.testing.assert_close(states[0], states[1], atol=1e-6, rtol=0)


def test_relation_heads_that_do_not_divide(tmp_path):
    model, _ = task("classification")
    args = ElasticTrainingArguments(str(tmp_path), distillation={"relation": 1.0}, relation_heads=32, use_cpu=True)
    with pytest.raises(ValueError, match="relation_heads: 32 does not divide 16, the width of the queries"):
        ElasticTrainer(model=model, args=args)


def test_teachers_that_do_not_fit(tmp_path):
    model, _ = task("classification")

    def refuse(message, distillation=None, **changes):
        config = config_of("bert", **{"num_labels": 3, **changes})
        args = ElasticTrainingArguments(
            str(tmp_path), use_cpu=True, distillation=distillation or {"logits": 1.0}, relation_heads=4
        )
        with pytest.raises(ValueError, match=message):
            teacher = ElasticForSequenceClassification.stock_class(config)(config)
            ElasticTrainer(model=model, args=args, teacher=teacher)

    refuse("the teacher's vocab_size is 50", vocab_size=50)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    refuse(r"the teacher's labels are \['good', 'fair', 'bad'\]", id2label={0: "good", 1: "fair", 2: "bad"})
    model.config.id2label = {index: f"LABEL_{index}" for index in range(3)}
    refuse("relation_heads: 4 does not divide 30", {"relation": 1.0}, hidden_size=30, num_attention_heads=3)
