import math
import re
import sqlite3

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from hf_elastic import (
    ElasticForCausalLM,
    ElasticForMultipleChoice,
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
)
from hf_elastic.search import Frontier, Latency, Objective, search_subnets, targets
from hf_elastic.search.objectives import Constraint
from hf_elastic.search.quality import QualityPass, median_length

SMALL = {"num_hidden_layers": [2, 4], "intermediate_size": [16, 48], "num_attention_heads": [2, 4]}
PER_LAYER = tiny.space_of("bert")


def classifier(space=SMALL, **changes):
    torch.manual_seed(0)
    base = tiny.randomize(BertForSequenceClassification(tiny.config_of("bert", num_labels=3, **changes)))
    return ElasticForSequenceClassification.from_base(base, space=space)


def classification_rows(count=17):
    generator = torch.Generator().manual_seed(1)
    lengths = [3 + index % 6 for index in range(count)]
    ids = [torch.randint(5, tiny.VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "label": index % 3, "text": "kept out"} for index, row in enumerate(ids)]


class Quality:
    """Counts the views that it is asked about; small ones are better, so that no axis is useless."""

    def __init__(self, value=None):
        self.views = []
        self.value = value or (lambda parameters: parameters / 1e5)

    def __call__(self, view):
        self.views.append(view)
        return {"accuracy": self.value(sum(parameter.numel() for parameter in view.parameters()))}


@pytest.fixture
def timed(monkeypatch):
    """Latencies that say which call they belong to: the run's drift times the number of layers; and every run's names."""
    runs = []

    def measure(callables, **options):
        runs.append(len(callables))
        drift = len(runs)
        samples = {}
        for name, call in callables.items():
            milliseconds = drift * call() / 1000
            samples[name] = Latency.from_samples([milliseconds * (1 + step / 100) for step in range(-3, 4)])
        return samples

    monkeypatch.setattr(targets, "measure_latency", measure)
    # What is timed returns what its latency will be made of.
    monkeypatch.setattr(targets.Target, "call", lambda self, model, subnet, path: lambda: model.num_parameters_of(subnet))
    return runs


def subnets_of(points):
    return [str(point.subnet) for point in points]


# --- every subnet of a small space ---------------------------------------------------------------------------------


def test_a_small_space_is_evaluated_whole_and_once():
    model, quality = classifier(), Quality()
    frontier = search_subnets(model, ["accuracy", "latency"], compute_quality=quality, sequence_length=5, progress=False)
    assert len(frontier.evaluated) == len(set(subnets_of(frontier.evaluated))) == len(model.space) == len(quality.views) == 8
    assert [point.name for point in frontier.evaluated[:2]] == ["smallest", "full"]
    for point in frontier.evaluated:
        assert point.feasible and set(point.values) == {"accuracy", "latency_ms", "parameters", "flops"}
        assert point.values["parameters"] == model.num_parameters_of(point.subnet)
        assert point.values["flops"] == model.flops_of(point.subnet, 1, 5)
        low, high = point.details["latency_ms"]
        assert 0 < low <= point.values["latency_ms"] <= high
    assert frontier.facts["settings"]["n_evaluated"] == 8
    assert {"torch", "transformers", "processor"} <= set(frontier.facts["machine"])


def test_save_and_load(tmp_path):
    frontier = search_subnets(classifier(), eval_dataset=classification_rows(), constraints=["accuracy>=0.01"], progress=False)
    frontier.save(tmp_path / "frontier.json")
    loaded = Frontier.load(tmp_path / "frontier.json")
    assert (loaded.points, loaded.evaluated, loaded.facts) == (frontier.points, frontier.evaluated, frontier.facts)
    assert frontier.best(accuracy=0) == loaded.best(accuracy=0)


def test_a_space_whose_largest_is_not_the_full_model():
    model = classifier({"num_hidden_layers": [1, 2]})
    frontier = search_subnets(model, ["parameters"], progress=False)
    assert {point.name for point in frontier.evaluated} == {"largest", "smallest"}
    single = search_subnets(classifier(None), ["parameters"], progress=False)
    assert [point.name for point in single.evaluated] == ["full"]


def test_a_named_subnet_called_largest_changes_nothing():
    model = classifier()
    model.config.subnets["largest"] = {"num_hidden_layers": 2}
    frontier = search_subnets(model, ["parameters"], progress=False)
    full = next(point for point in frontier.evaluated if point.name == "full")
    assert full.values["parameters"] == model.num_parameters_of(None)


# --- algorithms ------------------------------------------------------------------------------------------------------


def test_a_large_space_is_searched_within_the_budget(timed):
    model, quality = classifier(PER_LAYER), Quality()
    options = {"compute_quality": quality, "n_trials": 30, "population_size": 8, "sequence_length": 4, "progress": False}
    frontier = search_subnets(model, ["accuracy", "latency"], **options)
    assert len(frontier.evaluated) == len(set(subnets_of(frontier.evaluated))) == len(quality.views) == 30
    assert {"full", "smallest"} <= {point.name for point in frontier.evaluated}
    sizes = [point.values["parameters"] for point in frontier.evaluated]
    assert min(sizes) == model.num_parameters_of("smallest") and max(sizes) == model.num_parameters_of(None)
    again = search_subnets(model, ["accuracy", "latency"], **options)
    assert subnets_of(again.evaluated) == subnets_of(frontier.evaluated)
    other = search_subnets(model, ["accuracy", "latency"], **options, seed=1)
    assert subnets_of(other.evaluated) != subnets_of(frontier.evaluated)


def test_key_value_heads_are_searched_in_pairs():
    base = tiny.randomize(LlamaForCausalLM(tiny.config_of("llama")))
    model = ElasticForCausalLM.from_base(base, space=tiny.space_of("llama"))
    quality = Quality()
    options = {"compute_quality": quality, "n_trials": 12, "population_size": 6, "progress": False}
    frontier = search_subnets(model, ["accuracy", "parameters"], **options)
    assert len(frontier.evaluated) == 12
    for point in frontier.evaluated:
        model.resolve(point.subnet)


@pytest.mark.parametrize("algorithm", ["surrogate", "nsga2"])
def test_searching_beats_random_sampling(timed, algorithm):
    """Half of the parameters are worth nothing: the search must learn which."""
    model = classifier(PER_LAYER)

    def depth_only(view):
        return {"accuracy": view.config.num_hidden_layers + view.config.hidden_size / 100}

    options = {"compute_quality": depth_only, "population_size": 10, "sequence_length": 4, "progress": False}
    searched = search_subnets(model, ["accuracy", "parameters"], n_trials=80, algorithm=algorithm, **options)
    random_only = search_subnets(model, ["accuracy", "parameters"], n_trials=80, algorithm="random", **options)
    reference = {"accuracy": 0, "parameters": model.num_parameters_of(None)}
    assert searched.hypervolume(reference) > random_only.hypervolume(reference)


# --- latency ------------------------------------------------------------------------------------------------------


def test_drift_between_runs_is_scaled_away_and_the_frontier_is_of_one_run(timed):
    model = classifier(PER_LAYER)
    options = {"compute_quality": Quality(), "n_trials": 20, "population_size": 5, "sequence_length": 4, "progress": False}
    frontier = search_subnets(model, ["accuracy", "latency"], **options)
    # The faked machine gets slower with each run, so only ratios are right; all must be those of the last run.
    last = len(timed)
    assert last >= 5
    for point in frontier.evaluated:
        assert point.values["latency_ms"] == pytest.approx(last * point.values["parameters"] / 1000)
    assert timed[-1] >= len(frontier.points)


def test_new_members_of_the_frontier_are_measured_too(monkeypatch):
    """Measuring again swaps ranks; whatever is on the frontier in the end must have been in the last run."""
    runs = []

    def measure(callables, **options):
        runs.append(len(callables))
        generator = torch.Generator().manual_seed(len(runs))
        return {name: Latency.from_samples([5 + float(torch.rand(1, generator=generator))] * 6) for name in callables}

    monkeypatch.setattr(targets, "measure_latency", measure)
    frontier = search_subnets(classifier(), compute_quality=Quality(), sequence_length=4, progress=False)
    generator = torch.Generator().manual_seed(len(runs))
    last = [5 + float(torch.rand(1, generator=generator)) for _ in range(runs[-1])]
    assert {point.values["latency_ms"] for point in frontier.points} <= set(last)


@pytest.mark.parametrize("spread", [0.01, 0.5])
def test_a_busy_machine_is_called_out(monkeypatch, spread):
    def measure(callables, **options):
        return {name: Latency.from_samples([5, 5, 5, 5, 5, 5 + 5 * spread]) for name in callables}

    monkeypatch.setattr(targets, "measure_latency", measure)
    frontier = search_subnets(classifier(), compute_quality=Quality(), sequence_length=4, progress=False)
    count = len(frontier.points)
    expected = [f"{count} of {count} intervals are wider than 10% of their median: this machine is busy"] if spread > 0.1 else []
    assert [warning.partition(" with")[0] for warning in frontier.facts.get("warnings", ())] == expected


def test_threads_are_set_for_measuring_only(monkeypatch):
    seen = []

    def measure(callables, **options):
        seen.append(torch.get_num_threads())
        assert torch.is_inference_mode_enabled()
        return {name: Latency.from_samples([1.0]) for name in callables}

    monkeypatch.setattr(targets, "measure_latency", measure)
    before = torch.get_num_threads()
    frontier = search_subnets(classifier(), ["latency"], threads=before + 1, sequence_length=4, progress=False)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before
    assert frontier.facts["machine"]["torch_threads"] == before + 1


def test_default_length_is_the_median_of_the_data():
    assert median_length([{"input_ids": [1, 2, 3, 0], "attention_mask": [1, 1, 0, 0]}]) == 2
    assert median_length([{"input_ids": torch.ones(5)}, {"input_ids": [1]}, {"input_ids": [[1, 2, 3], [1]]}]) == 3
    frontier = search_subnets(classifier(), ["loss", "flops"], classification_rows(), progress=False)
    assert frontier.facts["settings"]["sequence_length"] == median_length(classification_rows())
    assert search_subnets(classifier(), ["flops"], progress=False).facts["settings"]["sequence_length"] == 128


def test_multiple_choice_can_be_timed():
    from transformers import BertForMultipleChoice

    model = ElasticForMultipleChoice.from_base(BertForMultipleChoice(tiny.config_of("bert")), space={"num_hidden_layers": [1, 4]})
    assert len(search_subnets(model, ["latency"], sequence_length=4, progress=False).evaluated) == 2


# --- constraints and portability -----------------------------------------------------------------------------------


def test_constraints_on_counts_save_evaluations(timed):
    model, quality = classifier(), Quality()
    limit = (model.num_parameters_of("smallest") + model.num_parameters_of(None)) // 2
    options = {"constraints": [f"parameters <= {limit}"], "sequence_length": 4, "progress": False}
    frontier = search_subnets(model, ["accuracy", "latency"], compute_quality=quality, **options)
    broken = [point for point in frontier.evaluated if not point.feasible]
    assert {point.values["parameters"] > limit for point in broken} == {True}
    assert max(point.values["parameters"] for point in frontier.points) <= limit
    evaluated = [point for point in broken if "accuracy" in point.values]
    assert [point.name for point in evaluated] == ["full"]
    assert len(broken) > 1 and len(quality.views) == 8 - len(broken) + 1
    assert f"breaks parameters<={limit:g}" in broken[0].details["infeasible"][0]


def test_constraints_guide_the_search(timed):
    model, quality = classifier(PER_LAYER), Quality()
    constraints = ["parameters<=12000", "parameters>=9000", "accuracy>=0.1"]
    options = {"compute_quality": quality, "n_trials": 20, "population_size": 6, "sequence_length": 4, "progress": False}
    frontier = search_subnets(model, ["accuracy", "latency"], constraints=constraints, **options)
    inside = [point for point in frontier.evaluated if point.feasible]
    assert len(quality.views) == 20 and len(inside) >= 5
    assert all(9000 <= point.values["parameters"] <= 12000 and point.values["accuracy"] >= 0.1 for point in inside)


@pytest.mark.parametrize("space", [SMALL, PER_LAYER])
def test_nothing_that_satisfies(timed, space):
    model = classifier(space)
    smallest = model.num_parameters_of("smallest")
    options = {"compute_quality": Quality(), "n_trials": 10, "population_size": 4, "sequence_length": 4, "progress": False}
    closest = rf"parameters={smallest:g} breaks parameters<={smallest - 100:g} by 100 \("
    message = rf"no subnet keeps parameters<={smallest - 100}, the nearest has parameters={smallest}; the closest: {closest}"
    with pytest.raises(ValueError, match=message):
        search_subnets(model, ["accuracy"], constraints=[f"parameters<={smallest - 100}"], **options)
    with pytest.raises(ValueError, match=r"no subnet keeps latency_ms<=1e-06, the nearest has latency_ms=.* breaks"):
        search_subnets(model, ["accuracy"], constraints=["latency_ms<=1e-6"], **options)


def test_the_nearest_value_can_be_given_back():
    """Whatever its digits: rounded, it would exclude everything again."""
    model = classifier()
    smallest = model.flops_of("smallest", 7, 1003)
    assert float(f"{smallest:g}") != smallest
    options = {"compute_quality": Quality(), "latency_batch_size": 7, "sequence_length": 1003, "progress": False}
    with pytest.raises(ValueError, match="no subnet keeps flops<=1") as raised:
        search_subnets(model, ["accuracy"], constraints=["flops<=1"], **options)
    nearest = re.search(r"the nearest has (flops)=(\S+);", str(raised.value))
    frontier = search_subnets(model, ["accuracy"], constraints=["<=".join(nearest.groups())], **options)
    assert [point.values["flops"] for point in frontier.points] == [smallest]
    assert str(Constraint.parse("flops<=1335552")) == "flops<=1335552"


def test_standard_subnets_only():
    layered = {
        "num_hidden_layers": [1, 2, 4],
        "num_attention_heads": [2, 4],
        "intermediate_size": [16, 48],
        "hidden_size": [16, 32],
    }
    model = classifier({**layered, "per_layer": ["num_attention_heads", "intermediate_size"]})
    quality = Quality()
    options = {"compute_quality": quality, "n_trials": 20, "population_size": 8, "portability": "standard", "progress": False}
    frontier = search_subnets(model, ["accuracy", "parameters"], **options)
    for point in frontier.evaluated:
        standard = model.portability_of(point.subnet) == "standard"
        assert point.feasible == standard
        assert standard or "not standard" in point.details["infeasible"][0]
    # BERT cut in heads at a fixed hidden size is not standard. All that are get found among the per-layer ones, and then it ends.
    standard = [subnet for subnet in classifier(layered).space.enumerate() if model.portability_of(subnet) == "standard"]
    assert len(quality.views) == len(standard) + (model.portability_of("smallest") == "elastic")
    assert len([point for point in frontier.evaluated if point.feasible]) == len(standard) > 5


def test_ends_when_nothing_allowed_is_left(timed):
    model, quality = classifier(), Quality()
    limit = sorted(model.num_parameters_of(list(model.space.enumerate())))[2]
    options = {"compute_quality": quality, "n_trials": 7, "population_size": 4, "sequence_length": 4, "progress": False}
    frontier = search_subnets(model, ["accuracy", "latency"], constraints=[f"parameters<={limit}"], **options)
    assert len([point for point in frontier.evaluated if point.feasible]) == 3
    assert len(quality.views) == 4


# --- quality ------------------------------------------------------------------------------------------------------


def test_classification_agrees_with_the_extracted_models():
    model, rows = classifier(), classification_rows()
    data = Dataset.from_list(rows)
    frontier = search_subnets(model, ["accuracy", "loss", "latency"], data, batch_size=4, progress=False)
    for point in frontier.evaluated:
        alone = model.extract(point.subnet)
        hits, loss = 0, 0.0
        for row in rows:
            with torch.no_grad():
                output = alone(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["label"]]))
            hits += int(output.logits.argmax()) == row["label"]
            loss += float(output.loss)
        assert point.values["accuracy"] == hits / len(rows)
        assert point.values["loss"] == pytest.approx(loss / len(rows), abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_perplexity_of_a_causal_language_model(name):
    stock = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[name]
    model = ElasticForCausalLM.from_base(tiny.randomize(stock(tiny.config_of(name))), space={"num_hidden_layers": [2, 4]})
    ids = [row["input_ids"] for row in classification_rows(9)]
    rows = [{"input_ids": row, "labels": [-100, -100, *row[2:]] if i % 2 else row} for i, row in enumerate(ids)]
    rows.append({"input_ids": [7, 8], "labels": [-100, -100]})  # nothing to predict
    frontier = search_subnets(model, ["perplexity", "accuracy", "parameters"], rows, batch_size=1, progress=False)
    together = search_subnets(model, ["perplexity", "accuracy", "parameters"], rows, batch_size=5, progress=False)
    for point, other in zip(frontier.evaluated, together.evaluated):
        alone, losses, hits = model.extract(point.subnet), [], []
        for row in rows:
            with torch.no_grad():
                logits = alone(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for place, label in enumerate(row["labels"][1:]):
                if label != -100:
                    losses.append(-float(logits[place, label]))
                    hits.append(int(logits[place].argmax()) == label)
        assert point.values["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
        assert point.values["accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert other.values == pytest.approx(point.values, rel=1e-4)


def test_token_classification_with_a_collator():
    base = tiny.randomize(BertForTokenClassification(tiny.config_of("bert", num_labels=3)))
    model = ElasticForTokenClassification.from_base(base)
    rows = [{"input_ids": r["input_ids"], "labels": [-100] + [i % 3 for i in r["input_ids"][1:]]} for r in classification_rows(6)]

    class Tokenizer:
        padding_side = "right"

        def pad(self, features, **kwargs):
            length = max(len(feature["input_ids"]) for feature in features)
            ids = [feature["input_ids"] + [0] * (length - len(feature["input_ids"])) for feature in features]
            return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(ids).ne(0).long()}

    collator = DataCollatorForTokenClassification(Tokenizer())
    given = QualityPass(model, rows, ["accuracy", "loss"], 4, collator)(model.view())
    assert given == pytest.approx(QualityPass(model, rows, ["accuracy", "loss"], 2)(model.view()), rel=1e-5)
    hits, count = 0, 0
    for row in rows:
        labels = torch.tensor(row["labels"])
        guess = model.view()(input_ids=torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        hits, count = hits + int((guess == labels).sum()), count + int((labels != -100).sum())
    assert given["accuracy"] == pytest.approx(hits / count)


def test_regression_has_a_loss_but_no_accuracy():
    model = classifier()
    model = ElasticForSequenceClassification.from_base(BertForSequenceClassification(tiny.config_of("bert", num_labels=1)))
    rows = [{"input_ids": row["input_ids"], "label": 0.5} for row in classification_rows(4)]
    assert search_subnets(model, ["loss"], rows, progress=False).points
    with pytest.raises(ValueError, match="floating-point"):
        search_subnets(model, ["accuracy"], rows, progress=False)


def test_a_random_collator_draws_once_and_reproducibly():
    def noisy(rows):
        return {"input_ids": torch.randint(5, 99, (len(rows), 4)), "labels": torch.randint(3, (len(rows),))}

    model = classifier()
    options = {"data_collator": noisy, "batch_size": 5, "progress": False}
    frontiers = [search_subnets(model, ["loss"], classification_rows(), **options) for _ in range(2)]
    assert [p.values for p in frontiers[0].evaluated] == [p.values for p in frontiers[1].evaluated]


def test_all_metrics_come_from_one_pass():
    model, calls = classifier({"num_hidden_layers": [4]}), []
    handle = model.base.register_forward_hook(lambda *args: calls.append(1))
    search_subnets(model, ["accuracy", "loss", "perplexity"], classification_rows(8), batch_size=4, progress=False)
    handle.remove()
    assert len(calls) == 2


def test_a_subnet_that_computes_nan_is_infeasible():
    quality = Quality(lambda parameters: math.nan if parameters > 20000 else 0.5)
    frontier = search_subnets(classifier(), ["accuracy", "parameters"], compute_quality=quality, progress=False)
    full = next(point for point in frontier.evaluated if point.name == "full")
    assert not full.feasible and full.details["infeasible"] == ["accuracy is not a finite number"]
    message = "is allowed: no subnet has a finite accuracy; the closest: accuracy is not a finite number"
    with pytest.raises(ValueError, match=message):
        search_subnets(classifier(), ["accuracy"], compute_quality=Quality(lambda _: math.inf), progress=False)


def test_objectives_of_ones_own():
    f1 = Objective("f1", "maximize")
    options = {"compute_quality": lambda view: {"f1": 0.5, "recall": 0.7}, "constraints": ["recall>=0.6"], "progress": False}
    frontier = search_subnets(classifier(), [f1, "parameters"], **options)
    assert frontier.points[0].values["recall"] == 0.7 and len(frontier.points) == 1


# --- storage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "file.db"])
def test_a_finished_search_is_not_done_again(tmp_path, timed, name):
    options = {"storage": tmp_path / name, "n_trials": 9, "population_size": 4, "sequence_length": 4, "progress": False}
    first, again, more = Quality(), Quality(), Quality()
    one = search_subnets(classifier(PER_LAYER), compute_quality=first, **options)
    two = search_subnets(classifier(PER_LAYER), compute_quality=again, **options)
    assert len(first.views) == 9 and not again.views
    assert sorted(subnets_of(one.evaluated)) == sorted(subnets_of(two.evaluated))
    assert {p.name for p in two.evaluated} == {"full", "smallest", None}
    more_trials = search_subnets(classifier(PER_LAYER), compute_quality=more, **{**options, "n_trials": 14})
    assert len(more.views) == 5 and len(more_trials.evaluated) == 14


def test_an_interrupted_search_takes_the_same_course(tmp_path, timed):
    options = {"n_trials": 16, "population_size": 4, "sequence_length": 4, "progress": False}
    whole = search_subnets(classifier(PER_LAYER), compute_quality=Quality(), **options)

    class Interrupted(Quality):
        def __call__(self, view):
            if len(self.views) == 11:
                raise KeyboardInterrupt
            return super().__call__(view)

    with pytest.raises(KeyboardInterrupt):
        search_subnets(classifier(PER_LAYER), compute_quality=Interrupted(), storage=tmp_path, **options)
    rest = Quality()
    resumed = search_subnets(classifier(PER_LAYER), compute_quality=rest, storage=tmp_path, **options)
    assert len(rest.views) == 5
    assert sorted(subnets_of(resumed.evaluated)) == sorted(subnets_of(whole.evaluated))


@pytest.mark.parametrize("change", ["weights", "objectives", "constraints", "data", "space", "length"])
def test_storage_of_another_search_is_refused(tmp_path, change):
    rows, arguments = classification_rows(), {"objectives": ["loss", "flops"], "storage": tmp_path, "progress": False}
    search_subnets(classifier(), eval_dataset=rows, **arguments)
    model = classifier({"num_hidden_layers": [2, 4]} if change == "space" else SMALL)
    if change == "weights":
        with torch.no_grad():
            model.base.classifier.bias += 1e-3
    arguments |= {"objectives": ["loss", "flops", "accuracy"]} if change == "objectives" else {}
    arguments |= {"constraints": ["loss<=9"]} if change == "constraints" else {}
    arguments |= {"sequence_length": 40} if change == "length" else {}
    named = {"weights": "model", "length": "latency"}.get(change, change)
    with pytest.raises(ValueError, match=rf"belongs to another search.*{named} was"):
        search_subnets(model, eval_dataset=rows[1:] if change == "data" else rows, **arguments)


def test_storage_that_is_something_else_is_refused(tmp_path):
    arguments = {"objectives": ["parameters"], "progress": False}
    text = tmp_path / "text.db"
    text.write_text("not a data base " * 100)
    with pytest.raises(ValueError, match=r"text\.db: cannot be used: file is not a database"):
        search_subnets(classifier(), storage=text, **arguments)
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(ValueError, match=r"other\.db: is no search storage: it has the tables songs"):
        search_subnets(classifier(), storage=tmp_path / "other.db", **arguments)
    with pytest.raises(ValueError, match=r"text\.txt: cannot be opened"):
        (tmp_path / "text.txt").write_text("")
        search_subnets(classifier(), storage=tmp_path / "text.txt", **arguments)


# --- bad input ----------------------------------------------------------------------------------------------------

ROWS = classification_rows(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"objectives": ["speed"]},
            "unknown objective 'speed'; known: accuracy, loss, perplexity, latency, peak_memory, parameters, flops",
        ),
        ({"objectives": []}, r"at least one of: accuracy.*got \[\]"),
        ({"objectives": "accuracy"}, "objectives must be a list.*'accuracy'"),
        ({"objectives": ["flops", "flops"]}, "must differ, got flops, flops"),
        ({"objectives": [Objective("f1", "maximize")]}, "'f1'.*give compute_quality"),
        ({"objectives": ["accuracy"], "eval_dataset": None}, "accuracy needs eval_dataset or compute_quality"),
        ({"constraints": ["loss<=1"], "eval_dataset": None}, "loss needs eval_dataset"),
        ({"constraints": ["latency<=10"]}, "unknown value 'latency'; known: .*latency_ms"),
        ({"constraints": ["latency_ms<10"]}, "'latency_ms<10' must be a name, <= or >=, and a number"),
        ({"constraints": ["latency_ms<=10ms"]}, "'10ms' is not a finite number"),
        ({"constraints": ["latency_ms<=inf"]}, "'inf' is not a finite number"),
        ({"constraints": "latency_ms<=10"}, "constraints must be a list"),
        ({"constraints": [3]}, "constraint 3 must be"),
        ({"portability": "onnx"}, "'onnx' is unknown; allowed: any, standard"),
        ({"n_trials": 0}, "n_trials must be an integer of at least 1, got 0"),
        ({"population_size": 1}, "population_size.*at least 2, got 1"),
        ({"batch_size": 2.5}, "batch_size.*2.5"),
        ({"sequence_length": 0}, "sequence_length.*0"),
        ({"latency_batch_size": -1}, "latency_batch_size.*-1"),
        ({"threads": True}, "threads.*True"),
        ({"seed": -1}, "seed.*at least 0, got -1"),
        ({"sequence_length": 1000, "objectives": ["latency"]}, "sequence_length 1000: the model cannot run"),
        ({"model": torch.nn.Linear(2, 2)}, "elastic model, got Linear"),
        ({"compute_quality": 3}, "compute_quality must be a function or None, got 3"),
        ({"compute_quality": lambda view: 3}, "must return a dict of numbers, got 3"),
        ({"compute_quality": lambda view: {"f1": 1}, "objectives": ["loss"]}, "returned no loss; it returned: f1"),
        ({"data_collator": "pad"}, "data_collator must be a function"),
        ({"data_collator": lambda rows: rows}, "data_collator must return a dict of tensors, got list"),
        ({"eval_dataset": []}, "eval_dataset has no rows"),
        ({"eval_dataset": 3}, "eval_dataset must be a data set"),
        ({"eval_dataset": [{"text": "hi"}]}, "tokenized rows with input_ids, got {'text'"),
        ({"eval_dataset": [{"input_ids": [1, 2]}]}, "needs labels for accuracy.*have: input_ids, attention_mask"),
        ({"eval_dataset": [{"input_ids": [1, 2], "label": -100}]}, "no label other than -100"),
        ({"eval_dataset": [{"input_ids": [1, 2], "label": "good"}]}, "1 rows make no batch .*give a data_collator"),
    ],
)
def test_bad_input_is_named(arguments, message):
    arguments = {"model": classifier(), "eval_dataset": ROWS, "progress": False, **arguments}
    with pytest.raises(ValueError, match=message):
        search_subnets(**arguments)
