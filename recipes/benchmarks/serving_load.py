"""Requests on loopback: a simulation against a server, sizes that change against each alone, ours against other servers.

    python recipes/benchmarks/serving_load.py simulated    p99 of a simulation and of a server, same requests, some loads
    python recipes/benchmarks/serving_load.py sustained    the highest load that a policy answers in time, and the quality there
    python recipes/benchmarks/serving_load.py others       the same of a plain server, and p50 and p99 at fixed loads
    python recipes/benchmarks/serving_load.py table        prints what is recorded

In time means: 99% of all requests within the objective. `others` has FastAPI around sentence-transformers (serving_plain.py),
and any server that runs already (`--other infinity=http://127.0.0.1:7997/embeddings --field input`). All use the same requests,
sent when they are due whatever has become of the rest. The model is MiniLM of the quickstart, made elastic in depth and not
trained, unless another folder is given; qualities are those of `--quality`. Server and sender share the machine, so it is to be
idle, and `--threads` should leave the sender a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from serving_overhead import make_model

from hf_elastic.data.minilm import minilm_path
from hf_elastic.measure.latency import machine_facts
from hf_elastic.serving.compare import capacity, compare
from hf_elastic.serving.costs import ServingProfile
from hf_elastic.serving.replay import RunningServer, connect, read_texts, send
from hf_elastic.serving.simulate import REJECTED, Outcome
from hf_elastic.serving.simulate_config import SimulateConfig
from hf_elastic.serving.traces import DRAWN, Lengths, OpenLoop
from hf_elastic.utils.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "serving_load"
IN_TIME = 0.99
GROWTH = 1.5  # from a load that is answered in time to the next one that is tried
KEPT = ("rate", "p50_ms", "p95_ms", "p99_ms", "attainment", "quality", "shares", "batch_size", "switches", "busy")
Ask = Callable[[OpenLoop], Outcome]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["simulated", "sustained", "others", "table"])
    parser.add_argument("--model", help="folder of an elastic model that gives vectors; default: elastic MiniLM")
    parser.add_argument("--quality", nargs="*", default=[], help="NAME=VALUE of each size")
    parser.add_argument("--policies", nargs="*", help="default: slo, for sustained also table and each size alone")
    parser.add_argument("--trace", default="poisson", help=f"{', '.join(DRAWN)}; for simulated also a file")
    parser.add_argument(
        "--loads", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="multiples of what the full size sustains"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=4, help="halvings of the interval in which the highest load is")
    parser.add_argument("--objective", type=float, default=100.0, help="ms")
    parser.add_argument("--length", type=float, default=24.0, help="mean of tokens")
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--profile_seconds", type=float, default=20.0)
    parser.add_argument("--plain", default=str(minilm_path()), help="folder of the full model for the plain server")
    parser.add_argument("--other", nargs="*", default=[], help="NAME=URL of the route of a server that runs")
    parser.add_argument("--field", default="inputs", help="of the other servers' requests")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


@contextmanager
def serving(args: argparse.Namespace, model: str, folder: str, policy: str) -> Iterator[RunningServer]:
    """`hf-elastic serve` with a policy; the first one measures the profile of all."""
    options = {"port": 0, "policy": policy, "profile": f"{folder}/profile.json", "latency_objective": args.objective}
    options |= {"threads": args.threads, "profile_seconds": args.profile_seconds}
    command = [sys.executable, "-m", "hf_elastic.cli.main", "serve", model]
    command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command += ["--quality", *args.quality] if args.quality else []
    with open(f"{folder}/server.log", "a+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            found = next((url for line in process.stdout if (url := re.search(r"listening on (\S+)", line))), None)
            if found is None:
                raise SystemExit(f"the server has ended: {Path(log.name).read_text()[-500:]}")
            yield RunningServer(found[1], read_texts(None))
        finally:
            process.terminate()
            process.wait()


@contextmanager
def plain_server(args: argparse.Namespace, *, inline: bool) -> Iterator[str]:
    """The URL of serving_plain.py's route."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("serving_plain.py")), args.plain, "--port", str(port)]
    process = subprocess.Popen([*command, "--threads", str(args.threads), *(["--inline"] if inline else [])])
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"the plain server has ended with status {process.returncode}") from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/embed"
    finally:
        process.terminate()
        process.wait()


def asking(url: str, field: str, texts: RunningServer, objective: float) -> Ask:
    """How to send a trace to a server that is not ours; each answer but 200 counts as rejected."""

    def ask(trace: OpenLoop) -> Outcome:
        async def run():
            bodies = [json.dumps({field: text}).encode() for text in texts.cut(trace.lengths)]
            async with connect(headers={"content-type": "application/json"}) as session:
                return await send(session, url, trace.times.tolist(), bodies, {})

        replies = asyncio.run(run())
        sizes = np.array([0 if reply.status == 200 else REJECTED for reply in replies])
        waits = np.array([reply.latency for reply in replies])
        end = max(trace.duration, float((trace.times + waits).max()))
        latencies = np.where(sizes >= 0, waits, np.inf)
        return Outcome(trace.times, trace.lengths, latencies, sizes, objective, ["full"], [float("nan")], end, 0, 0, 0.0)

    return ask


class Bench:
    """One kind of measurements, on one model.

    Args:
        args: options.
        model: folder.
        folder: for the profile.
    """

    def __init__(self, args: argparse.Namespace, model: str, folder: str):
        self.args, self.model, self.folder = args, model, folder
        with serving(args, model, folder, "slo") as server:
            self.texts = server  # what it knows of its tokens stays when it has ended
        self.profile = ServingProfile.load(f"{folder}/profile.json")
        self.lengths = Lengths(args.length, self.profile.lengths[-1])
        self.full = capacity(self.profile, self.config(), self.lengths)

    def config(self, **options) -> SimulateConfig:
        """Of a simulation of the same requests."""
        shared = {"latency_objective": self.args.objective, "mean_length": self.args.length, "duration": self.args.seconds}
        return SimulateConfig(trace=self.args.trace, **shared, **options)

    def requests(self, rate: float) -> OpenLoop:
        """At this rate, the same ones each time."""
        return DRAWN[self.args.trace](rate, self.args.seconds, self.lengths, 0)

    def simulated(self) -> list[dict]:
        """Each policy at each load, simulated and on the server."""
        rows = []
        for policy in self.args.policies or ["slo", "static:full"]:
            with serving(self.args, self.model, self.folder, policy) as server:
                config = self.config(policy=[policy], load=self.args.loads, server=server.url)
                runs = compare(self.profile, config).runs
            for load in self.args.loads:
                found = {run.policy: kept(run.outcome) for run in runs if run.load == load}
                rows.append(
                    {"policy": policy, "load": load, "simulated": found[policy], "server": found[f"the server, {policy}"]}
                )
                say(rows[-1])
        return rows

    def sustained(self) -> list[dict]:
        """The highest load of each policy."""
        names = self.args.policies or ["slo", "table", *(f"static:{name}" for name in self.profile.names)]
        rows = []
        for policy in names:
            with serving(self.args, self.model, self.folder, policy) as server:
                rows.append({"policy": policy, **self.highest(self.ours(server))})
                say(rows[-1])
        return rows

    def others(self) -> list[dict]:
        """The highest load of each server, and what it does at fixed loads."""
        rows = []

        def add(name: str, ask: Ask) -> None:
            fixed = {load: kept(ask(self.requests(load * self.full))) for load in self.args.loads}
            rows.append({"server": name, **self.highest(ask), "at": fixed})
            say(rows[-1])

        for policy in self.args.policies or ["static:full", "slo"]:
            with serving(self.args, self.model, self.folder, policy) as server:
                add(f"hf-elastic {policy}", self.ours(server))
        for name, inline in (("plain, pool of threads", False), ("plain, in the event loop", True)):
            with plain_server(self.args, inline=inline) as url:
                add(name, asking(url, "inputs", self.texts, self.args.objective / 1000))
        for name, _, url in (pair.partition("=") for pair in self.args.other):
            add(name, asking(url, self.args.field, self.texts, self.args.objective / 1000))
        return rows

    def ours(self, server: RunningServer) -> Ask:
        """How to send a trace to a server of ours."""
        return lambda trace: server.replay(trace, self.args.objective / 1000)

    def highest(self, ask: Ask) -> dict:
        """The highest rate of which enough is answered in time, and what was seen there; empty where none was found."""
        ask(self.requests(self.full / 4))  # connections, caches, and the corrections of the cost model
        low, high, rate, best = 0.0, None, self.full / 2, {}
        left = self.args.rounds
        while left:
            outcome = ask(self.requests(rate))
            if outcome.attainment >= IN_TIME:
                low, best = rate, kept(outcome)
            else:
                high = rate
            left -= high is not None  # until then the rate grows
            rate = low * GROWTH if high is None else (low + high) / 2
        return {"highest": low, **best}


def kept(outcome: Outcome) -> dict:
    """What is recorded of an outcome."""
    return {name: value for name, value in outcome.summary().items() if name in KEPT}


def say(row: dict) -> None:
    print(json.dumps(row), flush=True)


def tables(folder: Path) -> Iterator[tuple[str, Table]]:
    """Of each record that is there, under what it is."""

    def text(value: float | None, form: str = "{:.1f}") -> str:
        return "" if value is None else form.format(value)

    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for what, record in records.items():
        options, machine = record["options"], record["machine"]
        about = f"{options['trace']}, {options['length']:g} tokens, objective {options['objective']:g} ms"
        title = f"{what}: {about}; full sustains {record['capacity']:.0f}/s; {machine['processor']}, {options['threads']} threads"
        if what == "simulated":
            table = Table("policy", "load", "p50", "server's", "p99", "server's", "ratio", "quality", "server's")
            for row in record["rows"]:
                both = row["simulated"], row["server"]
                p50, p99, quality = ([one[name] for one in both] for name in ("p50_ms", "p99_ms", "quality"))
                ratio = None if None in p99 else p99[1] / p99[0]
                cells = [*map(text, (*p50, *p99)), text(ratio, "{:.2f}"), *(text(one, "{:.3f}") for one in quality)]
                table.add_row(row["policy"], f"{row['load']:g}", *cells)
        else:
            loads = [f"{load:g}" for load in options["loads"]] if what == "others" else []
            table = Table("", "highest load", "p99 there", "quality", *(f"p50, p99 at {load}" for load in loads))
            for row in record["rows"]:
                fixed = {f"{float(load):g}": one for load, one in row.get("at", {}).items()}
                cells = [f"{text(fixed[load]['p50_ms'])}, {text(fixed[load]['p99_ms'])}" for load in loads]
                highest = f"{row['highest']:.0f}/s ({row['highest'] / record['capacity']:.2f})"
                name = row.get("policy", row.get("server"))
                table.add_row(name, highest, text(row.get("p99_ms")), text(row.get("quality"), "{:.3f}"), *cells)
        yield title, table


def main() -> None:
    args = arguments()
    if args.what == "table":
        console = Console(width=150)
        for title, table in tables(args.output):
            console.print(title, table, sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, args.model or make_model(f"{folder}/model"), folder)
        rows = getattr(bench, args.what)()
    options = {name: value for name, value in vars(args).items() if name not in ("what", "output")}
    options |= {name: Path(options[name]).name for name in ("model", "plain") if options[name]}  # not where they are
    record = {"machine": machine_facts(), "options": options, "capacity": bench.full, "rows": rows}
    write_atomically(args.output / f"{args.what}.json", json.dumps(record, indent=1) + "\n")
    print(f"written: {args.output / args.what}.json")


if __name__ == "__main__":
    main()
