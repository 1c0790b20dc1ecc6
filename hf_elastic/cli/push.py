"""`hf-elastic push`: upload an elastic checkpoint and sizes of it to the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ..hub.config import PushConfig
from .common import parse, read_yaml


@dataclass
class PushArguments:
    """What to upload, and where to."""

    model: str = field(metadata={"help": "Folder of an elastic checkpoint, or one that hf-elastic export has written."})
    repo_id: str = field(metadata={"help": "Repository: owner/name, or name for the user of the token."})


def main(argv: list[str]) -> int:
    """Run the command."""
    run(*parse([PushArguments, PushConfig], argv, "push"))
    return 0


def run(args: PushArguments, config: PushConfig) -> None:
    """Push, and print what went where."""
    if config.recipe is not None:
        config = dataclasses.replace(config, recipe=read_recipe(config.recipe))

    from ..hub.push import push_folder

    pushed = push_folder(args.model, args.repo_id, config)
    for one in pushed:
        if one.commit is None:
            for path, size in one.sizes.items():
                print(f"{one.repo_id} {one.revision} {path} {size}")
        else:
            files, size = len(one.sizes), sum(one.sizes.values())
            print(f"{one.repo_id} {one.revision}: {files} files, {size:,} bytes, commit {one.commit}")
    if config.dry_run:
        files, size = sum(len(one.sizes) for one in pushed), sum(sum(one.sizes.values()) for one in pushed)
        print(f"{files} files, {size:,} bytes; nothing was uploaded")


def read_recipe(path: str) -> dict:
    """The options of a recipe of any command.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no mapping.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"recipe: there is no file {path!r}")
    return read_yaml(path, "recipe: ")
