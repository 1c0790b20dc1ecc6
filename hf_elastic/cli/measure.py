"""`hf-elastic measure`: what sizes cost on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..measure.config import MeasureConfig
from .common import parse
from .data import ModelArguments, check_device, load_elastic


@dataclass(kw_only=True)
class MeasureArguments(ModelArguments):
    """Which model to measure, and where the profile goes."""

    output: str = field(default="profile.json", metadata={"help": "File for the device profile."})
    device: str = field(default="cpu", metadata={"help": "Device for torch, such as cpu or cuda."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a profile that is there."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, measure nothing."})


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([MeasureArguments, MeasureConfig], argv, "measure"))
    return 0


def run(args: MeasureArguments, config: MeasureConfig):
    """Measure, print a table, and write the profile.

    Returns:
        The `DeviceProfile`; None on a dry run.
    """
    path = Path(args.output)
    if path.is_dir():
        raise UserError(f"output: {path} is a folder; give a file such as {path / 'profile.json'}")
    if path.exists() and not args.overwrite:
        raise UserError(f"output: {path} is there already; add --overwrite to replace it, or choose another file")
    if path.exists():
        from ..measure.profile import DeviceProfile

        DeviceProfile.load(path)  # nothing else is replaced
    device = check_device(args.device)
    if args.dry_run:
        return None
    from rich.console import Console

    from ..measure.profile import measure_profile
    from ..utils.progress import Bar

    model = load_elastic(args.checkpoint).to(device)
    with Bar(True) as bar:
        profile = measure_profile(model, config, bar=bar)
    profile.save(path)
    Console().print(table_of(model, profile))
    for line in remarks(model, profile):
        print(line)
    print(f"written: {path}")
    return profile


def table_of(model, profile):
    """Sizes, counts, latency with its interval, and peak memory."""
    from rich.table import Table

    from ..search.picture import short_names
    from ..search.point import Point

    workload = profile.workload
    grid = Table("size", "parameters", "GFLOPs", "latency (95% interval)", "peak memory")
    known = {model.subnet(name): name for name in reversed(["largest", "smallest", *model.config.subnets])}
    labels = short_names([Point(one.subnet.to_dict(), {}, name=known.get(one.subnet)) for one in profile.measured])
    for label, one in zip(labels, profile.measured):
        flops = model.flops_of(one.subnet, workload.batch_size, workload.sequence_length)
        memory = "" if one.memory is None else f"{one.memory.peak_mb:.0f} MB"
        parameters = f"{model.num_parameters_of(one.subnet) / 1e6:.1f} M"
        grid.add_row(label, parameters, f"{flops / 1e9:.2f}", str(one.latency), memory)
    return grid


def remarks(model, profile) -> list[str]:
    """How well other sizes can be predicted from these, and whether the machine was busy."""
    from ..measure.cost_model import FEWEST, cost_models
    from ..measure.latency import measurement_warnings

    warnings = measurement_warnings([one.latency for one in profile.measured])
    found = [f"warning: {warning} (--repeats and --budget_seconds allow more samples)" for warning in warnings]
    if len(profile.measured) >= FEWEST:
        for name, fitted in cost_models(model, profile).items():
            found.append(f"{name} of other sizes, predicted from these (5 folds held out): {fitted}")
    return found
