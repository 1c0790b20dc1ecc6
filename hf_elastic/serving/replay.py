"""A trace sent to a running server: what `simulate` works out, measured.

The loop is open: a request is sent when the trace says so, whether or not those before it have been answered, and its latency
counts from that moment, also where the sender itself is late. A sender that waits for answers sends less while the server is
slow, and so leaves out just the latencies that matter (coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ..core.errors import UserError
from ..data.docstrings import sample_docstrings
from ..utils.files import reading
from .engine import EMBEDDING
from .routes import DEADLINE_HEADER, SUBNET_HEADER
from .server import KEY_VARIABLE
from .simulate import EXPIRED, REJECTED, Outcome
from .traces import OpenLoop

CHARACTERS = 200_000  # of texts that are used; servers limit the bodies of requests
LEAD = 0.1  # seconds before the first request, in which the loop starts
NO_ANSWER = 0  # the status where the connection broke
UNANSWERED = {429: REJECTED, 503: REJECTED, 504: EXPIRED}


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request.

    Attributes:
        latency: from when it was due to the last byte of its answer, in seconds.
        status: of HTTP, or `NO_ANSWER`.
        subnet: the size that answered, if the server said so.
        error: what was said instead of an answer.
    """

    latency: float
    status: int
    subnet: str | None = None
    error: str = ""


async def at_times(times: Iterable[float], begin: Callable[[int, float], Awaitable]) -> list:
    """Begin something at each time, whatever has become of the rest.

    Args:
        times: ascending, in seconds from now.
        begin: is given the place of a time, and that time on the clock of the event loop.

    Returns:
        What each has given.
    """
    loop, tasks = asyncio.get_running_loop(), []
    start = loop.time() + LEAD
    for place, time in enumerate(times):
        await asyncio.sleep(max(0.0, start + time - loop.time()))
        tasks.append(asyncio.ensure_future(begin(place, start + time)))
    return await asyncio.gather(*tasks)


async def send(
    session: aiohttp.ClientSession, url: str, times: Sequence[float], bodies: Sequence[bytes], headers: dict[str, str]
) -> list[Reply]:
    """Send requests, each at its time.

    Args:
        session: with as many connections as it takes.
        url: of the route.
        times: as of `at_times`.
        bodies: JSON, one for each time.
        headers: of all.
    """

    async def begin(place: int, due: float) -> Reply:
        clock = asyncio.get_running_loop().time
        try:
            async with session.post(url, data=bodies[place], headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            return Reply(clock() - due, NO_ANSWER, None, f"{type(error).__name__}: {error}")
        latency, subnet = clock() - due, response.headers.get(SUBNET_HEADER)
        said = "" if response.status == 200 else content.decode(errors="replace")[:200]
        return Reply(latency, response.status, subnet, said)

    return await at_times(times, begin)


def connect(**options: Any) -> aiohttp.ClientSession:
    """Connections without a limit to their number: a request never waits for another one's."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), **options)


def read_texts(path: str | None) -> list[str]:
    """What to send: a text file, or docstrings of Python's standard library.

    Raises:
        UserError: the file is missing, or not UTF-8.
    """
    if path is None:
        return sample_docstrings()
    with reading(path, "texts", "is not a text file"):
        return [Path(path).read_text(encoding="utf-8")]


class RunningServer:
    """A server of `hf-elastic serve`, and texts to send to it.

    The key is that of the variable HF_ELASTIC_API_KEY, if there is one. Texts go to `/embed`, of a classifier or reranker to
    `/predict`, one in a request.

    Args:
        url: of the server.
        texts: parts of them are sent.

    Raises:
        UserError: nothing answers there, or something else, or it wants another key; the texts end with an unknown word.
    """

    def __init__(self, url: str, texts: Iterable[str]):
        self.url = url.rstrip("/")
        key = os.environ.get(KEY_VARIABLE)
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        try:
            info = json.loads(asyncio.run(self._ask("/info")))
            sizes = info["subnets"]
            self.names: list[str] = [size["name"] for size in sizes]
            self.qualities = [float("nan") if size["quality"] is None else size["quality"] for size in sizes]
            self.policy: str = info["policy"]
            self._route = "/embed" if EMBEDDING in info["model_type"] else "/predict"
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"server: {url} is not one of hf-elastic serve") from error
        self._text = " ".join(" ".join(texts).split())[:CHARACTERS].rstrip()
        if not self._text:
            raise UserError("texts: there is no word in them")
        self._starts, self._stops = asyncio.run(self._places())
        (tokens,) = json.loads(asyncio.run(self._ask("/tokenize", {"inputs": self._text})))
        self._special = len(tokens) - len(self._starts)  # and those of a prompt

    async def _ask(self, path: str, body: dict | None = None) -> str:
        data = None if body is None else json.dumps(body)
        try:
            method = "GET" if body is None else "POST"
            async with aiohttp.request(method, self.url + path, data=data, headers=self._headers) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
            raise UserError(f"server: {self.url} does not answer: {error or type(error).__name__}") from error
        if response.status != 200:
            raise UserError(f"server: {self.url}{path} answers with status {response.status}: {text[:200]}")
        return text

    async def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of the text begin and end in it, `[tokens]`; a prompt of the model before it is left out."""
        (tokens,) = json.loads(await self._ask("/tokenize", {"inputs": self._text, "add_special_tokens": False}))
        if not tokens or tokens[-1]["stop"] is None:
            raise UserError("texts: the tokenizer of the model does not know the last word of them")
        shift, stop, places = tokens[-1]["stop"] - len(self._text), 0, []
        for one in tokens:
            # What the tokenizer does not know is a token, and has no place of its own.
            start, stop = (stop, stop) if one["start"] is None else (one["start"] - shift, one["stop"] - shift)
            places.append((start, stop))
        kept = np.array([place for place in places if place[0] >= 0])
        return kept[:, 0], kept[:, 1]

    def cut(self, lengths: np.ndarray) -> list[str]:
        """Texts of so many tokens, one after the other out of the whole text, from its beginning again when it ends.

        A word that is cut may have other tokens than before, so that a length may be off by one or two.

        Args:
            lengths: tokens with the special ones, `[requests]`.

        Raises:
            UserError: the whole text is shorter than the longest of them.
        """
        counts = np.maximum(lengths - self._special, 1)
        room = len(self._starts) - counts.max()
        if room < 0:
            raise UserError(f"texts: {len(self._starts)} tokens in all, and the longest request has {counts.max()}")
        first = (np.cumsum(counts) - counts) % (room + 1)
        return [self._text[self._starts[a] : self._stops[a + n - 1]] for a, n in zip(first, counts)]

    def replay(self, trace: OpenLoop, objective: float, *, deadlines: bool = False) -> Outcome:
        """Send a trace, and wait for all answers.

        Args:
            trace: when requests come, and how long they are.
            objective: latency within which an answer is in time, in seconds.
            deadlines: whether requests have that as their deadline.

        Returns:
            What became of them; batches, changes of size and the time of the model are what the server counts meanwhile.

        Raises:
            UserError: the texts are too short, or anything but an answer, a full queue and a passed deadline comes back.
        """
        bodies = [json.dumps({"inputs": text, "truncate": True}).encode() for text in self.cut(trace.lengths)]
        headers = {DEADLINE_HEADER: f"{objective * 1000:g}"} if deadlines else {}
        return asyncio.run(self._replay(trace, bodies, headers, objective))

    async def _replay(self, trace: OpenLoop, bodies: list[bytes], headers: dict[str, str], objective: float) -> Outcome:
        before = await self._counts()
        async with connect(headers=self._headers) as session:
            replies = await send(session, self.url + self._route, trace.times.tolist(), bodies, headers)
        counts = await self._counts()
        counts.subtract(before)
        for reply in replies:
            if reply.status not in UNANSWERED and reply.subnet not in self.names:
                raise UserError(f"server: {self.url} answers with status {reply.status}: {reply.error}")
        sizes = [UNANSWERED[one.status] if one.status in UNANSWERED else self.names.index(one.subnet) for one in replies]
        waits = np.array([reply.latency for reply in replies])
        return Outcome(
            trace.times,
            trace.lengths,
            np.where(np.array(sizes) >= 0, waits, np.inf),
            np.array(sizes),
            objective,
            self.names,
            self.qualities,
            max(trace.duration, float((trace.times + waits).max())),
            int(counts["hf_elastic_batch_seconds_count"]),
            int(counts["hf_elastic_switches_total"]),
            counts["hf_elastic_batch_seconds_sum"],
        )

    def corrections(self) -> dict[str, float]:
        """Observed over profiled duration of batches, by size, as the server has them now."""
        found = asyncio.run(self._metrics())
        return {one.labels["subnet"]: one.value for one in found if one.name == "hf_elastic_cost_correction"}

    async def _counts(self) -> Counter[str]:
        """The server's metrics, all sizes together."""
        counts: Counter[str] = Counter()
        for sample in await self._metrics():
            counts[sample.name] += sample.value
        return counts

    async def _metrics(self) -> list[Sample]:
        return [one for family in text_string_to_metric_families(await self._ask("/metrics")) for one in family.samples]
