"""An elastic checkpoint and its sizes on the Hugging Face Hub: which file goes into which repository, branch and folder."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..export import FORMATS
from ..export.subnet import export_subnet
from ..utils.tokenizer import save_tokenizer
from . import client as client
from .cards import CardFacts, elastic_card, is_ours, size_card
from .client import MAIN, Upload
from .measured import FULL_NAMES
from .meta_model import check_size
from .places import Place

LAYOUTS = ("repos", "revisions", "subfolders")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What training leaves beside a checkpoint. `training_args.bin` is pickled, and may hold a token.
LEFT_OUT = (
    ".*", "__pycache__", "checkpoint-*", "runs", "logs", "optimizer*", "scheduler*", "scaler*", "rng_state*", "training_args.bin",
    "trainer_state.json", "sampler.json", "*.log", "*.tmp",
)  # fmt: skip
CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What a branch of a repository holds now, or would.

    Attributes:
        repo_id: `owner/name`.
        revision: the branch.
        sizes: path -> bytes.
        commit: the commit; None of a dry run.
    """

    repo_id: str
    revision: str
    sizes: dict[str, int]
    commit: str | None


def push_model(
    model: ElasticPreTrainedModel,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    facts: CardFacts | None = None,
    supernet: bool = True,
    subnets: Sequence[str] = (),
    exports: Mapping[str, str | Path] | None = None,
    layout: str = "repos",
    formats: Sequence[str] = ("safetensors",),
    private: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    message: str = "Upload with hf_elastic",
    token: str | None = None,
) -> list[Pushed]:
    """Upload an elastic model, sizes of it by themselves, or both, each with a model card.

    Args:
        model: the supernet; without weights (`shells.meta_model`) if there is a `folder` and every size is in `exports`.
        repo_id: `owner/name`, or `name` for the user of the token.
        folder: the checkpoint that `model` was loaded from, uploaded as it is; None to save the model.
        tokenizer: saved with what is written here.
        facts: what the cards say besides what the model knows.
        supernet: whether the full weights are uploaded.
        subnets: names of sizes to upload by themselves, as standard checkpoints where they are standard.
        exports: name of a size -> folder that `export_subnet` has written for it, uploaded as it is.
        layout: where sizes go: "repos", `owner/name-SIZE`; "revisions", branches of the one repository; "subfolders" of it.
        formats: what to export of `subnets` that are not in `exports`.
        private: create private repositories; else they are public, or as the organization's default is.
        overwrite: replace files that differ, and weights that an earlier push left.
        dry_run: use no network and upload nothing.
        message: of the commits.
        token: for the Hub; default: HF_TOKEN, or that of `hf auth login`.

    Returns:
        What each branch holds.

    Raises:
        ValueError: no token, or what cannot be pushed like this; see also `hf_elastic.hub.client.push`.
        HubError: the Hub refuses, fails or cannot be reached.
    """
    exports = {name: Path(path) for name, path in (exports or {}).items()}
    names = [*dict.fromkeys([*subnets, *exports])]
    check_push(model, names, exports, supernet, layout, formats)
    api = None if dry_run else client.connect(token)
    repo_id = repo_id if api is None else client.full_name(api, repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Path(temporary)
        places = {name: place_of(repo_id, name, layout) for name in names}
        folders = {
            name: exports.get(name) or _export(model, name, workspace / "sizes" / name, formats, tokenizer) for name in names
        }
        root = _root(model, repo_id, folder, tokenizer, facts or CardFacts(), places, supernet, workspace)
        uploads = [] if root is None else [root]
        for name in names:
            records = parity_records(folders[name])
            plain = dataclasses.replace(facts or CardFacts(), picture=None)
            card = size_card(model, name, places[name], plain, records, parent=repo_id if supernet else None)
            uploads.append(_upload(places[name], {**files_of(folders[name]), **_card_file(folders[name], card)}))
        return deliver(_merged(uploads), api, private=private, overwrite=overwrite, message=message)


def push_folder(
    folder: str | Path,
    model: ElasticPreTrainedModel,
    repo_id: str,
    *,
    facts: CardFacts | None = None,
    revision: str = MAIN,
    private: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    message: str = "Upload with hf_elastic",
    token: str | None = None,
) -> list[Pushed]:
    """Upload a folder that `export_subnet` has written, with a model card; arguments and errors as for `push_model`.

    Args:
        folder: the folder.
        model: what is in it, perhaps without weights; see `shells.meta_model`.
        repo_id: `owner/name`, or `name` for the user of the token.
        facts: what the card says besides what the model knows.
        revision: the branch.
        private: as for `push_model`.
        overwrite: as for `push_model`.
        dry_run: as for `push_model`.
        message: as for `push_model`.
        token: as for `push_model`.
    """
    folder = Path(folder)
    api = None if dry_run else client.connect(token)
    place = Place(repo_id if api is None else client.full_name(api, repo_id), None if revision == MAIN else revision)
    card = size_card(model, "full", place, facts or CardFacts(), parity_records(folder))
    uploads = [_upload(place, {**files_of(folder), **_card_file(folder, card)})]
    return deliver(uploads, api, private=private, overwrite=overwrite, message=message)


def deliver(uploads: Sequence[Upload], api, **options) -> list[Pushed]:
    """Push, or without a client only say what would be pushed."""
    done = [(upload, None) for upload in uploads] if api is None else client.push(uploads, api, **options)
    return [Pushed(upload.repo_id, upload.revision, upload.sizes(), commit) for upload, commit in done]


def place_of(repo_id: str, name: str, layout: str) -> Place:
    """Where a size goes."""
    if layout == "repos":
        return Place(f"{repo_id}-{name}")
    return Place(repo_id, revision=name) if layout == "revisions" else Place(repo_id, subfolder=name)


def files_of(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file: all of a checkpoint, and nothing that training left beside it.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    kept = {
        name: path
        for name, path in found.items()
        if not any(fnmatch.fnmatch(part, pattern) for part in name.split("/") for pattern in LEFT_OUT)
    }
    if not kept:
        raise FileNotFoundError(f"there is nothing to push in {folder}")
    return kept


def parity_records(folder: Path) -> dict[str, dict]:
    """Folder ("" for the checkpoint itself) -> what its `parity.json` says."""
    paths = sorted(folder.rglob("parity.json"))
    folders = [path.parent.relative_to(folder).as_posix() for path in paths]
    return {"" if name == "." else name: json.loads(path.read_text(encoding="utf-8")) for name, path in zip(folders, paths)}


def check_push(
    model: ElasticPreTrainedModel,
    names: Sequence[str],
    exports: Mapping[str, Path],
    supernet: bool,
    layout: str,
    formats: Sequence[str],
) -> None:
    """Raise ValueError for what cannot be pushed like this; arguments as for `push_model`, the model with or without weights."""
    if layout not in LAYOUTS:
        raise UserError(f"layout: {layout!r} is unknown; known: {', '.join(LAYOUTS)}")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"formats: {unknown[0]!r} is unknown; known: {', '.join(FORMATS)}")
    if "safetensors" not in formats:
        raise UserError("formats: a size is pushed with its checkpoint; add safetensors")
    if set(names) - set(exports):
        _check_calibration(formats)
    if not supernet and not names:
        raise UserError("nothing to push: neither the supernet nor any subnets")
    if model.frozen_cut is not None:
        raise UserError("the checkpoint is frozen at one size and has no other: push its folder by itself")
    taken = {"revisions": (MAIN,), "subfolders": FORMATS}.get(layout, ())
    for name in names:
        if name in FULL_NAMES or not NAME.fullmatch(name) or name in taken:
            raise UserError(f"subnets: {name!r} cannot be pushed as one of {layout}; rename it in the config")
        model.resolve(name)
    for name, path in exports.items():
        check_size(model, name, path)


def _check_calibration(formats: Sequence[str]) -> None:
    """Refuse formats that need calibration: sizes that are cut while pushing have none."""
    for name in formats:
        if FORMATS[name].needs_calibration:
            raise UserError(f"formats: {name} needs calibration; write it by hf-elastic export, and give its folder to --exports")


def _export(model, name: str, folder: Path, formats: Sequence[str], tokenizer) -> Path:
    export_subnet(model, name, folder, formats, tokenizer=tokenizer)
    return folder


def _root(model, repo_id, folder, tokenizer, facts: CardFacts, places, supernet: bool, workspace: Path) -> Upload | None:
    """What is in the repository itself: the supernet, or the card of its sizes where they are all in that one."""
    if not supernet and not any(place.repo_id == repo_id for place in places.values()):
        return None
    files: dict[str, Path | bytes] = {}
    if facts.frontier is not None:
        drawn = len(facts.frontier.objectives) > 1
        facts = dataclasses.replace(facts, picture="frontier.png" if drawn else None)
        files |= _frontier_files(facts.frontier, workspace / "frontier", drawn)
    place = Place(repo_id) if supernet else None
    card = elastic_card(model, place, facts, places, name=Place(repo_id).name)
    if not supernet:
        return Upload(repo_id, {**files, CARD: str(card).encode()})
    if folder is None:
        folder = workspace / "supernet"
        model.save_pretrained(folder)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
    return Upload(repo_id, {**files, **files_of(Path(folder)), **_card_file(Path(folder), card)})


def _frontier_files(frontier, folder: Path, drawn: bool) -> dict[str, Path]:
    frontier.save(folder / "frontier.json")
    if drawn:
        frontier.plot(folder / "frontier.png")
    return {path.name: path for path in folder.iterdir()}


def _card_file(folder: Path, card) -> dict[str, bytes]:
    """The card, unless somebody wrote one."""
    path = folder / CARD
    if path.exists() and not is_ours(path.read_text(encoding="utf-8")):
        return {}
    return {CARD: str(card).encode()}


def _upload(place: Place, files: Mapping[str, Path | bytes]) -> Upload:
    prefix = f"{place.subfolder}/" if place.subfolder else ""
    return Upload(place.repo_id, {prefix + path: content for path, content in files.items()}, place.revision or MAIN)


def _merged(uploads: Sequence[Upload]) -> list[Upload]:
    """One upload for each branch."""
    merged: dict[tuple[str, str], dict] = {}
    for upload in uploads:
        merged.setdefault((upload.repo_id, upload.revision), {}).update(upload.files)
    return [Upload(repo_id, files, revision) for (repo_id, revision), files in merged.items()]
