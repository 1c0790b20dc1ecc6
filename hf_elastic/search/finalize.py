"""The first and the last step of a search: what everything is compared with, and the frontier of what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from ..core.errors import UserError
from ..measure.latency import machine_facts, measurement_warnings
from ..measure.workload import use_threads
from ..utils.progress import Bar
from .algorithms.surrogate import choose
from .candidate import Candidate, Rules
from .evaluator import Evaluator
from .frontier import Frontier
from .objectives import Objective, number
from .point import Point


def evaluate_named(evaluator: Evaluator, most: int, on_each: Callable[[], object]) -> dict[str, Candidate]:
    """Evaluate the largest and the smallest subnet, allowed or not: they show what the others are compared with. Then those
    that the model has names for and that are allowed, as long as there are no more than `most` in all."""
    space = evaluator.model.space
    is_full = evaluator.model.resolve(space.largest) == evaluator.model.resolve(None)
    names = {"smallest": evaluator.look_up(space.smallest), "full" if is_full else "largest": evaluator.largest}
    ends = {id(candidate): candidate for candidate in reversed(names.values()) if not candidate.is_evaluated}
    evaluator.obtain(list(ends.values()), on_each)
    named = {name: evaluator.look_up(evaluator.model.subnet(name)) for name in evaluator.model.config.subnets}
    wanted = {id(one): one for one in named.values() if not (one.is_evaluated or evaluator.rules.problems(one))}
    evaluator.obtain(list(wanted.values())[: max(0, most - len(evaluator.study))], on_each)
    return {**named, **names}


def finalize(
    evaluator: Evaluator,
    goals: Sequence[Objective],
    names: Mapping[str, Candidate],
    settings: Mapping,
    warnings: list[str],
    bar: Bar,
    most: int | None = None,
    machine: Mapping | None = None,
) -> Frontier:
    """The frontier, all of whose latencies are from one run, and all of whose costs are measured if this machine can.

    Measuring again may bring other subnets onto the frontier; they join the next run, until all have been in it. Where costs are
    predicted, at most `most` are measured if it is given: those that add the most hypervolume. The frontier is then one of
    these, and of what is predicted if that is 0. `machine` describes the one that costs are predicted for, if it is another.
    """
    with use_threads(evaluator.workload.threads):
        facts = {"machine": dict(machine or machine_facts()), "settings": {**settings, **_settings(evaluator)}}
    if warnings:
        facts["warnings"] = warnings
    together: list[Candidate] = []
    chosen = None
    while True:
        pairs = [(candidate, _point(candidate, evaluator.rules, names, chosen)) for candidate in evaluator.decided]
        frontier = Frontier(goals, [point for _, point in pairs], facts)
        if not frontier.points:
            raise UserError(_why_none(evaluator))
        on_frontier = {id(point) for point in frontier.points}
        new = [c for c, point in pairs if id(point) in on_frontier and all(c is not other for other in together)]
        if not new or most == 0 or not (evaluator.is_timed or evaluator.is_weighed):
            ours = [candidate.subnet for candidate, point in pairs if id(point) in on_frontier]
            if found := measurement_warnings([evaluator.last_run[subnet] for subnet in ours if subnet in evaluator.last_run]):
                frontier.facts["warnings"] = [*warnings, *found]
            return frontier
        if chosen is None and most is not None and evaluator.predictors and len(new) > most:
            chosen = new = _spread(new, goals, most)
        together += new
        bar.start("measuring the frontier", 0, None)
        if evaluator.is_timed:
            evaluator.measure_together(together, bar.update)
        if evaluator.is_weighed:
            evaluator.add_memories(new)


def _settings(evaluator: Evaluator) -> dict[str, object]:
    """What the numbers depend on besides the machine."""
    return {
        **{name: value for name, value in asdict(evaluator.workload).items() if name != "batch_size"},
        "constraints": [str(limit) for limit in evaluator.rules.constraints],
        "n_evaluated": len(evaluator.evaluated),
        "device": str(evaluator.model.device),
        "dtype": str(evaluator.model.dtype).removeprefix("torch."),
    }


def _spread(candidates: list[Candidate], goals: Sequence[Objective], most: int) -> list[Candidate]:
    """Those of a frontier that together leave the least of its hypervolume out."""
    costs = np.array([[goal.sign * candidate.values[goal.name] for goal in goals] for candidate in candidates])
    places = choose(costs, np.zeros(len(costs)), np.empty((0, len(goals))), most, np.random.default_rng(0))
    return [candidates[place] for place in places]


def _point(
    candidate: Candidate, rules: Rules, names: Mapping[str, Candidate], chosen: Sequence[Candidate] | None = None
) -> Point:
    problems = list(rules.problems(candidate))
    if chosen is not None and all(candidate is not one for one in chosen):
        problems.append(f"not among the {len(chosen)} that were chosen to be measured")
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
    return (
        f"none of the {len(problems)} subnets tried is allowed: {_what_excludes(evaluator)}; "
        f"the closest: {'; '.join(closest)} ({candidate.subnet})"
    )


def _what_excludes(evaluator: Evaluator) -> str:
    """Which constraints each exclude everything that was tried, and the nearest value to their limits."""
    found = []
    for constraint in evaluator.rules.constraints:
        values = [c.values[constraint.name] for c in evaluator.decided if constraint.name in c.values]
        if values and all(constraint.excess(value) > 0 for value in values):
            nearest = number(min(values, key=constraint.excess))
            found.append(f"no subnet keeps {constraint}, the nearest has {constraint.name}={nearest}")
    if not found:
        tried = [candidate for candidate in evaluator.evaluated if candidate.why_failed is None]
        lacking = [goal.name for goal in evaluator.goals if not any(goal.name in c.values for c in tried)]
        found = [f"no subnet has a finite {name}" for name in lacking if tried]
    if not found and not evaluator.rules.constraints:
        return "no subnet has all that is wanted"
    return "; ".join(found) or "each constraint can be kept, but not all of them"
