"""`hf-elastic simulate`: what a server would do with a load, from a profile of its sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from ..serving.simulate_config import SimulateConfig
from .common import parse

RECORD, PICTURE = "simulation.json", "simulation.png"
WIDTH = 150  # of the table in a file (columns)


@dataclass(kw_only=True)
class SimulateArguments(SimulateConfig):
    """Whose costs to use, and where the results go."""

    profile: str = field(metadata={"help": "Serving profile of the sizes (JSON file)."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for simulation.json and simulation.png; default: only the table is printed."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what a simulation has written to the folder."})


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([SimulateArguments], argv, "simulate"))
    return 0


def run(args: SimulateArguments):
    """Simulate, print a table, and write the results and a picture.

    Returns:
        The `Comparison`.
    """
    from rich.console import Console

    from ..serving.compare import compare
    from ..serving.costs import ServingProfile
    from ..serving.qualities import read_qualities
    from ..serving.simulate_report import draw, make_table
    from ..utils.folders import check_output, filled
    from ..utils.progress import Bar

    if args.output_dir is not None:
        check_output(args.output_dir, overwrite=args.overwrite)
    profile = ServingProfile.load(args.profile)
    profile = profile.with_qualities(read_qualities(args.quality, profile.names))
    with Bar(True) as bar:
        bar.start("simulating", 0, None)
        comparison = compare(profile, args, bar.update)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(make_table(comparison))
    if args.output_dir is not None:
        with filled(args.output_dir, overwrite=args.overwrite) as folder:
            (folder / RECORD).write_text(json.dumps(comparison.record(), indent=1) + "\n", encoding="utf-8")
            draw(comparison, folder / PICTURE)
        print(f"written: {args.output_dir}")
    return comparison
