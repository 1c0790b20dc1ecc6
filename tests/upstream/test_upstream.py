"""What transformers' own common tests say of elastic models, compared with what they say of their stock twins.

A test that a stock model passes, an elastic one passes as well, or it stands in `upstream_expected.py` with the reason. All of
them take a quarter of an hour (`make test-upstream`); without HF_ELASTIC_UPSTREAM=all every case runs one in eight.
"""

import os
import zlib

import pytest
import upstream_source
from upstream_cases import FAMILIES, STATES, Outcome, case_class, config_class, heads_of, methods, run
from upstream_expected import EXPECTED

ALL = os.environ.get("HF_ELASTIC_UPSTREAM") == "all"
SHARE = 1 if ALL else 8
AGAIN = 12  # some tests hang on random weights: what a stock model does not always pass says nothing
MISSING = upstream_source.why_missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.one_lane,  # there are none for transformers 4.57
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning"),  # theirs
]
CASES = [(f, s, h) for f in FAMILIES for s in STATES for h in heads_of(f)]


def is_in_sample(case: str, test: str) -> bool:
    """The same part every time; another one of every case, so that all cases together run all tests."""
    return zlib.crc32(f"{case} {test}".encode()) % SHARE == 0


def compare(case: str, ours: type, stock: type, record_property) -> None:
    """Fail with all that the elastic class does not pass and its twin does, unless that is meant."""
    found = []
    for test in filter(lambda name: is_in_sample(case, name), methods(ours)):
        outcome = run(ours, test)
        # A twin costs as much again, and has nothing to say of what passes.
        twin = Outcome("not run") if outcome.kind == "passed" else run(stock, test)
        record_property("upstream", (case, outcome.kind, twin.kind))
        if outcome.kind == "passed" or twin.kind in ("failed", outcome.kind):
            continue
        if any(entry.covers(case, test) for entry in EXPECTED):
            record_property("meant", f"{case} {test}")
        elif any(run(stock, test).kind == "failed" for _ in range(AGAIN)):
            record_property("by chance", f"{case} {test}")
        else:
            found.append(f"{test}: {outcome.kind}, the stock model {twin.kind}\n{outcome.text}")
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize(("family", "state", "head"), CASES, ids=[f"{f}-{s}-{h.__name__}" for f, s, h in CASES])
def test_models(family, state, head, record_property):
    pair = [case_class(family, state, head, stock=stock) for stock in (False, True)]
    compare(f"{family}-{state}-{head.__name__}", *pair, record_property)


@pytest.mark.parametrize("family", FAMILIES)
def test_configs(family, record_property):
    pair = [config_class(family, stock=stock) for stock in (False, True)]
    compare(f"{family}-config", *pair, record_property)
