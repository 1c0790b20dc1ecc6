"""`search_subnets`: find the sizes of a supernet that are worth having on this machine."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from transformers import PreTrainedModel

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Space
from ..measure.cost_model import cost_models
from ..measure.digests import batches_digest, model_digest
from ..measure.latency import machine_facts
from ..measure.profile import DeviceProfile, check_machine
from ..measure.quality import QualityPass, median_length
from ..measure.values import LATENCY, MEMORY
from ..measure.workload import Workload, use_threads
from ..utils.options import check_integers
from ..utils.progress import Bar
from .candidate import Rules
from .frontier import Frontier
from .objectives import QUALITY, Objective, read_constraints, read_objectives

PORTABILITY = ("any", "standard")
ALGORITHMS = ("surrogate", "nsga2", "nsga3", "tpe", "random", "exhaustive")
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
    algorithm: str | None = None,
    batch_size: int = 32,
    sequence_length: int | None = None,
    latency_batch_size: int | None = None,
    data_collator: Callable[[list[dict]], Mapping] | None = None,
    compute_quality: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    threads: int | None = None,
    runtime: str | None = None,
    phase: str | None = None,
    seed: int = 0,
    storage: str | os.PathLike | None = None,
    study_name: str = "search",
    stale_after: int = 60,
    latency_profile: str | os.PathLike | DeviceProfile | None = None,
    force: bool = False,
    measure_at_most: int | None = None,
    progress: bool = True,
) -> Frontier:
    """Evaluate subnets and return the best trade-offs between the objectives.

    The largest and the smallest subnet are always evaluated; `algorithm` chooses the others. Latency is measured side by side
    with the largest subnet on this machine, on the model's device, and at the end once more for everything on the frontier in
    one run; the other latencies are scaled to that run.

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
        algorithm: "surrogate" (ours: regress, evolve on the predictions, evaluate what should add the most hypervolume),
            "nsga2" (Deb et al., IEEE TEC 6(2), 2002), "nsga3" (Deb and Jain, IEEE TEC 18(4), 2014), "tpe" (multi-objective,
            Ozaki et al., GECCO 2020), "random" or "exhaustive". None is "exhaustive" if the space has at most `n_trials`
            subnets, else "surrogate".
        batch_size: rows per batch of the evaluation set.
        sequence_length: tokens per sequence for latency and FLOPs; the median length in `eval_dataset` by default, else 128.
        latency_batch_size: sequences per call for latency and FLOPs; 1 by default.
        data_collator: rows -> batch, for the evaluation set; padding by default.
        compute_quality: view -> values by name, instead of the evaluation set.
        threads: CPU threads while latency is measured; unchanged by default.
        runtime: what latency is measured with: torch (the default), torch.compile, onnxruntime or openvino.
        phase: what is timed: "forward" (the default); for causal models also "prefill", or "token" after a prompt of
            `sequence_length`.
        seed: of the search, the latency input and a random collator.
        storage: an Optuna storage that keeps each result as it comes: a folder or a .db file (SQLite), or a URL
            (sqlite:///FILE, postgresql://USER@HOST/DATABASE). The same call goes on where it was interrupted, and may raise
            `n_trials`. Processes, also on several machines, that make the same call at the same time share the work. With
            `compute_quality` the caller sees to it that this function stays the same.
        study_name: of the study in the storage.
        stale_after: seconds (at least 2) after which the subnets of a process that is not heard of are evaluated by another.
        latency_profile: measurements of this model (`hf-elastic measure`) from which latency and, if the profile has it, peak
            memory are predicted; only what ends up on the frontier is measured. Its target replaces `latency_batch_size`,
            `sequence_length`, `threads`, `runtime` and `phase`, which must be as in the profile, or be left out.
        force: take a profile of another machine, library version or number of threads: nothing is measured then, costs stay
            predicted for that machine, which `facts` names, with "warnings".
        measure_at_most: with a profile, how many of the predicted frontier to measure: those that together keep the most of its
            hypervolume; the others leave the frontier. None measures all, 0 none: costs stay predicted.
        progress: whether to show progress on stderr, if that is a terminal.

    Returns:
        The frontier. Points are named "full" (or "largest") and "smallest". `facts` has "machine" and "settings".

    Raises:
        ValueError: an argument outside what is allowed above or not as in the profile, a `storage` that cannot be used or is of
            another search, or no subnet that keeps the constraints; the message then names the constraint that excludes all and
            the nearest value.
        ImportError: the driver of a storage is not installed.
    """
    custom = compute_quality is not None
    goals = read_objectives(objectives, custom=custom)
    limits = read_constraints(constraints, custom=custom)
    _check_model(model, portability)
    _check_callables(data_collator=data_collator, compute_quality=compute_quality)
    shape = {"latency_batch_size": latency_batch_size, "sequence_length": sequence_length, "threads": threads}
    check_integers(1, n_trials=n_trials, batch_size=batch_size)
    check_integers(1, or_none=True, **shape)
    check_integers(2, population_size=population_size, stale_after=stale_after)
    check_integers(0, seed=seed)
    check_integers(0, or_none=True, measure_at_most=measure_at_most)
    if measure_at_most is not None and latency_profile is None:
        raise UserError("measure_at_most is for a search with latency_profile; without one every size is measured")

    wanted = tuple(dict.fromkeys([goal.name for goal in goals] + [limit.name for limit in limits]))
    rules = Rules(wanted, tuple(limits), portability == "standard")
    rows = _rows(eval_dataset)
    if sequence_length is None:
        sequence_length = median_length(rows) if rows else DEFAULT_LENGTH
    given = {"batch_size": latency_batch_size, "runtime": runtime, "phase": phase}
    given = {name: value for name, value in given.items() if value is not None}
    latency = Workload(sequence_length=sequence_length, threads=threads, seed=seed, **given)
    predictors, warnings, machine = {}, [], None
    if latency_profile is not None:
        profile = latency_profile if isinstance(latency_profile, DeviceProfile) else DeviceProfile.load(latency_profile)
        _check_target({**shape, "runtime": runtime, "phase": phase}, profile.target)
        predictors, latency = cost_models(model, profile), profile.target
        warnings = check_machine(profile, model, force=force)
        machine = profile.machine if warnings else None
    metrics = [name for name in wanted if name in QUALITY]
    quality = compute_quality
    if quality is None and metrics:
        if rows is None:
            raise UserError(f"{', '.join(metrics)} needs eval_dataset or compute_quality")
        quality = QualityPass(model, rows, metrics, batch_size, data_collator, seed)

    space = _searched_space(model, portability)
    algorithm = _choose_algorithm(algorithm, space, n_trials)
    predicted = {name: fitted.weights.tolist() for name, fitted in predictors.items()}
    from .evaluator import Evaluator  # importing Optuna takes long
    from .explore import explore
    from .finalize import evaluate_ends, finalize
    from .storage import quiet
    from .study import Study

    identity = {} if storage is None else _identity(model, goals, rules, latency, quality, predicted)
    with quiet(), Bar(progress) as bar, Study(storage, study_name, identity, goals, stale_after) as ledger:
        evaluator = Evaluator(model, ledger, goals, rules, quality, latency, predictors, measures=not warnings)
        bar.start("evaluating subnets", len(evaluator.evaluated), min(n_trials, space.size))
        names = evaluate_ends(evaluator, bar.advance)
        options = {"n_trials": n_trials, "population_size": population_size, "seed": seed}
        explore(evaluator, space, goals, algorithm=algorithm, **options, on_each=bar.advance)
        evaluator.complete(n_trials, bar.advance)
        settings = {"n_trials": n_trials, "batch_size": batch_size, "latency_batch_size": latency.batch_size}
        settings |= {"population_size": population_size, "algorithm": algorithm, "portability": portability}
        return finalize(evaluator, goals, names, settings, warnings, bar, measure_at_most, machine)


def _check_target(asked: Mapping[str, object], profiled: Workload) -> None:
    """Raise ValueError if an option that is given is not what the profile was measured with."""
    for option, value in asked.items():
        measured = getattr(profiled, {"latency_batch_size": "batch_size"}.get(option, option))
        if value is not None and value != measured:
            raise UserError(
                f"{option}: {value!r} is asked for, and the profile was measured with {measured!r}; "
                "leave the option out, or measure another profile"
            )


def _check_model(model: object, portability: object) -> None:
    if not isinstance(model, ElasticPreTrainedModel):
        raise UserError(f"model must be an elastic model, got {type(model).__name__}; make one with Elastic*.from_base")
    if portability not in PORTABILITY:
        raise UserError(f"portability {portability!r} is unknown; allowed: {', '.join(PORTABILITY)}")


def _choose_algorithm(algorithm: str | None, space: Space, n_trials: int) -> str:
    if algorithm is None:
        return "exhaustive" if space.size <= n_trials else "surrogate"
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm {algorithm!r} is unknown; allowed: {', '.join(ALGORITHMS)}")
    if algorithm == "exhaustive" and space.size > n_trials:
        raise UserError(f"algorithm 'exhaustive': the space has {space.size} subnets, and n_trials is {n_trials}")
    return algorithm


def _check_callables(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None and not callable(value):
            raise UserError(f"{name} must be a function or None, got {value!r}")


def _rows(eval_dataset: Iterable[Mapping] | None) -> list[Mapping] | None:
    """The rows, read once: the data set may be a stream."""
    if eval_dataset is None:
        return None
    if not isinstance(eval_dataset, Iterable):
        raise UserError(f"eval_dataset must be a data set or a list of rows, got {eval_dataset!r:.200}")
    rows = list(eval_dataset)
    if not rows:
        raise UserError("eval_dataset has no rows")
    return rows


def _searched_space(model: ElasticPreTrainedModel, portability: str) -> Space:
    """The model's space; without per-layer choices if a subnet must be standard, because that is where those all are."""
    says_layers = all(model.layout.says_layers(axis) for axis in model.space.per_layer)
    if portability == "any" or says_layers:
        return model.space
    return Space.from_dict({**model.space.to_dict(), "per_layer": []}, max_group=model.layout.full.get("group"))


def _identity(
    model: ElasticPreTrainedModel, goals: Sequence[Objective], rules: Rules, latency: Workload, quality: object, predicted: dict
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
