"""What is timed: a runtime, and the shape of its input, for any size of a model."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..core.errors import MissingPackageError, UserError
from ..core.modeling_elastic import (
    ElasticForCausalLM,
    ElasticForMultipleChoice,
    ElasticForSequenceClassification,
    ElasticPreTrainedModel,
)
from ..core.portable import cache_argument
from ..core.space import Subnet
from ..utils.lengths import check_length
from ..utils.options import check_integers
from ..utils.tokenizer import set_padding
from .latency import Latency, measure_latency

RUNTIMES = ("torch", "torch.compile", "onnxruntime", "openvino")
PHASES = ("forward", "prefill", "token")
WAIT_FOR = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        batch_size: sequences per call.
        sequence_length: tokens per sequence; with phase "token", of the prompt before the token that is timed.
        threads: CPU threads while measuring; None leaves the runtime's own.
        seed: seed of the input and of the order of the measurements.
        runtime: one of `RUNTIMES`; the last two run on the CPU, from an ONNX file in float32.
        phase: "forward", one call without a key-value cache; for causal models also "prefill", a prompt that fills a cache, and
            "token", one more token after it.

    Raises:
        ValueError: an unknown runtime or phase, or a phase that the runtime does not have.
        ImportError: the runtime is not installed.
    """

    batch_size: int = 1
    sequence_length: int = 128
    threads: int | None = None
    seed: int = 0
    runtime: str = "torch"
    phase: str = "forward"

    def __post_init__(self):
        for name, known in (("runtime", RUNTIMES), ("phase", PHASES)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}: {getattr(self, name)!r} is unknown; known: {', '.join(known)}")
        check_integers(1, batch_size=self.batch_size, sequence_length=self.sequence_length)
        check_integers(1, or_none=True, threads=self.threads)
        if self.exports and self.phase != "forward":
            raise UserError(f"phase: {self.phase!r} is timed with torch and torch.compile; {self.runtime} has: forward")
        if self.exports and importlib.util.find_spec(self.runtime) is None:
            extra = {"onnxruntime": "onnx"}.get(self.runtime, self.runtime)
            raise MissingPackageError(f"runtime: {self.runtime} is not installed: pip install 'hf-elastic[{extra}]'")

    @property
    def exports(self) -> bool:
        """Whether the runtime runs a file that a size is exported to."""
        return self.runtime in ("onnxruntime", "openvino")

    def measure(
        self,
        model: ElasticPreTrainedModel,
        subnets: Sequence[Subnet],
        progress: Callable[[int, int], object] | None = None,
        **options,
    ) -> dict[Subnet, Latency]:
        """Time each subnet, interleaved in one run.

        Args:
            model: the supernet, on the device to time.
            subnets: each once.
            progress: called after each round with the rounds done and the most rounds.
            **options: for `measure_latency`.

        Raises:
            ValueError: the model cannot run on this input or in this phase.
        """
        return dict(zip(subnets, self.measure_pairs([(model, subnet) for subnet in subnets], progress, **options)))

    def measure_pairs(
        self,
        pairs: Sequence[tuple[ElasticPreTrainedModel, Subnet]],
        progress: Callable[[int, int], object] | None = None,
        **options,
    ) -> list[Latency]:
        """Time subnets of several models, interleaved in one run; arguments and errors as for `measure`."""
        layouts = contextlib.nullcontext() if self.exports else prefix_layout({id(model): model for model, _ in pairs}.values())
        with layouts, use_threads(self.threads), torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            calls = {str(place): self.call(*pair, Path(folder) / str(place)) for place, pair in enumerate(pairs)}
            try:
                calls["0"]()
            except (IndexError, RuntimeError) as error:
                shape = f"batch_size {self.batch_size}, sequence_length {self.sequence_length}"
                raise UserError(f"{shape}: the model cannot run this input: {error}") from error
            return list(measure_latency(calls, seed=self.seed, progress=progress, **options).values())

    def make_input(self, model: ElasticPreTrainedModel) -> dict[str, torch.Tensor]:
        """Random tokens "batch length", for multiple choice "batch 1 length", without padding.

        Raises:
            UserError: the model has no positions for so many.
        """
        check_length("sequence_length", self.sequence_length + (self.phase == "token"), model.base)
        if isinstance(model, ElasticForSequenceClassification):
            set_padding(model.config)
        choices = (1,) if isinstance(model, ElasticForMultipleChoice) else ()
        shape = (self.batch_size, *choices, self.sequence_length)
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(model.get_input_embeddings().num_embeddings, shape, generator=generator).to(model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def call(self, model: ElasticPreTrainedModel, subnet: Subnet, path: Path) -> Callable[[], None]:
        """What is timed for one subnet; the file that an exported runtime needs is written into the folder `path`."""
        self.check_phase(model)
        inputs = self.make_input(model)
        if self.exports:
            return exported_call(self, self.write_file(model.view(subnet), inputs, path), inputs)
        return model_call(self, model.view(subnet), inputs)

    def check_phase(self, model: ElasticPreTrainedModel) -> None:
        """Raise ValueError unless the model has this phase."""
        if self.phase != "forward" and not isinstance(model, ElasticForCausalLM):
            raise UserError(f"phase: {self.phase!r} is for causal language models; {type(model).__name__} has: forward")
        if self.phase != "forward" and cache_argument(model.base) is None:
            model_type = model.config.base_config.model_type
            raise UserError(f"phase: {self.phase!r} needs a key-value cache, which {model_type} has not")

    def write_file(self, view: PreTrainedModel, inputs: Mapping, path: Path) -> Path:
        """Export a size for a runtime that runs files."""
        # Exporting comes after searching; nothing there imports this stage, and only these runtimes need it here.
        from ..graphs.onnx import export_onnx

        path.mkdir(parents=True, exist_ok=True)
        return export_onnx(view, inputs, path / "model.onnx")


def check_elastic(model: object) -> None:
    """Raise UserError, which names the type and not the whole model, unless this is an elastic model."""
    if not isinstance(model, ElasticPreTrainedModel):
        raise UserError(f"model must be an elastic model, got {type(model).__name__}; make one with Elastic*.from_base")


def model_call(workload: Workload, model: PreTrainedModel, inputs: Mapping) -> Callable[[], None]:
    """A call of a torch model in the workload's phase, which waits for the device."""
    run = torch.compile(model) if workload.runtime == "torch.compile" else model
    make = {"forward": _forward, "prefill": _prefill, "token": _token}[workload.phase]
    call, wait = make(run, inputs), WAIT_FOR.get(model.device.type)
    if wait is None:
        return call

    def waiting() -> None:
        call()
        wait()

    return waiting


def _forward(run: Callable, inputs: Mapping) -> Callable[[], object]:
    return lambda: run(**inputs)


def _prefill(run: Callable, inputs: Mapping) -> Callable[[], object]:
    name = cache_argument(run)
    return lambda: run(**inputs, **{name: DynamicCache()}, use_cache=True)


def _token(run: Callable, inputs: Mapping) -> Callable[[], object]:
    """One token after the prompt; afterwards the cache is cropped to the prompt again, which copies nothing."""
    batch_size, length = inputs["input_ids"].shape
    cache = run(**inputs, **{cache_argument(run): DynamicCache()}, use_cache=True).past_key_values
    past = {cache_argument(run): cache}
    token = inputs["input_ids"][:, -1:]
    mask = torch.ones(batch_size, length + 1, dtype=torch.long, device=token.device)

    def call() -> object:
        output = run(input_ids=token, attention_mask=mask, use_cache=True, **past)
        cache.crop(-1)
        return output

    return call


def exported_call(workload: Workload, file: Path, inputs: Mapping) -> Callable[[], object]:
    """A call of an exported file in the workload's runtime."""
    runner = load_graph(workload.runtime, file, workload.threads)
    return lambda: runner(inputs)


def load_graph(runtime: str, file: Path, threads: int | None) -> Callable[[Mapping], dict]:
    """An exported file in "onnxruntime" or "openvino", as a function from inputs to outputs by name."""
    if runtime == "onnxruntime":
        from ..runtimes.onnxruntime import OnnxRunner

        return OnnxRunner(file, threads)
    from ..runtimes.openvino import OpenVINORunner

    return OpenVINORunner(file, threads)


@contextlib.contextmanager
def prefix_layout(models: Iterable[ElasticPreTrainedModel]) -> Iterator[None]:
    """Store weights so that views are as fast as the sizes are on their own; afterwards they are stored as before."""
    with contextlib.ExitStack() as afterwards:
        for model in models:
            afterwards.callback(model.set_memory_layout, model.memory_layout)
            model.set_memory_layout("prefix")
        yield


@contextlib.contextmanager
def use_threads(threads: int | None) -> Iterator[None]:
    """Set the number of torch threads for a while; None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
