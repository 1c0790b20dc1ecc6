"""`hf-elastic push`: upload an elastic checkpoint and sizes of it to the Hugging Face Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME

from ..core.errors import UserError
from ..core.loading import check_path
from ..utils.options import check_integers, read_mapping
from .common import parse, read_yaml
from .data import load_elastic, load_tokenizer


@dataclass
class PushArguments:
    """What to upload, where to, and what its model cards say."""

    model: str = field(metadata={"help": "Folder of an elastic checkpoint, or one that hf-elastic export has written."})
    repo_id: str = field(metadata={"help": "Repository: owner/name, or name for the user of the token."})
    supernet: bool = field(default=True, metadata={"help": "Upload the full weights, which hold every size."})
    subnets: list[str] = field(
        default_factory=list, metadata={"help": "Named sizes to upload by themselves, as checkpoints that need no hf_elastic."}
    )
    exports: str | None = field(
        default=None,
        metadata={"help": "Named size -> folder that hf-elastic export has written for it (mapping, JSON or JSON file)."},
    )
    layout: str = field(
        default="repos",
        metadata={"help": "Where sizes go: repos (REPO_ID-SIZE), revisions (branches of REPO_ID) or subfolders (of REPO_ID)."},
    )
    formats: list[str] = field(
        default_factory=lambda: ["safetensors"], metadata={"help": "What to export of subnets; see hf-elastic export."}
    )
    private: bool = field(default=False, metadata={"help": "Create private repositories; without it they are public."})
    overwrite: bool = field(default=False, metadata={"help": "Replace files of the repositories that differ."})
    dry_run: bool = field(
        default=False, metadata={"help": "List what would be uploaded (repository, branch, path, bytes); use no network."}
    )
    commit_message: str = field(default="Upload with hf_elastic", metadata={"help": "Message of the commits."})
    base_model: str | None = field(default=None, metadata={"help": "Hub id of the checkpoint that was made elastic."})
    license: str | None = field(
        default=None, metadata={"help": "Licence of the model, as the Hub calls it: apache-2.0, mit, ..."}
    )
    language: list[str] = field(default_factory=list, metadata={"help": "Language codes, such as en."})
    datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the data; results are reported as measured on it if there is exactly one."},
    )
    tags: list[str] = field(default_factory=list, metadata={"help": "Further tags."})
    frontier: str | None = field(default=None, metadata={"help": "A frontier.json, for measured values and the picture."})
    results: str | None = field(default=None, metadata={"help": "Results of hf-elastic evaluate, for the table."})
    recipe: str | None = field(default=None, metadata={"help": "Recipe of the training, for its options."})
    sequence_length: int = field(default=128, metadata={"help": "Length of the input whose FLOPs are counted (tokens)."})

    def __post_init__(self):
        self.exports = read_mapping("exports", self.exports)
        check_integers(1, sequence_length=self.sequence_length)


def main(argv: list[str]) -> int:
    """Run the command."""
    (args,) = parse([PushArguments], argv, "push")
    pushed = run(args)
    for one in pushed:
        if one.commit is None:
            for path, size in one.sizes.items():
                print(f"{one.repo_id} {one.revision} {path} {size}")
        else:
            files, size = len(one.sizes), sum(one.sizes.values())
            print(f"{one.repo_id} {one.revision}: {files} files, {size:,} bytes, commit {one.commit}")
    if args.dry_run:
        files, size = sum(len(one.sizes) for one in pushed), sum(sum(one.sizes.values()) for one in pushed)
        print(f"{files} files, {size:,} bytes; nothing was uploaded")
    return 0


def run(args: PushArguments) -> list:
    """Upload; with `dry_run` only collect.

    Returns:
        A `Pushed` for each branch of a repository.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the arguments do not fit, there is no token, or a repository differs.
        HubError: the Hub refuses, fails or cannot be reached.
    """
    from huggingface_hub.utils import validate_repo_id

    from ..hub.client import connect
    from ..hub.meta_model import folder_config, meta_model
    from ..hub.push import check_push, push_folder, push_model

    validate_repo_id(args.repo_id)
    folder = checked_folder(args.model)
    common = {"private": args.private, "overwrite": args.overwrite, "dry_run": args.dry_run, "message": args.commit_message}
    config = folder_config(folder)
    model = meta_model(config)
    facts = card_facts(model, folder, args)
    if config.model_type != "elastic" or config.frozen is not None:
        if args.subnets or args.exports:
            raise UserError(f"model: {folder} is one size and has no other; subnets and exports are for an elastic checkpoint")
        return push_folder(folder, model, args.repo_id, facts=facts, **common)
    exports = {name: Path(path) for name, path in (args.exports or {}).items()}
    check_push(model, [*args.subnets, *exports], exports, args.supernet, args.layout, args.formats)
    if not args.dry_run:
        connect()  # without a token nothing needs to be loaded
    cut_here = set(args.subnets) - set(exports)
    return push_model(
        load_elastic(str(folder)) if cut_here else model,
        args.repo_id,
        folder=folder,
        tokenizer=load_tokenizer(str(folder)) if cut_here and (folder / "tokenizer_config.json").exists() else None,
        facts=facts,
        supernet=args.supernet,
        subnets=args.subnets,
        exports=exports,
        layout=args.layout,
        formats=args.formats,
        **common,
    )


def checked_folder(name: str) -> Path:
    """The local folder to upload.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it holds an adapter.
    """
    check_path(name)
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"model: there is no folder {name!r}; push uploads a local checkpoint")
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise UserError(f"model: {name} is an adapter; export a size of it first, or push it with peft")
    return folder


def card_facts(model, folder: Path, args: PushArguments):
    """What the cards say: the files of the checkpoint's folder and those that the arguments name, read."""
    from ..hub.cards import CardFacts
    from ..hub.measured import from_evaluation, from_frontier, from_metrics
    from ..search import Frontier

    frontier = None if args.frontier is None else Frontier.load(args.frontier)
    metrics = folder / "metrics.json"
    measurements = [
        *(from_metrics(model, json.loads(metrics.read_text(encoding="utf-8"))) if metrics.exists() else ()),
        *(from_frontier(model, frontier) if frontier is not None else ()),
        *(from_evaluation(model, args.results) if args.results is not None else ()),
    ]
    return CardFacts(
        base_model=args.base_model,
        license=args.license,
        language=args.language,
        datasets=args.datasets,
        tags=args.tags,
        measurements=measurements,
        frontier=frontier,
        recipe={} if args.recipe is None else read_recipe(args.recipe),
        sequence_length=args.sequence_length,
    )


def read_recipe(path: str) -> dict:
    """The options of a recipe of any command.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"recipe: there is no file {path!r}")
    return read_yaml(path, "recipe: ")
