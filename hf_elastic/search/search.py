"""`search_subnets`: find the sizes of a supernet that are worth having on this machine."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from ..modeling_elastic import ElasticPreTrainedModel
from ..space import Space
from .evaluate import Candidate, Evaluator, LatencySettings, Rules, use_threads
from .frontier import Frontier, Objective, Point
from .measure import machine_facts
from .objectives import COUNTS, FLOPS, LATENCY, QUALITY, read_constraints, read_objectives
from .quality import QualityPass, median_length
from .store import Store, batches_digest, model_digest

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
    seed: int = 0,
    storage: str | os.PathLike | None = None,
    progress: bool = True,
) -> Frontier:
    """Evaluate subnets and return the best trade-offs between the objectives.

    The largest and the smallest subnet are always evaluated. If the space has at most `n_trials` subnets, all are; else
    NSGA-II chooses. Latency is measured side by side with the largest subnet on this machine, on the model's device, and at the
    end once more for everything on the frontier in one run; the other latencies are scaled to that run.

    Args:
        model: the supernet.
        objectives: any of accuracy, loss, perplexity, latency, parameters, flops; or `Objective`s that `compute_quality`
            computes. `Frontier.best` ranks by the first.
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
        threads: torch threads while latency is measured; unchanged by default.
        seed: of the search, the latency input and a random collator.
        storage: a folder or a .db file that keeps each result as it comes. The same call goes on where it was interrupted, and
            may raise `n_trials`. With `compute_quality` the caller sees to it that this function stays the same.
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
    _check_arguments(model, portability, compute_quality, data_collator)
    sizes = {"n_trials": n_trials, "batch_size": batch_size, "latency_batch_size": latency_batch_size}
    optional = {"sequence_length": sequence_length, "threads": threads}
    _check_integers(1, **sizes, **{name: value for name, value in optional.items() if value is not None})
    _check_integers(2, population_size=population_size)
    _check_integers(0, seed=seed)

    wanted = tuple(dict.fromkeys([goal.name for goal in goals] + [limit.name for limit in limits]))
    rules = Rules(wanted, tuple(limits), portability == "standard")
    if sequence_length is None:
        sequence_length = DEFAULT_LENGTH if eval_dataset is None else median_length(eval_dataset)
    latency = LatencySettings(latency_batch_size, sequence_length, threads, seed)
    quality = compute_quality
    metrics = [name for name in wanted if name in QUALITY]
    if quality is None and metrics:
        if eval_dataset is None:
            raise ValueError(f"{', '.join(metrics)} needs eval_dataset or compute_quality")
        quality = QualityPass(model, eval_dataset, metrics, batch_size, data_collator, seed)
    elif not set(wanted) - {LATENCY, *COUNTS}:
        quality = None

    space = _searched_space(model, portability)
    store = Store(storage, {} if storage is None else _identity(model, goals, rules, latency, quality))
    with _Bar(progress) as bar:
        try:
            evaluator = Evaluator(model, store, rules, quality, latency)
            bar.start("evaluating subnets", len(evaluator.evaluated), min(n_trials, len(space)))
            names = _evaluate_ends(evaluator, bar.advance)
            if len(space) <= n_trials:
                _evaluate_all(evaluator, space, population_size, bar.advance)
            else:
                from .evolve import evolve  # Optuna takes a second to import

                limits = {"n_trials": n_trials, "population_size": population_size, "seed": seed}
                evolve(evaluator, space, goals, **limits, on_each=bar.advance)
            settings = {**sizes, **limits_of(latency, limits_text=[str(limit) for limit in rules.constraints])}
            return _settle(evaluator, goals, names, settings, bar)
        finally:
            store.close()
