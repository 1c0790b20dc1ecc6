"""`search_subnets`: find the sizes of a supernet that are worth having on this machine."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from transformers import PreTrainedModel

from ..modeling_elastic import ElasticPreTrainedModel
from ..space import Space
from .evaluate import Candidate, Evaluator, Rules
from .frontier import Frontier, Objective, Point
from .measure import machine_facts
from .objectives import LATENCY, MEMORY, QUALITY, read_constraints, read_objectives
from .predict import cost_models
from .profile import DeviceProfile, check_machine
from .progress import Bar
from .quality import QualityPass, median_length
from .store import Store, batches_digest, model_digest
from .targets import Target, use_threads

PORTABILITY = ("any", "standard")
DEFAULT_LENGTH = 128


def search_subnets(
    model: ElasticPreTrainedModel,
    objectives: Sequence[str | Objective] = ("accuracy", "latency"),
    eval_dataset: Iterable[Mapping] | None = None,
    *,
    constraints: Sequence[str] = (),
    portability: str = "any",
    n_trials: int = 64,
    population_size: int = 16,
    batch_size: int = 32,
    sequence_length: int | None = None,
    latency_batch_size: int = 1,
    data_collator: Callable[[list[dict]], Mapping] | None = None,
    compute_quality: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    threads: int | None = None,
    runtime: str = "torch",
    phase: str = "forward",
    seed: int = 0,
    storage: str | os.PathLike | None = None,
    latency_profile: str | os.PathLike | DeviceProfile | None = None,
    force: bool = False,
    progress: bool = True,
) -> Frontier:
    """Evaluate subnets and return the best trade-offs between the objectives.

    The largest and the smallest subnet are always evaluated. If the space has at most `n_trials` subnets, all are; else
    NSGA-II chooses. Latency is measured side by side with the largest subnet on this machine, on the model's device, and at the
    end once more for everything on the frontier in one run; the other latencies are scaled to that run.

    Args:
        model: the supernet.
        objectives: any of accuracy, loss, perplexity, latency, peak_memory, parameters, flops, a closed-form proxy such as
            decoder_parameters (see docs/search.md); or `Objective`s that
            `compute_quality` computes. `Frontier.best` ranks by the first.
        eval_dataset: tokenized rows with labels, a `datasets.Dataset` or a list of dicts; needed for accuracy, loss and
            perplexity unless `compute_quality` is given.
        constraints: limits such as "latency_ms<=10", "parameters<=20e6" or "accuracy>=0.8". Subnets that break one on
            parameters or flops are not evaluated.
        portability: "standard" for only subnets that load without this package, or "any".
        n_trials: most subnets to evaluate, those found in `storage` included.
        population_size: subnets per generation, and per run of latency measurements.
        batch_size: rows per batch of the evaluation set.
        sequence_length: tokens per sequence for latency and FLOPs; the median length in `eval_dataset` by default, else 128.
        latency_batch_size: sequences per call for latency and FLOPs.
        data_collator: rows -> batch, for the evaluation set; padding by default.
        compute_quality: view -> values by name, instead of the evaluation set.
        threads: CPU threads while latency is measured; unchanged by default.
        runtime: what latency is measured with: torch, torch.compile, onnxruntime or openvino.
        phase: what is timed: "forward"; for causal models also "prefill", or "token" after a prompt of `sequence_length`.
        seed: of the search, the latency input and a random collator.
        storage: a folder or a .db file that keeps each result as it comes. The same call goes on where it was interrupted, and
            may raise `n_trials`. With `compute_quality` the caller sees to it that this function stays the same.
        latency_profile: measurements of this model (`hf-elastic measure`) from which latency and, if the profile has it, peak
            memory are predicted; only what ends up on the frontier is measured. Its target replaces `latency_batch_size`,
            `sequence_length`, `threads`, `runtime` and `phase`.
        force: take a profile of another machine, library version or number of threads: nothing is measured then, costs stay
            predicted for that machine, and `facts` has a "warnings".
        progress: whether to show progress on stderr, if that is a terminal.

    Returns:
        The frontier. Points are named "full" (or "largest") and "smallest". `facts` has "machine" and "settings".

    Raises:
        ValueError: an argument outside what is allowed above, a `storage` of another search, or no subnet that keeps the
            constraints; the message then names the closest and what it breaks.
    """
    custom = compute_quality is not None
    goals = read_objectives(objectives, custom=custom)
    limits = read_constraints(constraints, custom=custom)
    _check_model(model, portability)
    _check_callables(data_collator=data_collator, compute_quality=compute_quality)
    sizes = {"n_trials": n_trials, "batch_size": batch_size, "latency_batch_size": latency_batch_size}
    optional = {"sequence_length": sequence_length, "threads": threads}
    _check_integers(1, **sizes, **{name: value for name, value in optional.items() if value is not None})
    _check_integers(2, population_size=population_size)
    _check_integers(0, seed=seed)

    wanted = tuple(dict.fromkeys([goal.name for goal in goals] + [limit.name for limit in limits]))
    rules = Rules(wanted, tuple(limits), portability == "standard")
    rows = _rows(eval_dataset)
    if sequence_length is None:
        sequence_length = median_length(rows) if rows else DEFAULT_LENGTH
    latency = Target(latency_batch_size, sequence_length, threads, seed, runtime, phase)
    predictors, warnings = {}, []
    if latency_profile is not None:
        profile = latency_profile if isinstance(latency_profile, DeviceProfile) else DeviceProfile.load(latency_profile)
        predictors, latency = cost_models(model, profile), profile.target
        warnings = check_machine(profile, model, force=force)
    metrics = [name for name in wanted if name in QUALITY]
    quality = compute_quality
    if quality is None and metrics:
        if rows is None:
            raise ValueError(f"{', '.join(metrics)} needs eval_dataset or compute_quality")
        quality = QualityPass(model, rows, metrics, batch_size, data_collator, seed)

    space = _searched_space(model, portability)
    predicted = {name: fitted.weights.tolist() for name, fitted in predictors.items()}
    store = Store(storage, {} if storage is None else _identity(model, goals, rules, latency, quality, predicted))
    try:
        with Bar(progress) as bar:
            evaluator = Evaluator(model, store, rules, quality, latency, predictors, measures=not warnings)
            bar.start("evaluating subnets", len(evaluator.evaluated), min(n_trials, space.size))
            names = _evaluate_ends(evaluator, bar.advance)
            if space.size <= n_trials:
                _evaluate_all(evaluator, space, population_size, bar.advance)
            else:
                from .evolve import evolve  # importing Optuna takes long

                options = {"n_trials": n_trials, "population_size": population_size, "seed": seed}
                evolve(evaluator, space, goals, **options, on_each=bar.advance)
            settings = {**sizes, "population_size": population_size, **_settings(evaluator, portability)}
            facts = {"settings": settings, **({"warnings": warnings} if warnings else {})}
            return _settle(evaluator, goals, names, facts, bar)
    finally:
        store.close()


def _check_model(model: object, portability: object) -> None:
    if not isinstance(model, ElasticPreTrainedModel):
        raise ValueError(f"model must be an elastic model, got {type(model).__name__}; make one with Elastic*.from_base")
    if portability not in PORTABILITY:
        raise ValueError(f"portability {portability!r} is unknown; allowed: {', '.join(PORTABILITY)}")


def _check_callables(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None and not callable(value):
            raise ValueError(f"{name} must be a function or None, got {value!r}")


def _check_integers(least: int, **arguments: object) -> None:
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _rows(eval_dataset: Iterable[Mapping] | None) -> list[Mapping] | None:
    """The rows, read once: the data set may be a stream."""
    if eval_dataset is None:
        return None
    if not isinstance(eval_dataset, Iterable):
        raise ValueError(f"eval_dataset must be a data set or a list of rows, got {eval_dataset!r:.200}")
    rows = list(eval_dataset)
    if not rows:
        raise ValueError("eval_dataset has no rows")
    return rows


def _searched_space(model: ElasticPreTrainedModel, portability: str) -> Space:
    """The model's space; without per-layer choices if a subnet must be standard, because that is where those all are."""
    if portability == "any" or not model.space.per_layer:
        return model.space
    return Space.from_dict({**model.space.to_dict(), "per_layer": []}, max_group=model.layout.full.get("group"))


def _identity(
    model: ElasticPreTrainedModel, goals: Sequence[Objective], rules: Rules, latency: Target, quality: object, predicted: dict
) -> dict[str, object]:
    """What the stored values depend on, and which of them are stored."""
    timed = {key: value for key, value in asdict(latency).items() if key != "seed"}
    if LATENCY in rules.wanted or MEMORY in rules.wanted:
        with use_threads(latency.threads):
            timed |= {key: value for key, value in machine_facts().items() if key in ("processor", "torch_threads")}
        timed |= {"device": str(model.device), "attention": model.config._attn_implementation}
    return {
        "model": model_digest(model),
        "space": model.space.to_dict(),
        "objectives": [asdict(goal) for goal in goals],
        "constraints": [str(limit) for limit in rules.constraints],
        "portability": rules.is_standard,
        "predicted": predicted,
        "latency": timed,
        "data": batches_digest(quality.batches) if isinstance(quality, QualityPass) else "compute_quality" if quality else None,
    }


def _settings(evaluator: Evaluator, portability: str) -> dict[str, object]:
    """What the numbers depend on besides the machine."""
    return {
        **{name: value for name, value in asdict(evaluator.latency).items() if name != "batch_size"},
        "portability": portability,
        "constraints": [str(limit) for limit in evaluator.rules.constraints],
        "n_evaluated": len(evaluator.evaluated),
        "device": str(evaluator.model.device),
        "dtype": str(evaluator.model.dtype).removeprefix("torch."),
    }


def _evaluate_ends(evaluator: Evaluator, on_each: Callable[[], object]) -> dict[str, Candidate]:
    """Evaluate the largest and the smallest subnet, allowed or not: they show what the others are compared with."""
    space = evaluator.model.space
    is_full = evaluator.model.resolve(space.largest) == evaluator.model.resolve(None)
    names = {"smallest": evaluator.look_up(space.smallest), "full" if is_full else "largest": evaluator.largest}
    ends = {id(candidate): candidate for candidate in reversed(names.values()) if not candidate.is_evaluated}
    evaluator.evaluate(list(ends.values()), on_each)
    return names


def _evaluate_all(evaluator: Evaluator, space: Space, population_size: int, on_each: Callable[[], object]) -> None:
    candidates = {id(c): c for c in map(evaluator.look_up, space.enumerate())}.values()
    allowed = [c for c in candidates if not c.is_evaluated and not evaluator.rules.problems(c)]
    for start in range(0, len(allowed), population_size):
        evaluator.evaluate(allowed[start : start + population_size], on_each)


def _settle(
    evaluator: Evaluator, goals: Sequence[Objective], names: Mapping[str, Candidate], facts: Mapping, bar: Bar
) -> Frontier:
    """The frontier, all of whose latencies are from one run, and all of whose costs are measured if this machine can.

    Measuring again may bring other subnets onto the frontier; they join the next run, until all have been in it.
    """
    with use_threads(evaluator.latency.threads):
        facts = {"machine": machine_facts(), **facts}
    together: list[Candidate] = []
    while True:
        pairs = [(candidate, _point(candidate, evaluator.rules, names)) for candidate in evaluator.decided]
        frontier = Frontier(goals, [point for _, point in pairs], facts)
        if not frontier.points:
            raise ValueError(_why_none(evaluator))
        on_frontier = {id(point) for point in frontier.points}
        new = [c for c, point in pairs if id(point) in on_frontier and all(c is not other for other in together)]
        if not new or not (evaluator.is_timed or evaluator.is_weighed):
            return frontier
        together += new
        bar.start("measuring the frontier", 0, None)
        if evaluator.is_timed:
            evaluator.measure_together(together, bar.update)
        if evaluator.is_weighed:
            evaluator.add_memories(new)


def _point(candidate: Candidate, rules: Rules, names: Mapping[str, Candidate]) -> Point:
    problems = list(rules.problems(candidate))
    return Point(
        subnet=candidate.subnet.to_dict(),
        values=dict(candidate.values),
        details={**candidate.details, **({"infeasible": problems} if problems else {})},
        name=next((name for name, named in reversed(names.items()) if named is candidate), None),
        feasible=candidate.is_evaluated and not problems,
    )


def _why_none(evaluator: Evaluator) -> str:
    problems = [(evaluator.rules.problems(candidate), candidate) for candidate in evaluator.decided]
    closest, candidate = min(problems, key=lambda item: sum(item[0].values()))
    return f"none of the {len(problems)} subnets tried is allowed; the closest: {'; '.join(closest)} ({candidate.subnet})"
