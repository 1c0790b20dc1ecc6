"""A device profile: what some sizes cost on one machine, in a file that can be carried to the machine that searches."""

from __future__ import annotations

import importlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Space, Subnet
from ..utils.files import reading, write_atomically
from ..utils.progress import Bar
from .config import MeasureConfig
from .digests import architecture_digest
from .latency import Latency, machine_facts
from .memory import PeakMemory, measure_memory
from .workload import Workload, check_elastic, use_threads

# Facts of a machine that a latency depends on; the rest of `machine_facts` is only recorded. Of the last two the one that ran.
DECISIVE = ("processor", "cores", "torch_threads", "torch", "transformers", "device", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Measured:
    """One size.

    Attributes:
        subnet: the size, with every axis spelled out.
        latency: with every sample.
        memory: None if it was not measured.
    """

    subnet: Subnet
    latency: Latency
    memory: PeakMemory | None = None


@dataclass(frozen=True)
class DeviceProfile:
    """Measurements of one model on one machine.

    Attributes:
        machine: `machine_facts` of the machine that measured, with the threads that were used, `device`, and the version of
            onnxruntime or openvino under its name where that ran.
        workload: what was timed.
        model: `architecture_digest` of the supernet.
        measured: the sizes.
    """

    machine: dict
    workload: Workload
    model: str
    measured: list[Measured] = field(default_factory=list)

    def differences(self, machine: Mapping) -> list[str]:
        """What of a machine is not as it was when this was measured, in words."""
        return [
            f"{name} is {machine.get(name)!r} here, {self.machine.get(name)!r} in the profile"
            for name in DECISIVE
            if machine.get(name) != self.machine.get(name)
        ]

    def check_model(self, digest: str) -> None:
        """Raise ValueError unless the profile is of a model with this `architecture_digest`."""
        if digest != self.model:
            raise UserError(f"the profile is of another model: its architecture has the digest {self.model}, this one {digest}")

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON."""
        measured = [
            {
                "subnet": one.subnet.to_dict(),
                "latency": one.latency.to_dict(),
                "memory": None if one.memory is None else asdict(one.memory),
            }
            for one in self.measured
        ]
        data = {"machine": self.machine, "target": asdict(self.workload), "model": self.model, "measured": measured}
        write_atomically(Path(path), json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> DeviceProfile:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing or no profile; or one of a runtime that is unknown here.
        """
        with reading(path, "profile", "is not a device profile"):
            data = json.loads(Path(path).read_bytes())
            return cls(data["machine"], Workload(**data["target"]), data["model"], [_measured(one) for one in data["measured"]])


def measure_profile(
    model: ElasticPreTrainedModel, config: MeasureConfig | None = None, *, bar: Bar | None = None, **options
) -> DeviceProfile:
    """Measure sizes of a model on this machine.

    Args:
        model: the supernet, on the device to measure.
        config: which sizes, and how; its defaults if None.
        bar: shows progress.
        **options: fields of `MeasureConfig` that replace those of `config`.

    Raises:
        ValueError: a value that is not allowed, an unknown name, or something that the model cannot run.
    """
    check_elastic(model)
    config = replace(config or MeasureConfig(), **options)
    workload = config.workload
    names = ["largest", "smallest", *model.config.subnets] if config.subnets is None else config.subnets
    subnets = dict.fromkeys(model.subnet(name) for name in names)
    for subnet in spread_subnets(model.space, max(config.num_subnets, 2), config.seed):
        if len(subnets) < config.num_subnets:
            subnets[model.subnet(subnet)] = None
    subnets = list(subnets)
    bar = bar or Bar(False)
    bar.start("measuring latency", 0, None)
    latencies = workload.measure(model, subnets, bar.update, **config.sampling)
    memories = {}
    if config.memory:
        bar.start("measuring peak memory", 0, len(subnets))
        memories = measure_memory(model, subnets, workload, bar.update, config.memory_workers)
    with use_threads(workload.threads):
        machine = _facts(workload, model)
    measured = [Measured(subnet, latencies[subnet], memories.get(subnet)) for subnet in subnets]
    return DeviceProfile(machine, workload, architecture_digest(model), measured)


def check_machine(profile: DeviceProfile, model: ElasticPreTrainedModel, *, force: bool) -> list[str]:
    """What of this machine is not as it was for the profile, as warnings.

    Raises:
        ValueError: something is not, and `force` is False.
    """
    with use_threads(profile.workload.threads):
        differences = profile.differences(_facts(profile.workload, model))
    if differences and not force:
        raise UserError(
            f"the profile is not of this machine as it is now: {'; '.join(differences)}. Measure here with hf-elastic measure, "
            "or add --force to search for that machine with costs that stay predicted"
        )
    return [f"costs are predicted for another machine: {difference}" for difference in differences]


def _facts(workload: Workload, model: ElasticPreTrainedModel) -> dict[str, object]:
    runtime = {workload.runtime: importlib.import_module(workload.runtime).__version__} if workload.exports else {}
    return {**machine_facts(), "device": device_name(model.device), **runtime}


def device_name(device: torch.device) -> str:
    """ "cpu", or what the accelerator calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _measured(data: Mapping) -> Measured:
    memory = data["memory"]
    return Measured(Subnet(data["subnet"]), Latency.from_dict(data["latency"]), None if memory is None else PeakMemory(**memory))


def spread_subnets(space: Space, count: int, seed: int = 0) -> list[Subnet]:
    """Sizes over the whole range of a space, to fit a cost model on: the largest, the smallest and random ones.

    Every other one has the same height in all layers: independent draws for many layers are nearly all of middling size.

    Args:
        space: where from.
        count: most sizes; fewer if the space has fewer.
        seed: of the random ones.
    """
    generator, genes = random.Random(seed), space.genes()
    found = dict.fromkeys((space.largest, space.smallest))
    for turn in range(50 * count):
        if len(found) >= min(count, space.size):
            break
        heights = defaultdict(generator.random)
        shared = {gene: choices[int(heights[gene.partition(".")[0]] * len(choices))] for gene, choices in genes.items()}
        found[space.from_genes(shared) if turn % 2 else space.sample(generator)] = None
    return list(found)[:count]
