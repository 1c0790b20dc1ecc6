"""`hf-elastic search`: find the best sizes on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..core.errors import UserError
from ..search.config import SearchConfig
from ..utils.folders import check_folder
from .common import parse
from .data import DataArguments, load_elastic, load_tokenizer, prepare_for

FRONTIER = "frontier.json"


@dataclass(kw_only=True)
class SearchArguments(DataArguments):
    """Which model to search, on which data, and where the results go."""

    output_dir: str = field(
        default="search", metadata={"help": "Folder for frontier.json, its pictures, report.html and the trials."}
    )
    split: str = field(default="validation", metadata={"help": "Split that the quality is measured on."})
    max_examples: int | None = field(default=None, metadata={"help": "Use only the first examples of the split (count)."})
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that holds something else."})
    dry_run: bool = field(default=False, metadata={"help": "Check the arguments, search nothing."})


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([SearchArguments, SearchConfig], argv, "search"))
    return 0


def run(args: SearchArguments, config: SearchConfig):
    """Search, and write `frontier.json`, `frontier.png`, `frontier.svg` and `report.html`; an interrupted search goes on.

    Returns:
        The `Frontier`; None on a dry run.
    """
    config.check_known()
    folder = Path(args.output_dir)
    trials = folder / "trials"
    storage = config.storage or str(trials)
    study = study_digest(storage, config.study_name)
    # A folder with trials is an earlier, perhaps interrupted, run of this search; or they are elsewhere, which the results say.
    is_earlier = trials.exists() or _study_of(folder / FRONTIER) == study
    check_folder(folder, overwrite=args.overwrite or is_earlier)
    if args.dry_run:
        return None
    from rich.console import Console

    from ..search import search_subnets

    model = load_elastic(args.checkpoint)
    rows, collator = _rows(model, args, config)
    config = replace(config, storage=storage)
    frontier = search_subnets(model, eval_dataset=rows, config=config, data_collator=collator)
    frontier.facts["study"] = study
    frontier.save(folder / FRONTIER)
    if len(frontier.objectives) > 1:
        frontier.plot(folder / "frontier.png")
        frontier.plot(folder / "frontier.svg")
    frontier.report(folder / "report.html", f"Sizes of {args.model}")
    Console().print(frontier.table())
    for warning in frontier.facts.get("warnings", ()):
        print(f"warning: {warning}")
    print(f"next: {_next(args, frontier)}")
    return frontier


def _next(args: SearchArguments, frontier) -> str:
    """The command that exports the size in the middle of the frontier."""
    command = ["hf-elastic", "export", "--model", args.checkpoint, "--frontier", f"{args.output_dir}/{FRONTIER}"]
    if len(frontier.objectives) > 1:
        goal = frontier.objectives[1]
        middle = sorted(point.values[goal.name] for point in frontier.points)[len(frontier.points) // 2]
        command += ["--limits", json.dumps({goal.name: middle})]
    return shlex.join([*command, "--output_dir", "exported"])


def study_digest(storage: str, name: str) -> str:
    """Which study of which storage, without the password that a URL may hold."""
    place = storage if "://" in storage else os.path.realpath(storage)
    return hashlib.sha256(f"{place}#{name}".encode()).hexdigest()[:16]


def _study_of(path: Path) -> str | None:
    """The study that a saved frontier is from; None if there is none."""
    from ..search import Frontier

    return Frontier.load(path).facts.get("study") if path.is_file() else None


def _rows(model, args: SearchArguments, config: SearchConfig):
    """The rows that quality is measured on and their collator; None, None where nothing is measured on data."""
    from ..search.objectives import FROM_DATA

    if not set(config.wanted) & set(FROM_DATA):
        return None, None
    data = prepare_for(model, load_tokenizer(args.checkpoint), args)
    if args.split not in data.splits:
        raise UserError(f"split: {args.split!r} is not in the data; it has: {', '.join(data.splits)}")
    rows = data.splits[args.split]
    if args.max_examples is not None:
        rows = rows.select(range(min(args.max_examples, len(rows))))
    return rows, data.collator
