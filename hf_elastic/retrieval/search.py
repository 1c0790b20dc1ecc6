"""Which sizes of a denser and a ranker, and how many candidates, are worth their time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from ..core.configuration_elastic import FULL
from ..core.errors import UserError
from ..measure.latency import Latency, machine_facts, measure_latency, measurement_warnings
from ..measure.values import LATENCY
from ..search.frontier import Frontier
from ..search.objectives import OBJECTIVES, Objective
from ..search.point import Point
from ..utils.options import check_integers
from ..utils.progress import Bar
from .data import RetrievalData
from .elastic import ElasticMixin
from .metrics import Run, check_metrics, score_run
from .metrics import top as best_of
from .pipeline import RetrievalPipeline
from .results import Subnet, size_argument, size_name

KS = (0, 10, 20, 50, 100)
DENSER, RANKER = "denser", "ranker"


def search_pipeline(
    pipeline: RetrievalPipeline,
    data: RetrievalData,
    denser_subnets: Sequence[Subnet] | None = None,
    ks: Sequence[int] | None = None,
    ranker_subnets: Sequence[Subnet] | None = None,
    *,
    metric: str = "nDCG@10",
    top: int = 10,
    repeats: int = 20,
    show_progress: bool = False,
) -> Frontier:
    """Measure quality and latency of each (size of the denser, k, size of the ranker), and find those that no other beats.

    `pipeline.search(queries, **frontier.best(latency_ms=10).subnet)` runs the best one for a budget.

    Quality is of all judged queries. Each size of the denser encodes them once, and the index is asked for each k. Each size of
    the ranker scores a candidate of a query once, whichever settings have it.

    Latency is that of one query at a time. After a warm-up there are rounds; in each one, all stages of all settings are timed
    on one query, in a shuffled order. The first stage is encoding and searching the index, for each size and k. The second is
    reading the texts of k candidates and scoring them, for each size and k; they are those that the first of `denser_subnets`
    finds. The latency of a setting is the median, over the rounds, of the sum of its two stages. Not in it is reading the
    texts of the hits that are returned.

    Args:
        pipeline: its own sizes and k do not matter.
        data: queries and what is right.
        denser_subnets, ranker_subnets: sizes, by name or axes, and None for the full one. Default: the full one and all that
            have a name; of a symmetric denser only the pipeline's own.
        ks: candidates for the ranker (count): 0 for the first stage alone, else at least `top`. Default: those of `KS`, and
            only 0 without a ranker.
        metric: see `check_metrics`.
        top: documents that a search returns (count).
        repeats: rounds (count); each takes another one of as many queries, evenly from all, as far as there are so many.
        show_progress: show bars.

    Returns:
        The objectives are `metric` and `latency_ms`. `Point.subnet` has the arguments of `RetrievalPipeline.search`, and
        `Point.values` the medians of the stages too, `denser_ms` and `ranker_ms`.

    Raises:
        UserError: a size or a k that does not exist, fit or differ, or as by `score_run`.
    """
    check_integers(1, top=top, repeats=repeats)
    check_metrics([metric], top)
    score_run({}, data, [metric])  # before the work: the data may lack what the metric needs
    if pipeline.ranker is None and ranker_subnets is not None:
        raise UserError("ranker_subnets: the pipeline has no ranker")
    if denser_subnets is None and getattr(pipeline.denser, "mode", None) == "symmetric":
        denser_subnets = (pipeline.denser_subnet,)
    densers = _sizes(pipeline.denser, denser_subnets, "denser_subnets")
    rankers = {} if pipeline.ranker is None else _sizes(pipeline.ranker, ranker_subnets, "ranker_subnets")
    ks = _counts(ks, top, has_ranker=bool(rankers))
    queries = data.evaluated()
    texts, found = list(queries.values()), {}
    for name, size in densers.items():
        vectors = pipeline.encode(texts, size)
        found |= {(name, k): pipeline.candidates(vectors, k or top) for k in ks}
    if data.answers:  # whose texts the metric may read for each setting
        seen = {one for rows in found.values() for row in rows for one in row}
        data = replace(data, corpus=list(data.documents(seen).values()))
    candidates = [{one: 0.0 for (_, k), rows in found.items() if k for one in rows[place]} for place in range(len(texts))]
    scores = {}
    with Bar(show_progress) as bar:
        bar.start("scoring", 0, len(rankers))
        for name, size in rankers.items():
            scores[name] = pipeline.rerank(texts, candidates, size)
            bar.advance()
        bar.start("timing", 0, repeats)
        times = _time(pipeline, texts, densers, rankers, found, top, repeats, bar)
    points, latencies = [], []
    for (denser, k), rows in found.items():
        for ranker in rankers if k else (None,):
            stages = {DENSER: times[DENSER, denser, k]}
            subnet = {"denser_subnet": densers[denser], "k": k}
            if ranker is not None:
                stages[RANKER] = times[RANKER, ranker, k]
                subnet["ranker_subnet"] = rankers[ranker]
                rows = [{one: scored[one] for one in row} for row, scored in zip(rows, scores[ranker])]
            run: Run = {query: {one: row[one] for one in best_of(row, top)} for query, row in zip(queries, rows)}
            latency = Latency.from_samples(
                [sum(parts) for parts in zip(*(stage.samples_ms for stage in stages.values()))], stages[DENSER].others
            )
            latencies.append(latency)
            values = {metric: score_run(run, data, [metric]).means[metric], LATENCY: latency.median_ms}
            points.append(
                Point(
                    {key: value for key, value in subnet.items() if value is not None},
                    {**values, **{f"{name}_ms": stage.median_ms for name, stage in stages.items()}},
                    {LATENCY: [latency.low_ms, latency.high_ms]},
                    _name(denser, k, ranker, max(ks)),
                )
            )
    facts = {"machine": machine_facts(), "data": data.name, "queries": len(queries), "timed_queries": min(repeats, len(queries))}
    if warnings := measurement_warnings(latencies, alike=False):
        facts["warnings"] = warnings
    return Frontier([Objective(metric, "maximize"), OBJECTIVES["latency"]], points, facts)


def _time(
    pipeline: RetrievalPipeline,
    texts: Sequence[str],
    densers: Mapping[str, Subnet],
    rankers: Mapping[str, Subnet],
    found: Mapping[tuple[str, int], list[dict[str, float]]],
    top: int,
    repeats: int,
    bar: Bar,
) -> dict[tuple[str, str, int], Latency]:
    """How long each stage takes, by stage, size and k; the samples at one place of two stages are of the same query."""
    places = np.linspace(0, len(texts) - 1, min(repeats, len(texts))).astype(int).tolist()
    place = places[0]

    def find(size: Subnet, k: int) -> None:
        pipeline.candidates(pipeline.encode([texts[place]], size), k or top)

    def rerank(size: Subnet, k: int) -> None:
        pipeline.rerank([texts[place]], [found[next(iter(densers)), k][place]], size)

    def next_query(done: int, total: int) -> None:
        nonlocal place
        place = places[done % len(places)]
        bar.update(done, total)

    ks = list(dict.fromkeys(k for _, k in found))
    calls = {(DENSER, name, k): partial(find, size, k) for name, size in densers.items() for k in ks}
    calls |= {(RANKER, name, k): partial(rerank, size, k) for name, size in rankers.items() for k in ks if k}
    return measure_latency(calls, repeats=repeats, relative_interval=0, progress=next_query)


def _name(denser: str, k: int, ranker: str | None, most: int) -> str:
    if ranker is None:
        return f"{denser} alone" if most else denser
    return FULL if denser == ranker == FULL and k == most else f"{denser}, {k} by {ranker}"


def _sizes(model: SentenceTransformer | CrossEncoder, given: Sequence[Subnet] | None, option: str) -> dict[str, Subnet]:
    """What chooses each size in a call, by its name; None where the model has no sizes."""
    if given is None:
        given = (None, *model.subnets) if isinstance(model, ElasticMixin) else (None,)
    sizes = {size_name(subnet): size_argument(model, subnet, option).get("subnet") for subnet in given}
    if not sizes or len(sizes) < len(given):
        raise UserError(f"{option}: needed are sizes, each once; got {', '.join(map(size_name, given)) or 'none'}")
    if isinstance(model, ElasticMixin):
        for subnet in sizes.values():
            model.name_of(subnet)  # raises for one that does not exist
    return sizes


def _counts(ks: Sequence[int] | None, top: int, *, has_ranker: bool) -> list[int]:
    if ks is None:
        return [k for k in KS if k == 0 or (has_ranker and k >= top)]
    for k in ks:
        check_integers(0, ks=k)
        if k and not has_ranker:
            raise UserError(f"ks: {k}, and the pipeline has no ranker; only 0 is allowed")
        if 0 < k < top:
            raise UserError(f"ks: {k} candidates are fewer than the {top} hits of a search; at least {top} are needed, or 0")
    if not ks or len(set(ks)) < len(ks):
        raise UserError(f"ks: needed are numbers, each once; got {', '.join(map(str, ks)) or 'none'}")
    return list(ks)
