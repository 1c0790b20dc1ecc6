"""`hf-elastic elm`: run the stages of a recipe one after the other, each an existing command; what is done is not repeated."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import yaml

import hf_elastic_cli

from ..core.errors import UserError
from ..utils.files import write_atomically
from ..utils.folders import claimed
from ..utils.options import check_integers, read_mapping
from .common import parse

COMMANDS = ("convert", "train", "search", "export")
RECORD = "stages.json"  # stage -> its command, its options, and the seconds it took once it is done
# What a stage may be told to read besides the folders of those before it: `$data`, `$teacher`.
GIVEN = ("data", "teacher")


@dataclass(kw_only=True)
class ElmArguments:
    """What to run and where."""

    stages: str = field(
        metadata={
            "help": "Name of a stage -> mapping: `command`, one of convert, train, search and export, its options, and "
            "under `smoke` those that differ in a smoke run. The output of a stage is a folder of its name in output_dir, which "
            "later stages call $NAME; $data is data_dir, $teacher is teacher."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for the folders of all stages."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the data sets, for $data."})
    teacher: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a model, for $teacher; default: all-MiniLM-L6-v2 from PyPI."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of every stage that has one and does not say another."})
    smoke: bool = field(
        default=False, metadata={"help": "Whether to run the smallest version of every stage, to see that it works."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Check the recipe, run nothing."})

    def __post_init__(self):
        self.stages = read_mapping("stages", self.stages)
        check_integers(0, seed=self.seed)
        if not self.stages:
            raise UserError("stages: there is none")
        for name, stage in self.stages.items():
            if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name in GIVEN:
                raise UserError(f"stages: {name!r} is no name of a stage: letters, digits, _ and -, but not {' or '.join(GIVEN)}")
            if not isinstance(stage, Mapping) or stage.get("command") not in COMMANDS:
                raise UserError(f"stages: {name} needs a command, one of: {', '.join(COMMANDS)}")


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([ElmArguments], argv, "elm"))
    return 0


def run(args: ElmArguments) -> None:
    """Run every stage that is not done.

    Raises:
        UserError: a stage has an unknown option, refers to none before it, or was begun with other options.
    """
    folder = Path(args.output_dir)
    stages = {name: (stage["command"], options_of(name, args)) for name, stage in args.stages.items()}
    if args.dry_run:
        return
    with claimed(folder):
        record = _read(folder / RECORD)
        for name, (command, options) in stages.items():
            _check_same(name, record.get(name), command, options, folder)
        for number, (name, (command, options)) in enumerate(stages.items(), 1):
            title = f"{number}/{len(stages)} {name}: hf-elastic {command}"
            if name in record and record[name]["seconds"] is not None:
                print(f"{title}: done")
                continue
            print(title, flush=True)
            record[name] = {"command": command, "options": options, "seconds": None}
            _write(folder / RECORD, record)
            started = time.perf_counter()
            run_stage(folder, name, command, options)
            record[name]["seconds"] = round(time.perf_counter() - started, 1)
            _write(folder / RECORD, record)


def run_stage(folder: Path, name: str, command: str, options: Mapping) -> None:
    """Run one stage from its start, or from where it was interrupted; its recipe is left beside its folder."""
    recipe = folder / f"{name}.yaml"
    write_atomically(recipe, yaml.safe_dump({**options, "output_dir": str(folder / name)}, sort_keys=False))
    module = import_module(f".{hf_elastic_cli.module_of(command)}", __package__)
    before = dict(os.environ)
    module.main([str(recipe), *_going_on(command, folder / name)])
    # In transformers 4.57 a training tells all later ones through the environment that it ran in half precision.
    for variable in os.environ.keys() - before:
        del os.environ[variable]
    os.environ.update(before)


def _going_on(command: str, output: Path) -> list[str]:
    """What tells a command to go on; a search does by itself."""
    if command == "search":
        return []
    return ["--resume_from_checkpoint", "true"] if _has_checkpoint(command, output) else ["--overwrite", "true"]


def _has_checkpoint(command: str, output: Path) -> bool:
    from ..training.checkpoints import checkpoints, is_complete

    return command == "train" and any(map(is_complete, checkpoints(str(output))))


def options_of(name: str, args: ElmArguments) -> dict:
    """The options of a stage, with the folders that it refers to.

    Raises:
        UserError: an unknown option or reference.
    """
    stage = dict(args.stages[name])
    command, smoke = stage.pop("command"), stage.pop("smoke", {})
    options = {**stage, **(smoke if args.smoke else {})}
    known = {option for group in hf_elastic_cli.groups(command) for option in group.options} - {"output_dir", "overwrite"}
    for option in (*stage, *smoke):
        if option not in known:
            raise UserError(f"stages: {name}: unknown option {option!r}; see hf-elastic {command} --help")
    if "seed" in known:
        options = {"seed": args.seed, **options}
    earlier = list(args.stages)[: list(args.stages).index(name)]
    return {option: _resolved(name, value, earlier, args) for option, value in options.items()}


def _resolved(name: str, value: object, earlier: list[str], args: ElmArguments) -> object:
    """A value in which `$NAME` at the start is a folder."""
    match = re.fullmatch(r"\$([\w-]+)(/.*)?", value) if isinstance(value, str) else None
    if match is None:
        return value
    reference, rest = match[1], match[2] or ""
    if reference == "data":
        if args.data_dir is None:
            raise UserError(f"stages: {name}: {value}: give data_dir")
        return args.data_dir + rest
    if reference == "teacher":
        from ..data.minilm import minilm_path

        return (str(minilm_path()) if args.teacher is None else args.teacher) + rest
    if reference not in earlier:
        raise UserError(f"stages: {name}: {value}: there is no {reference!r} before it; known: {', '.join((*GIVEN, *earlier))}")
    return str(Path(args.output_dir) / reference) + rest


def _check_same(name: str, known: Mapping | None, command: str, options: Mapping, folder: Path) -> None:
    """Raise UserError if what a stage has left is of other options; what left nothing, as after an error, may change."""
    if known is None or (known["seconds"] is None and not _has_checkpoint(known["command"], folder / name)):
        return
    before, now = {"command": known["command"], **known["options"]}, {"command": command, **options}
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise UserError(
                f"{folder}: the stage {name} was begun with {key} {before.get(key)!r}, which is now {now.get(key)!r}; "
                "choose another output_dir"
            )


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _write(path: Path, record: Mapping) -> None:
    write_atomically(path, json.dumps(record, indent=2) + "\n")
