"""When requests come: drawn, recorded in files like the public ones, or from users who wait."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_elastic.core.errors import UserError
from hf_elastic.serving import traces
from hf_elastic.serving.traces import DRAWN, ClosedLoop, Lengths, OpenLoop, Sample, recorded

pytestmark = pytest.mark.one_lane
LENGTHS = Lengths(30.0, 128)
DATA_DIR = os.environ.get("HF_ELASTIC_DATA_DIR")
PER_SECOND = "3\n0\n2\n5\n"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.9799610,110,27
2023-11-16 18:18:03.9799600,7433,14
"""
MOONCAKE = "timestamp_ms,input_length,output_length,n_blocks\n0,400,6,1\n27,300,4,1\n40,200,3,1\n2000,100,92,1\n"


@pytest.mark.parametrize("name", DRAWN)
@given(rate=st.sampled_from([5.0, 200.0]), duration=st.sampled_from([30.0, 100.0]), seed=st.integers(0, 3))
def test_drawn_requests(name, rate, duration, seed):
    """In order, within the time, at the rate, and the same again from the same seed."""
    trace, again, other = (DRAWN[name](rate, duration, LENGTHS, one) for one in (seed, seed, seed + 1))
    assert (np.diff(trace.times) >= 0).all() and trace.times[0] >= 0 and trace.times[-1] <= duration == trace.duration
    assert abs(len(trace.times) - rate * duration) < 6 * np.sqrt(rate * duration)
    assert trace.lengths.min() >= 1 and trace.lengths.max() <= 128 and abs(trace.lengths.mean() - 30) < 6
    assert (trace.times == again.times).all() and (trace.lengths == again.lengths).all()
    assert len(trace.times) != len(other.times) or (trace.times != other.times).any()


def spread(trace: OpenLoop) -> float:
    """Variance over mean of the requests in each second: 1 for independent ones."""
    counts = np.bincount(trace.times.astype(int))
    return counts.var() / counts.mean()


def test_bursts_and_days():
    poisson, burst, diurnal = (DRAWN[name](100.0, 400.0, LENGTHS, 0) for name in ("poisson", "burst", "diurnal"))
    assert spread(poisson) < 1.5 and spread(burst) > 20
    quarters = np.histogram(diurnal.times, bins=4, range=(0, 400))[0]
    assert quarters[1] + quarters[2] > 2.5 * (quarters[0] + quarters[3])
    low, high = np.histogram(diurnal.times, bins=40, range=(0, 400))[0][[0, 20]] / 10
    assert 15 < low < 30 and 165 < high < 195  # 0.2 and 1.8 times the mean


def write(folder, text, compressed=True):
    path = folder / "trace"
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_arrivals_per_second(compressed, tmp_path):
    path = write(tmp_path, PER_SECOND, compressed)
    trace = recorded(path, LENGTHS, 0)
    assert trace.duration == 4 and trace.rate == 2.5
    assert np.bincount(trace.times.astype(int)).tolist() == [3, 0, 2, 5]
    window = recorded(path, LENGTHS, 0, start=2, duration=1)
    assert (len(window.times), window.duration, window.rate) == (2, 1, 2) and 0 <= window.times[0] <= window.times[1] < 1


def test_tables(tmp_path):
    trace = recorded(write(tmp_path, AZURE), LENGTHS, 0)
    assert trace.times.tolist() == pytest.approx([0, 0.052, 2.000001, 60], abs=1e-6) and trace.duration == 60
    shape = np.array([4808, 3180, 110, 7433])
    assert trace.lengths.tolist() == np.rint(shape * 30 / shape.mean()).astype(int).tolist()
    assert recorded(write(tmp_path, AZURE), Lengths(100.0, 128), 0).lengths.tolist() == [124, 82, 3, 128]  # cut
    trace = recorded(write(tmp_path, MOONCAKE), LENGTHS, 0, start=0.02, duration=1.0)
    assert trace.times.tolist() == pytest.approx([0.007, 0.02]) and trace.lengths.tolist() == [36, 24] and trace.duration == 1


def test_another_rate_is_another_pace(tmp_path):
    trace = recorded(write(tmp_path, AZURE), LENGTHS, 0)
    faster = trace.at_rate(10 * trace.rate)
    assert faster.rate == pytest.approx(10 * trace.rate) and faster.duration == 6
    assert faster.times.tolist() == pytest.approx((trace.times / 10).tolist()) and (faster.lengths == trace.lengths).all()


BAD = {
    "prose": ("once upon a time", "is not a trace that is known"),
    "empty": ("", "is not a trace that is known"),
    "negative": ("3\n-1\n", "is not a trace that is known"),
    "a word": (PER_SECOND + "many\n", "is not a trace that is known"),
    "short row": (AZURE + "2023-11-16 18:18:04.9799600\n", "is not a trace that is known"),
    "no time": (AZURE + "yesterday,1,2\n", "is not a trace that is known"),
    "no tokens": (MOONCAKE + "3000,0,1,1\n", "is not a trace that is known: a length of 0 tokens"),
    "only a head": (MOONCAKE.splitlines()[0], "is not a trace that is known"),
    "nobody comes": ("0\n0\n", "has no request between 0 s and 2 s"),
    "too many": ("3000000\n", "has 3,000,000 requests there, at most 2,000,000"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(name, tmp_path):
    text, message = BAD[name]
    with pytest.raises(UserError) as raised:
        recorded(write(tmp_path, text), LENGTHS, 0)
    assert message in str(raised.value) and str(tmp_path) in str(raised.value)


def test_other_refusals(tmp_path):
    path = write(tmp_path, PER_SECOND)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is not a trace that is known"):
        recorded(path, LENGTHS, 0)
    with pytest.raises(UserError, match="has no request between 1 s and 2 s"):
        recorded(write(tmp_path, PER_SECOND), LENGTHS, 0, start=1, duration=1)
    with pytest.raises(UserError, match="ends at 4 s of its time, and start is 4"):
        recorded(write(tmp_path, PER_SECOND), LENGTHS, 0, start=4, duration=1)
    with pytest.raises(UserError, match="ends at 0 s of its time"):
        recorded(write(tmp_path, "\n".join(AZURE.splitlines()[:2])), LENGTHS, 0)
    with pytest.raises(FileNotFoundError):
        recorded(tmp_path / "nowhere", LENGTHS, 0)
    with pytest.raises(UserError, match=r"1e\+06 requests/s for 60 s are more than 2,000,000 requests"):
        traces.poisson(1e6, 60.0, LENGTHS, 0)
    with pytest.raises(UserError, match=r"no request comes in 1 s at 1e-09 requests/s"):
        traces.poisson(1e-9, 1.0, LENGTHS, 0)


def test_users_wait_for_their_answers():
    trace = ClosedLoop(3, 0.0, 10.0, Sample(np.array([7])), 0)
    assert trace.first() == [(0.0, 7)] * 3
    assert trace.after(9.5) == (9.5, 7) and trace.after(10.0) is None
    thinking = ClosedLoop(2000, 0.5, 1e9, LENGTHS, 0)
    pauses = [thinking.after(2.0)[0] - 2.0 for _ in range(2000)]
    assert min(pauses) >= 0 and abs(np.mean(pauses) - 0.5) < 0.05
    assert thinking.first() != ClosedLoop(2000, 0.5, 1e9, LENGTHS, 1).first()
    assert ClosedLoop(5, 0.5, 9.0, LENGTHS, 2).first() == ClosedLoop(5, 0.5, 9.0, LENGTHS, 2).first()


@pytest.mark.skipif(DATA_DIR is None, reason="HF_ELASTIC_DATA_DIR is not set; it names a folder with traces/*")
def test_the_public_traces():
    folder = Path(DATA_DIR or "") / "traces"
    azure = recorded(folder / "azure_llm_2023_code.csv.gz", LENGTHS, 0)
    assert len(azure.times) == 8819 and azure.duration == pytest.approx(3435.948056)
    mooncake = recorded(folder / "mooncake_synthetic.csv.gz", LENGTHS, 0)
    assert len(mooncake.times) == 3993 and mooncake.duration == pytest.approx(1022.025)
    twitter = recorded(folder / "twitter_2018_per_second.txt.gz", LENGTHS, 0, start=0, duration=4)
    assert np.bincount(twitter.times.astype(int)).tolist() == [52, 55, 48, 55]
    with pytest.raises(UserError, match="choose start and duration"):
        recorded(folder / "twitter_2018_per_second.txt.gz", LENGTHS, 0)
