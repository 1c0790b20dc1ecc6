"""Decisions of the scheduler: small cases worked out by hand, and what holds for all."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served_profiles import SIZES, costs, profile, requests

from hf_elastic.core.errors import UserError
from hf_elastic.serving.config import SchedulerConfig
from hf_elastic.serving.costs import CostModel
from hf_elastic.serving.scheduler import LATE_TURNS, PATIENCE, Request, Scheduler

pytestmark = pytest.mark.one_lane
QUALITY = {name: quality for name, quality, _ in SIZES}
ORDER = [name for name, *_ in SIZES]


def scheduler(**options) -> Scheduler:
    return Scheduler(costs(), SchedulerConfig(**options))


def ids(batch) -> list[int]:
    return [request.id for request in batch.requests]


# n requests of ten tokens take 1 + 10 n ms (full), 1 + 5 n ms (half), 1 + n ms (tiny). Of 100 ms, 10 are left as headroom.
@pytest.mark.parametrize("count, size", [(1, "full"), (8, "full"), (9, "half"), (17, "half"), (18, "tiny"), (32, "tiny")])
def test_the_largest_size_that_is_in_time(count, size):
    batch = scheduler(hysteresis=0.0).next(0.0, requests(count)).batch
    assert (batch.subnet, len(batch.requests)) == (size, count)
    assert batch.seconds == pytest.approx(0.001 + 0.001 * count * {"full": 10, "half": 5, "tiny": 1}[size])


def test_time_that_was_spent_waiting_counts():
    assert scheduler(hysteresis=0.0).next(0.0, requests(4, arrival=-0.04)).batch.subnet == "full"  # 41 of 50 ms
    assert scheduler(hysteresis=0.0).next(0.0, requests(4, arrival=-0.05)).batch.subnet == "half"  # 41 of 40 ms


def test_a_larger_size_has_to_be_earlier_than_needed():
    """81 ms of 90 are enough to stay with a size; to go back to it, 80 are left."""
    one, moments = scheduler(), [100.0 * turn for turn in range(6)]  # far apart: nothing will come meanwhile
    sizes = [one.next(now, requests(count, arrival=now)).batch.subnet for now, count in zip(moments, [7, 8, 18, 8, 7, 8])]
    assert sizes == ["full", "full", "tiny", "half", "full", "full"]


def test_what_will_come_meanwhile_is_planned_for():
    """At 200 requests a second, eight more come during the 41 ms that four take at full size, and they would take 81 ms."""
    one = scheduler(hysteresis=0.0)
    assert one.next(0.0, requests(4, arrival=-0.001)).batch.subnet == "full"  # nothing is known of the rate
    for turn in range(1, 200):
        now = 0.02 * turn
        batch = one.next(now, [Request(4 * turn + i, now - 0.005 * i, 10) for i in range(4)]).batch
    assert batch.subnet == "half"
    assert one.next(now + 60, requests(4, arrival=now + 60)).batch.subnet == "full"  # after a quiet minute


def test_deadlines_of_their_own():
    assert scheduler().next(0.0, requests(2, deadline=0.02)).batch.subnet == "half"
    assert scheduler(latency_objective=5.0).next(0.0, requests(8, deadline=1.0)).batch.subnet == "full"
    mixed = [*requests(8), *requests(1, first=8, deadline=0.009)]
    first = scheduler().next(0.0, mixed).batch
    assert (first.subnet, ids(first)) == ("half", [8])  # 6 ms, and 41 ms for the others


def test_only_a_deadline_that_has_passed_is_dropped():
    queue = [
        Request(0, 0.0, 10, deadline=1.0),
        Request(1, 0.0, 10, deadline=1.001),  # cannot be met: answered late
        Request(2, -50.0, 10),  # long overdue, with no deadline of its own
        Request(3, 0.0, 10, deadline=0.5),
    ]
    decision = scheduler().next(1.0, queue)
    assert [request.id for request in decision.expired] == [0, 3]
    assert sorted(ids(decision.batch)) == [1, 2] and decision.batch.subnet == "tiny"
    decision = scheduler().next(2.0, [queue[0]])
    assert decision.batch is None and [request.id for request in decision.expired] == [0]
    assert scheduler().next(0.0, []) == scheduler().next(5.0, [])


@pytest.mark.parametrize(("objectives", "together"), [(0.9 * PATIENCE, 1), (1.1 * PATIENCE, 2)])
def test_what_is_late_yields_but_gets_its_turn(objectives, together):
    """In time before late; one batch of some begins with the most overdue, and has nothing else when that waits too long."""
    one = scheduler(max_batch_size=2)
    waiting = requests(6, arrival=-objectives * one.objective)
    turns, new = [], 100
    for turn in range(3 * LATE_TURNS):
        coming = requests(4, arrival=turn * 0.01, first=new)
        new += 4
        batch = one.next(turn * 0.01, [*waiting, *coming]).batch
        turns += [(turn, request.id) for request in batch.requests if request.id < 100]
        waiting = [request for request in waiting if request.id not in ids(batch)]
    assert [number for _, number in turns] == list(range(3 * together))
    assert [after - before for (before, _), (after, _) in pairwise(turns[::together])] == [LATE_TURNS] * 2


def test_late_is_what_the_policy_cannot_reach():
    """Five milliseconds are too few for full size, and enough for the smallest."""
    queue = [Request(0, 0.0, 10, deadline=0.005), Request(1, 0.0, 10)]
    assert ids(scheduler(policy="static:full", max_batch_size=1).next(0.0, queue).batch) == [1]
    assert ids(scheduler(policy="static:tiny", max_batch_size=1).next(0.0, queue).batch) == [0]
    assert ids(scheduler(policy="slo", max_batch_size=1).next(0.0, queue).batch) == [0]


@pytest.mark.parametrize("policy", ["slo", "table", "static:tiny"])
def test_a_fixed_size_is_kept(policy):
    queue = [*requests(30), *requests(1, first=30, subnet="half"), *requests(1, first=31, subnet="full")]
    one, seen = scheduler(policy=policy), {}
    while queue:
        batch = one.next(0.0, queue).batch
        seen |= dict.fromkeys(ids(batch), batch.subnet)
        queue = [request for request in queue if request.id not in seen]
    assert (seen[30], seen[31]) == ("half", "full") and {seen[i] for i in range(30)} == {"tiny"}


def test_a_floor_is_kept_and_nobody_else_rises_to_it():
    queue = [*requests(30), *requests(3, first=30, min_quality=0.7)]
    one = scheduler()
    first = one.next(0.0, queue).batch
    assert first.subnet == "tiny" and ids(first) == list(range(30))
    second = one.next(first.seconds, queue[30:]).batch
    assert QUALITY[second.subnet] >= 0.7 and ids(second) == [30, 31, 32]
    assert scheduler(policy="static:tiny").next(0.0, requests(1, min_quality=0.6)).batch.subnet == "tiny"
    assert scheduler(policy="static:tiny").next(0.0, requests(1, min_quality=0.61)).batch.subnet == "half"
    assert scheduler(policy="static:tiny").next(0.0, requests(1, min_quality=0.81)).batch.subnet == "full"


UNANSWERABLE = {
    "unknown size": ({"subnet": "huge"}, "'huge' is no size here; sizes: full, half, tiny"),
    "too good": ({"min_quality": 0.95}, "no size has a known quality of at least 0.95; known: full 0.9, half 0.8, tiny 0.6"),
    "not that good": ({"min_quality": 0.7, "subnet": "tiny"}, "tiny has not a known quality of at least 0.7"),
}


@pytest.mark.parametrize("name", UNANSWERABLE)
def test_what_no_size_may_answer_is_refused(name):
    options, message = UNANSWERABLE[name]
    for refuse in (lambda one: scheduler().check(one), lambda one: scheduler().next(0.0, [one])):
        with pytest.raises(UserError, match=message):
            refuse(Request(0, 0.0, 10, **options))
    scheduler().check(Request(0, 0.0, 10, min_quality=0.9, subnet="full"))


def test_an_unknown_quality_is_never_enough():
    one = Scheduler(CostModel(profile([("full", None, 10.0), ("tiny", None, 1.0)])), SchedulerConfig())
    with pytest.raises(UserError, match="known: none"):
        one.check(Request(0, 0.0, 10, min_quality=0.0))


def test_the_budget_of_tokens_counts_padding():
    one = scheduler(policy="static:tiny", max_batch_tokens=40)
    assert ids(one.next(0.0, requests(6)).batch) == [0, 1, 2, 3]
    assert ids(one.next(0.0, [*requests(2), Request(2, 0.0, 15), *requests(2, first=3)]).batch) == [0, 1, 3, 4]
    assert ids(one.next(0.0, [Request(0, 0.0, 50), *requests(2, first=1)]).batch) == [0]  # longer than the budget: alone


def test_padding_that_costs_more_than_a_batch_of_its_own_is_avoided():
    queue = [Request(0, 0.0, 40), *requests(2, first=1), Request(3, 0.0, 40)]
    one = scheduler(policy="static:tiny")
    first = one.next(0.0, queue).batch
    assert ids(first) == [0, 3]  # each short one alone takes 2 ms, in this batch 4
    assert ids(one.next(first.seconds, queue[1:3]).batch) == [1, 2]


def test_a_batch_ends_where_more_would_give_fewer_answers_in_time():
    """At full size 9 of these take 91 ms and are in time; with the tenth, which takes 101 ms, none is."""
    assert len(scheduler(policy="static:full").next(0.0, requests(20)).batch.requests) == 9
    assert len(scheduler(policy="static:full").next(1.0, requests(9)).batch.requests) == 9  # all are late anyway


def test_work_without_hurry_leaves_room_for_what_comes():
    """Any of it could take a minute; a batch of more than 98 ms would make a request late that comes meanwhile."""
    bulk = requests(200, deadline=60.0)
    one = scheduler()
    first = one.next(0.0, bulk).batch
    assert (first.subnet, len(first.requests)) == ("full", 9) and first.seconds == pytest.approx(0.091)
    queue = bulk[9:]
    for turn in range(20):  # with a request in each of them
        urgent = Request(1000 + turn, 0.1 * turn + 0.05, 10)
        batch = one.next(0.1 * turn + 0.1, [*queue, urgent]).batch
        assert ids(batch)[0] == urgent.id and batch.seconds < 0.05 and batch.subnet in ("full", "half")
        queue = [request for request in queue if request.id not in ids(batch)]


def test_priority_against_age():
    """A request with priority 1 counts as one latency objective older."""
    one = scheduler(max_batch_size=1)
    assert ids(one.next(0.0, [Request(0, 0.0, 10), Request(1, 0.0, 10, priority=1)]).batch) == [1]
    assert ids(one.next(0.0, [Request(0, -0.05, 10), Request(1, 0.0, 10, priority=1)]).batch) == [1]
    assert ids(one.next(0.0, [Request(0, 0.0, 10, priority=-1), Request(1, 0.0, 10)]).batch) == [1]
    assert ids(one.next(0.9, [Request(0, 0.88, 10, deadline=9.0), Request(1, 0.9, 10, deadline=9.05, priority=1)]).batch) == [1]
    assert ids(one.next(0.9, [Request(0, 0.88, 10, deadline=9.0), Request(1, 0.9, 10, deadline=9.2, priority=1)]).batch) == [0]
    assert ids(one.next(0.0, [Request(0, 0.0, 10), Request(1, 60.0, 10, priority=10**9)]).batch) == [0]  # bounded


def test_the_table():
    one = scheduler(policy="table", table='{"1": "full", "3": "half", "10": "tiny"}')
    sizes = [one.next(0.0, requests(count)).batch.subnet for count in (1, 2, 3, 9, 10, 50)]
    assert sizes == ["full", "full", "half", "half", "tiny", "tiny"]
    assert scheduler(policy="table", table={5: "half"}).next(0.0, requests(1)).batch.subnet == "half"
    # Of 20 tokens, the middle length: 1 + 20 n, 1 + 10 n, 1 + 2 n ms within 50.
    one = scheduler(policy="table")
    sizes = [one.next(0.0, requests(count)).batch.subnet for count in (2, 3, 4, 5, 30)]
    assert sizes == ["full", "half", "half", "tiny", "tiny"]


def test_always_the_same_size():
    one = scheduler(policy="static:half")
    assert {one.next(0.0, requests(count)).batch.subnet for count in (1, 30)} == {"half"}


def test_an_objective_that_no_size_meets_names_the_best():
    message = (
        "latency_objective: 1.9 ms is out of reach: on an idle machine the fastest size takes 2 ms for one request of 10 tokens"
    )
    for policy in ("slo", "table", "static:full"):
        with pytest.raises(UserError, match=message):
            scheduler(latency_objective=1.9, policy=policy)
    assert scheduler(latency_objective=2.0).next(0.0, requests(1)).batch.subnet == "tiny"


REFUSED = {
    "policy": ({"policy": "fastest"}, "policy: 'fastest' is unknown; known: slo, table, static:NAME"),
    "static": ({"policy": "static:huge"}, "policy: 'huge' is no size of the profile; its sizes: full, half, tiny"),
    "table": ({"policy": "table", "table": {1: "huge"}}, "table: 'huge' is no size of the profile"),
    "table of words": ({"policy": "table", "table": {"few": "full"}}, "table must map numbers of waiting requests to sizes"),
    "empty table": ({"policy": "table", "table": {}}, "table must map numbers of waiting requests to sizes"),
    "no use": ({"table": {1: "full"}}, "table is used by policy table, and policy is slo"),
    "objective": ({"latency_objective": 0.0}, "latency_objective must be a positive number of milliseconds, got 0.0"),
    "no number": ({"latency_objective": math.nan}, "latency_objective must be a positive number of milliseconds, got nan"),
    "tokens": ({"max_batch_tokens": 0}, "max_batch_tokens must be an integer of at least 1, got 0"),
    "size": ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1, got 0"),
    "headroom": ({"headroom": 0.9, "hysteresis": 0.1}, "at least 0 and together below 1, got 0.9 and 0.1"),
    "negative": ({"hysteresis": -0.1}, "at least 0 and together below 1, got 0.1 and -0.1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_are_not_allowed(name):
    options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        scheduler(**options)


times = st.floats(0, 2, allow_nan=False)
queues = st.lists(
    st.builds(
        Request,
        id=st.just(0),
        arrival=times,
        length=st.integers(1, 60),
        deadline=st.none() | times,
        subnet=st.none() | st.sampled_from(ORDER),
        min_quality=st.none() | st.sampled_from([0.0, 0.6, 0.7, 0.8]),
        priority=st.integers(-3, 3),
    ).filter(lambda one: one.subnet is None or one.min_quality is None or QUALITY[one.subnet] >= one.min_quality),
    max_size=25,
)
options = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["slo", "table", "static:full", "static:tiny"]),
        "latency_objective": st.sampled_from([5.0, 50.0, 500.0]),
        "max_batch_tokens": st.integers(1, 200),
        "max_batch_size": st.integers(1, 9),
    }
)


def run(config: SchedulerConfig, coming: list[Request], slowness: float):
    """All decisions of a server whose batches take `slowness` times as long as measured; each with its time."""
    one, queue, now, found, measured = Scheduler(costs(), config), [], 0.0, [], costs()
    coming = sorted(coming, key=lambda request: request.arrival)
    while coming or queue:
        if not queue:
            now = max(now, coming[0].arrival)
        while coming and coming[0].arrival <= now:
            queue.append(coming.pop(0))
        decision = one.next(now, list(reversed(queue)))
        found.append((now, decision))
        batch = decision.batch
        gone = {request.id for request in (*decision.expired, *(batch.requests if batch else ()))}
        assert gone  # there is always something to do
        queue = [request for request in queue if request.id not in gone]
        if batch is not None:
            seconds = slowness * measured.seconds(batch.subnet, len(batch.requests), batch.length)
            one.observe(batch, seconds)
            now += seconds
    return found


@given(queues, options, st.sampled_from([0.5, 1.0, 3.0]))
def test_what_holds_for_every_decision(queue, chosen, slowness):
    """Each request is answered once, or has expired; sizes, floors and limits are kept; the same calls decide the same."""
    queue = [
        Request(i, one.arrival, one.length, one.deadline, one.subnet, one.min_quality, one.priority)
        for i, one in enumerate(queue)
    ]
    config = SchedulerConfig(**chosen)
    decisions = run(config, queue, slowness)
    fates = []
    for now, decision in decisions:
        fates += [request.id for request in decision.expired]
        assert all(request.deadline is not None and request.deadline <= now for request in decision.expired)
        if (batch := decision.batch) is None:
            continue
        fates += ids(batch)
        assert len(batch.requests) <= config.max_batch_size
        assert len(batch.requests) == 1 or len(batch.requests) * batch.length <= config.max_batch_tokens
        for request in batch.requests:
            assert request.deadline is None or request.deadline > now
            assert request.subnet in (None, batch.subnet)
            assert request.min_quality is None or QUALITY[batch.subnet] >= request.min_quality
            if request.subnet is None and request.min_quality is None and config.policy.startswith("static:"):
                assert config.policy == f"static:{batch.subnet}"
    assert sorted(fates) == list(range(len(queue)))
    assert decisions == run(config, queue, slowness)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 30))
def test_more_load_never_gives_a_larger_size(lengths, more):
    """At the same moment, with more of the same requests waiting."""
    few = [Request(i, 0.0, length) for i, length in enumerate(lengths)]
    many = [*few, *(Request(100 + i, 0.0, lengths[i % len(lengths)]) for i in range(more))]
    small, large = (ORDER.index(scheduler(max_batch_size=1).next(0.0, queue).batch.subnet) for queue in (many, few))
    assert small >= large
