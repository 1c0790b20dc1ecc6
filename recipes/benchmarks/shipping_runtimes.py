"""Processes of `shipping.py`: one for each runtime; in it one cell at a time is open, as it would be where it serves.

Many open sessions disturb each other: the idle threads of one spin for a while, to be there for its next call, on the cores of
the one that is timed. Forbidding them to spin is no way out: a small model at batch 1 spends much of its time waking threads up.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hf_elastic.cli.data import load_elastic
from hf_elastic.measure.latency import measure_latency
from hf_elastic.measure.workload import use_threads

PAUSE_SECONDS = 0.1  # until the threads of the process before have gone to sleep


@dataclass(frozen=True)
class Variant:
    """One cell of the table.

    Attributes:
        size: name of the subnet.
        label: name of the column of the table.
        runtime: "torch", "onnxruntime" or "openvino".
        source: the elastic checkpoint for torch, else the file.
        settings: for torch `autocast`; for onnxruntime `session` entries and `arena`; for OpenVINO properties; for the last two
            `fixed` (shape).
    """

    size: str
    label: str
    runtime: str
    source: Path
    settings: Mapping = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What identifies it in the results."""
        return self.size, self.label


def make_inputs(batch: int, length: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Random tokens without padding, `int64[batch, length]` each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def open_variant(variant: Variant, inputs: Mapping[str, torch.Tensor], threads: int, models: dict) -> Callable[[], object]:
    """What is timed; the inputs are converted once, not with every call."""
    if variant.runtime == "torch":
        return _torch_call(variant, inputs, models)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    if variant.runtime == "onnxruntime":
        return _onnxruntime_call(variant, arrays, threads)
    from hf_elastic.runtimes.openvino import OpenVINORunner

    settings = dict(variant.settings)
    shape = arrays["input_ids"].shape if settings.pop("fixed", False) else None
    runner = OpenVINORunner(variant.source, threads, settings, shape)
    return lambda: runner(arrays)


def _torch_call(variant: Variant, inputs: Mapping, models: dict) -> Callable[[], object]:
    if variant.source not in models:
        models[variant.source] = load_elastic(str(variant.source)).eval()
    view = models[variant.source].view(None if variant.size == "full" else variant.size)
    if not variant.settings.get("autocast"):
        return lambda: view(**inputs)

    def call() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return view(**inputs)

    return call


def _onnxruntime_call(variant: Variant, arrays: Mapping[str, np.ndarray], threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = variant.settings.get("threads", threads)
    options.enable_cpu_mem_arena = variant.settings.get("arena", True)
    for name, value in variant.settings.get("session", {}).items():
        options.add_session_config_entry(name, value)
    if variant.settings.get("fixed"):
        batch, length = arrays["input_ids"].shape
        options.add_free_dimension_override_by_name("batch_size", batch)
        options.add_free_dimension_override_by_name("sequence_length", length)
    session = onnxruntime.InferenceSession(str(variant.source), options, providers=["CPUExecutionProvider"])
    feed = {node.name: arrays[node.name] for node in session.get_inputs()}
    return lambda: session.run(None, feed)


def _serve(connection, variants: list[Variant], threads: int, vocabulary: int) -> None:
    """Open, time and close the variant of the number that is asked for, with the shape that is asked for."""
    torch.set_num_threads(threads)
    models: dict = {}
    with use_threads(threads):
        connection.send("ready")
        while (order := connection.recv()) is not None:
            index, shape, repeats = order
            call = open_variant(variants[index], make_inputs(*shape, vocabulary), threads, models)
            options = {"repeats": repeats, "min_rounds": repeats, "warmup": 5, "relative_interval": 0}
            # Not around the loading: a view needs the version counters of its weights, which inference tensors lack.
            with torch.inference_mode():
                timed = measure_latency({"cell": call}, **options)
            del call  # closes the session and ends its threads
            connection.send(timed["cell"].samples_ms)


def time_in_turns(
    variants: list[Variant], threads: int, shapes: list[tuple[int, int]], vocabulary: int, rounds: int, repeats: int, bar
) -> dict[tuple[int, int], dict[tuple[str, str], list[float]]]:
    """Samples (milliseconds) by shape and variant, in rounds of all cells: A B C A B C.

    Args:
        variants: what is timed.
        threads: CPU threads of every runtime.
        shapes: (batch, length).
        vocabulary: ids are below it.
        rounds: how often each cell has its turn.
        repeats: calls per turn, after a warm-up.
        bar: progress.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    samples = {shape: {variant.key: [] for variant in variants} for shape in shapes}
    try:
        for runtime in {variant.runtime for variant in variants}:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, variants, threads, vocabulary), daemon=True)
            process.start()
            theirs.close()
            workers[runtime] = process, ours
            ours.recv()
        bar.start("timing", 0, rounds * len(shapes) * len(variants))
        for _ in range(rounds):
            for index, variant in enumerate(variants):
                _, connection = workers[variant.runtime]
                for shape in shapes:
                    time.sleep(PAUSE_SECONDS)
                    connection.send((index, shape, repeats))
                    samples[shape][variant.key] += connection.recv()
                    bar.advance()
    finally:
        for process, connection in workers.values():
            connection.close()
            process.terminate()
            process.join()
    return samples
