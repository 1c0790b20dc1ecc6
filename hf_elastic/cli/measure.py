"""`hf-elastic measure`: what sizes cost on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from .common import parse
from .data import check_device, load_elastic


@dataclass
class MeasureArguments:
    """Which sizes to measure, and how."""

    model: str = field(metadata={"help": "Folder or Hub id of an elastic checkpoint, or of an adapter for one."})
    output: str = field(default="profile.json", metadata={"help": "File for the device profile."})
    subnets: list[str] | None = field(
        default=None, metadata={"help": "Named sizes; default: the largest, the smallest and every named one."}
    )
    num_subnets: int = field(
        default=0, metadata={"help": "Sizes in all, the others drawn over the whole space (count); 32 are good to predict from."}
    )
    runtime: str = field(default="torch", metadata={"help": "torch, torch.compile, onnxruntime or openvino."})
    phase: str = field(
        default="forward",
        metadata={"help": "forward; for causal models also prefill, or token: one token after sequence_length others."},
    )
    device: str = field(default="cpu", metadata={"help": "Device for torch, such as cpu or cuda."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: the runtime's."})
    batch_size: int = field(default=1, metadata={"help": "Sequences per call (count)."})
    sequence_length: int = field(default=128, metadata={"help": "Length of a sequence (tokens)."})
    memory: bool = field(default=True, metadata={"help": "Measure peak memory as well, each size in a fresh process (Linux)."})
    repeats: int = field(default=30, metadata={"help": "Most samples of each size (count)."})
    relative_interval: float = field(
        default=0.03, metadata={"help": "Stop when half of every 95% interval is below this share of its median."}
    )
    budget_seconds: float | None = field(default=None, metadata={"help": "Stop timing after this long (seconds)."})
    seed: int = field(default=0, metadata={"help": "Seed of the drawn sizes, the input and the order."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a profile that is there."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, measure nothing."})


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([MeasureArguments], argv, "measure")
    run(args)
    return 0


def run(args: MeasureArguments):
    """Measure, print a table, and write the profile.

    Returns:
        The `DeviceProfile`; None on a dry run.
    """
    from rich.console import Console

    from ..measure.profile import measure_profile
    from ..measure.workload import Workload
    from ..utils.progress import Bar

    target = Workload(args.batch_size, args.sequence_length, args.threads, args.seed, args.runtime, args.phase)
    path = Path(args.output)
    if path.is_dir():
        raise UserError(f"output: {path} is a folder; give a file such as {path / 'profile.json'}")
    if path.exists() and not args.overwrite:
        raise UserError(f"output: {path} is there already; add --overwrite to replace it, or choose another file")
    device = check_device(args.device)
    if args.dry_run:
        return None
    model = load_elastic(args.model).to(device)
    names = ["largest", "smallest", *model.config.subnets] if args.subnets is None else args.subnets
    options = {"repeats": args.repeats, "relative_interval": args.relative_interval, "budget_seconds": args.budget_seconds}
    with Bar(True) as bar:
        profile = measure_profile(model, target, names, args.num_subnets, memory=args.memory, bar=bar, **options)
    profile.save(path)
    console = Console()
    console.print(table_of(model, profile, names))
    for line in remarks(model, profile):
        print(line)
    print(f"written: {path}")
    return profile


def table_of(model, profile, names: list[str]):
    """Sizes, counts, latency with its interval, and peak memory."""
    from rich.table import Table

    from ..search.picture import short_names
    from ..search.point import Point

    target = profile.target
    grid = Table("size", "parameters", "GFLOPs", "latency (95% interval)", "peak memory")
    known = {model.subnet(name): name for name in reversed(names)}
    labels = short_names([Point(one.subnet.to_dict(), {}, name=known.get(one.subnet)) for one in profile.measured])
    for label, one in zip(labels, profile.measured):
        flops = model.flops_of(one.subnet, target.batch_size, target.sequence_length)
        memory = "" if one.memory is None else f"{one.memory.peak_mb:.0f} MB"
        parameters = f"{model.num_parameters_of(one.subnet) / 1e6:.1f} M"
        grid.add_row(label, parameters, f"{flops / 1e9:.2f}", str(one.latency), memory)
    return grid


def remarks(model, profile) -> list[str]:
    """How well other sizes can be predicted from these, and whether the machine was busy."""
    from ..measure.cost_model import FEWEST, cost_models
    from ..measure.latency import measurement_warnings

    uncertain = measurement_warnings([one.latency for one in profile.measured])
    found = [f"warning: {doubt} (--repeats and --budget_seconds allow more samples)" for doubt in uncertain]
    if len(profile.measured) >= FEWEST:
        for name, fitted in cost_models(model, profile).items():
            found.append(f"{name} of other sizes, predicted from these (5 folds held out): {fitted}")
    return found
