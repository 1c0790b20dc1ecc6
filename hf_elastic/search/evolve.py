"""NSGA-II over a space that is too large to try every subnet."""

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import optuna
from optuna.trial import Trial, TrialState

from ..space import Space
from .evaluate import Candidate, Evaluator
from .frontier import Objective

DRAWS = 500  # random subnets looked at to find one that is new and allowed
PATIENCE = 10  # generations without anything new to evaluate before the search ends early
PROBLEMS = "problems"


def evolve(
    evaluator: Evaluator,
    space: Space,
    objectives: Sequence[Objective],
    *,
    n_trials: int,
    population_size: int,
    seed: int,
    on_each: Callable[[], object],
) -> None:
    """Evaluate subnets until `n_trials` are, or until no new one can be found that keeps the constraints.

    The algorithm is NSGA-II (Deb et al., IEEE TEC 6(2), 2002) with its constrained domination, as Optuna has it. What the
    evaluator knows already is not evaluated again, so that with one seed an interrupted search takes the same course again.

    Args:
        evaluator: evaluates, and holds the results.
        space: where to search.
        objectives: what to optimise.
        n_trials: evaluated subnets to stop at, those of earlier runs included.
        population_size: subnets per generation, whose latencies are measured side by side.
        seed: of the algorithm.
        on_each: called after each evaluated subnet.
    """
    genes, generator = space.genes(), random.Random(seed)
    asked: set = set()
    idle = 0
    with _quiet():
        study = _make_study(objectives, population_size, seed)
        for choice in _diagonal(genes, max(2, population_size // 2)):
            study.enqueue_trial(choice)
        while len(evaluator.evaluated) < n_trials and idle < PATIENCE:
            trials = [study.ask() for _ in range(population_size)]
            candidates = [evaluator.look_up(_subnet(space, genes, _choose(trial, genes))) for trial in trials]
            new = {c.subnet: c for c in candidates if c.subnet not in asked}
            asked.update(new)
            allowed = [c for c in new.values() if not c.is_evaluated and not evaluator.rules.problems(c)]
            evaluator.evaluate(allowed[: n_trials - len(evaluator.evaluated)], on_each)
            for trial, candidate in zip(trials, candidates):
                _tell(study, trial, candidate, evaluator, objectives)
            if any(c.is_evaluated for c in new.values()):
                idle = 0
                continue
            idle += 1
            for choice in _unseen(evaluator, space, genes, generator, population_size):
                study.enqueue_trial(choice)


def _make_study(objectives: Sequence[Objective], population_size: int, seed: int) -> optuna.Study:
    sampler = optuna.samplers.NSGAIISampler(
        population_size=population_size, seed=seed, constraints_func=lambda trial: (trial.user_attrs[PROBLEMS],)
    )
    return optuna.create_study(directions=[objective.direction for objective in objectives], sampler=sampler)


def _choose(trial: Trial, genes: Mapping[str, tuple]) -> dict[str, int]:
    """A place in the choices of every gene: places are plain integers, the choices may be tuples."""
    return {gene: trial.suggest_categorical(gene, list(range(len(choices)))) for gene, choices in genes.items()}


def _subnet(space: Space, genes: Mapping[str, tuple], places: Mapping[str, int]):
    return space.from_genes({gene: choices[places[gene]] for gene, choices in genes.items()})


def _tell(study: optuna.Study, trial: Trial, candidate: Candidate, evaluator: Evaluator, objectives) -> None:
    problems = evaluator.rules.problems(candidate)
    if not problems and not candidate.is_evaluated:  # the budget ended before it
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr(PROBLEMS, float(sum(problems.values())))
    # A value may be missing only where there are problems, and then only their sum decides.
    study.tell(trial, [candidate.values.get(objective.name, 0.0) for objective in objectives])


def _diagonal(genes: Mapping[str, tuple], count: int) -> Iterator[dict[str, int]]:
    """Subnets from the largest to the smallest with all genes at the same height.

    Random genes are nearly all of middling size in a space of many layers; these span the range from the start.
    """
    for step in range(count):
        height = 1 - step / (count - 1)
        yield {gene: round(height * (len(choices) - 1)) for gene, choices in genes.items()}


def _unseen(evaluator: Evaluator, space: Space, genes: Mapping, generator: random.Random, count: int) -> list[dict[str, int]]:
    """Up to `count` random choices of subnets that are neither evaluated nor refused."""
    found = {}
    for _ in range(DRAWS):
        places = {gene: generator.randrange(len(choices)) for gene, choices in genes.items()}
        candidate = evaluator.preview(_subnet(space, genes, places))
        if not candidate.is_evaluated and not evaluator.rules.problems(candidate):
            found.setdefault(candidate.subnet, places)
        if len(found) == count:
            break
    return list(found.values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log line per trial, and no warning that one of Optuna's two interfaces for constraints is new, or old."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
