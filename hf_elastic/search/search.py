"""`search_subnets`: find the sizes of a supernet that are worth having on this machine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedModel

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Space
from ..core.spec import SKIP
from ..measure.cost_model import CostModel, cost_models
from ..measure.digests import model_digest
from ..measure.latency import machine_facts
from ..measure.profile import DeviceProfile, check_machine
from ..measure.quality import median_length
from ..measure.values import FLOPS, LATENCY, MEMORY, PARAMETERS
from ..measure.workload import Workload, check_elastic, use_threads
from ..utils.progress import Bar
from .candidate import Rules
from .caps import check_caps
from .config import DEFAULT_LENGTH, SearchConfig
from .evaluator import Evaluator
from .explore import explore
from .finalize import evaluate_named, finalize
from .frontier import Frontier
from .objectives import Objective, shown
from .quality import Quality
from .storage import quiet
from .study import Study


def search_subnets(
    model: ElasticPreTrainedModel,
    objectives: Sequence[str | Objective] | None = None,
    eval_dataset: Iterable[Mapping] | None = None,
    *,
    config: SearchConfig | None = None,
    data_collator: Callable[[list[dict]], Mapping] | None = None,
    compute_quality: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    progress: bool = True,
    **options,
) -> Frontier:
    """Evaluate subnets and return the best trade-offs between the objectives.

    The largest and the smallest subnet are always evaluated, then the model's named sizes; `algorithm` chooses the others.
    Latency is measured side by side with the largest subnet on this machine, on the model's device, and at the end once more
    for everything on the frontier in one run; the other latencies are scaled to that run. With a `latency_profile` costs are
    predicted, and only what ends up on the frontier is measured. The same call with the same `storage` goes on where it was
    interrupted, and processes that make it at the same time share the work.

    Args:
        model: the supernet.
        objectives: those of `config` if None, which are accuracy and latency if not said otherwise; `Frontier.best` ranks by the
            first.
        eval_dataset: tokenized rows with labels, a `datasets.Dataset` or a list of dicts; needed for accuracy, loss, perplexity
            and most proxies.
        config: everything else.
        data_collator: rows -> batch, for the evaluation set; padding by default.
        compute_quality: view -> values by name, instead of accuracy, loss and perplexity on the evaluation set. With `storage`
            the caller sees to it that this function stays the same.
        progress: whether to show progress on stderr, if that is a terminal.
        **options: fields of `SearchConfig` that replace those of `config`, such as `constraints`, `n_trials` or `storage`.

    Returns:
        The frontier. Points are named "full" (or "largest"), "smallest", and as the model's named sizes are. `facts` has
        "machine" and "settings".

    Raises:
        ValueError: a value that is not allowed or not as in the profile, a `storage` that cannot be used or is of
            another search, or no subnet that keeps the constraints; the message then names the constraint that excludes all and
            the nearest value.
        ImportError: the driver of a storage is not installed.
    """
    check_elastic(model)
    if objectives is not None:
        options["objectives"] = objectives
    config = replace(config or SearchConfig(), **options)
    _check_callables(data_collator=data_collator, compute_quality=compute_quality)
    if compute_quality is None:
        config.check_known()
    goals, wanted = config.goals, config.wanted
    rules = Rules(wanted, tuple(config.limits), config.portability == "standard")
    rows = _rows(eval_dataset)
    workload = config.workload(median_length(rows) if rows else DEFAULT_LENGTH)
    predictors, warnings, machine = {}, [], None
    if config.latency_profile is not None:
        profile = config.latency_profile
        profile = profile if isinstance(profile, DeviceProfile) else DeviceProfile.load(profile)
        config.check_profiled(profile.workload)
        predictors, workload = cost_models(model, profile), profile.workload
        warnings = check_machine(profile, model, force=config.force)
        machine = profile.machine if warnings else None
    elif config.measure_at_most is not None:  # not for the config to say: a recipe may leave the profile to the command line
        raise UserError("measure_at_most is for a search with latency_profile; without one every size is measured")
    quality = Quality(model, wanted, rows, compute_quality, config.batch_size, data_collator, config.seed)
    space = _searched_space(model, config.portability)
    shape = (workload.batch_size, workload.sequence_length)
    counts = {PARAMETERS: model.num_parameters_of, FLOPS: lambda subnet: model.flops_of(subnet, *shape)}
    check_caps(space, rules.constraints, lambda name, subnet: counts[name](subnet))
    algorithm = _choose_algorithm(config.algorithm, space, config.n_trials)
    identity = {} if config.storage is None else _identity(model, goals, rules, workload, quality, predictors)
    with (
        quiet(),
        Bar(progress) as bar,
        Study(config.storage, config.study_name, identity, goals, config.stale_after) as study,
    ):
        evaluator = Evaluator(model, study, goals, rules, quality, workload, predictors, measures=not warnings)
        bar.start("evaluating subnets", len(evaluator.evaluated), min(config.n_trials, space.size))
        names = evaluate_named(evaluator, config.n_trials, bar.advance)
        budget = {"n_trials": config.n_trials, "population_size": config.population_size}
        explore(evaluator, space, goals, algorithm=algorithm, **budget, seed=config.seed, on_each=bar.advance)
        evaluator.complete(config.n_trials, bar.advance)
        settings = {**budget, "algorithm": algorithm, "portability": config.portability}
        settings |= {"batch_size": config.batch_size, "latency_batch_size": workload.batch_size}
        return finalize(evaluator, goals, names, settings, warnings, bar, config.measure_at_most, machine)


def _choose_algorithm(algorithm: str | None, space: Space, n_trials: int) -> str:
    if algorithm is None:
        return "exhaustive" if space.size <= n_trials else "surrogate"
    if algorithm == "exhaustive" and space.size > n_trials:
        raise UserError(f"algorithm 'exhaustive': the space has {space.size} subnets, and n_trials is {n_trials}")
    return algorithm


def _check_callables(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None and not callable(value):
            raise UserError(f"{name} must be a function or None, got {shown(value)}")


def _rows(eval_dataset: Iterable[Mapping] | None) -> list[Mapping] | None:
    """The rows, read once: the data set may be a stream."""
    if eval_dataset is None:
        return None
    if not isinstance(eval_dataset, Iterable):
        raise UserError(f"eval_dataset must be a data set or a list of rows, got {shown(eval_dataset)}")
    rows = list(eval_dataset)
    if not rows:
        raise UserError("eval_dataset has no rows")
    return rows


def _searched_space(model: ElasticPreTrainedModel, portability: str) -> Space:
    """The model's space; without per-layer choices and skips if a subnet must be standard: there is none that has any."""
    says_layers = all(model.layout.says_layers(axis) for axis in model.space.per_layer)
    if portability == "any" or says_layers:
        return model.space
    values = {axis: [value for value in values if value != SKIP] for axis, values in model.space.items()}
    return Space.from_dict({**model.space.to_dict(), **values, "per_layer": []}, max_group=model.layout.full.get("group"))


def _identity(
    model: ElasticPreTrainedModel,
    goals: Sequence[Objective],
    rules: Rules,
    workload: Workload,
    quality: Quality,
    predictors: Mapping[str, CostModel],
) -> dict[str, object]:
    """What the stored values depend on, and which of them are stored."""
    timed = {key: value for key, value in asdict(workload).items() if key != "seed"}
    if LATENCY in rules.wanted or MEMORY in rules.wanted:
        with use_threads(workload.threads):
            timed |= {key: value for key, value in machine_facts().items() if key in ("processor", "torch_threads")}
        timed |= {"device": str(model.device), "attention": model.config._attn_implementation}
    return {
        "model": model_digest(model),
        "space": model.space.to_dict(),
        "objectives": [asdict(goal) for goal in goals],
        "constraints": [str(limit) for limit in rules.constraints],
        "portability": rules.is_standard,
        "predicted": {name: fitted.weights.tolist() for name, fitted in predictors.items()},
        "latency": timed,
        **quality.identity,
    }
