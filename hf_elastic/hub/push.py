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

from huggingface_hub import ModelCard
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME

from ..core.errors import UserError
from ..core.loading import check_path
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..export import FORMATS
from ..export.checkpoint import save_elastic
from ..export.subnet import export_subnet
from ..search import Frontier
from . import client
from .card_parts import Place, from_evaluation, from_frontier, from_metrics, parity_records
from .cards import CARD, CardFacts, elastic_card, is_kept, size_card
from .client import MAIN, Upload
from .config import CardConfig, PushConfig, check_repo_id
from .meta_model import check_size, folder_config, meta_model

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What training leaves beside a checkpoint. `training_args.bin` is pickled, and may hold a token.
LEFT_OUT = (
    ".*", "__pycache__", "checkpoint-*", "runs", "logs", "optimizer*", "scheduler*", "scaler*", "rng_state*", "training_args.bin",
    "trainer_state.json", "sampler.json", "*.log", "*.tmp",
)  # fmt: skip


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
    config: PushConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token: str | None = None,
    **options,
) -> list[Pushed]:
    """Upload an elastic model, sizes of it by themselves, or both, each with a model card.

    Args:
        model: an elastic model.
        repo_id: `owner/name`, or `name` for the user of the token.
        config: the options.
        tokenizer: saved with it and with each size.
        token: for the Hub; default: HF_TOKEN, or that of `hf auth login`.
        **options: instead of `config`, the fields of `PushConfig`.

    Returns:
        What each branch holds.

    Raises:
        UserError: no token, or what cannot be pushed like this; see also `hf_elastic.hub.client.push`.
        HubError: the Hub refuses, fails or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_elastic(model, folder, tokenizer)
        return push_folder(folder, repo_id, config, token=token, **options)


def push_folder(
    folder: str | Path, repo_id: str, config: PushConfig | None = None, *, token: str | None = None, **options
) -> list[Pushed]:
    """Upload what training or `export_subnet` has written, as it is, and sizes of it; errors as for `push_model`.

    Args:
        folder: of an elastic checkpoint, or of one size.
        repo_id: as for `push_model`.
        config: as for `push_model`.
        token: as for `push_model`.
        **options: as for `push_model`.

    Raises:
        FileNotFoundError: there is no such folder, or no model in it.
    """
    config = config or PushConfig(**options)
    check_repo_id("repo_id", repo_id)
    folder = checked_folder(folder)
    saved = folder_config(folder)
    model = meta_model(saved)
    is_supernet = saved.model_type == "elastic" and saved.frozen is None
    if is_supernet:
        check_push(model, config)
    elif config.names:
        raise UserError(f"model: {folder} is one size and has no other; subnets and exports are for an elastic checkpoint")
    facts = read_facts(model, folder, config)
    api = None if config.dry_run else client.connect(token)  # without a token nothing needs to be loaded
    repo_id = repo_id if api is None else client.full_name(api, repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        if is_supernet:
            uploads = _uploads(model, folder, repo_id, facts, config, Path(temporary))
        else:
            uploads = [_size_upload(model, "full", folder, Place(repo_id), facts)]
        if api is None:
            done = [(upload, None) for upload in uploads]
        else:
            how = {"private": config.private, "overwrite": config.overwrite, "message": config.commit_message}
            done = client.push(uploads, api, **how)
        return [Pushed(upload.repo_id, upload.revision, upload.sizes(), commit) for upload, commit in done]


def checked_folder(name: str | Path) -> Path:
    """The local folder to upload.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it holds an adapter.
    """
    check_path(str(name))
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"model: there is no folder {str(name)!r}; push uploads a local checkpoint")
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise UserError(f"model: {name} is an adapter; export a size of it first, or push it with peft")
    return folder


def check_push(model: ElasticPreTrainedModel, config: PushConfig) -> None:
    """Raise UserError for what cannot be pushed of a supernet, which needs no weights for that."""
    if unknown := [name for name in config.formats if name not in FORMATS]:
        raise UserError(f"formats: {unknown[0]!r} is unknown; known: {', '.join(FORMATS)}")
    if "safetensors" not in config.formats:
        raise UserError("formats: a size is pushed with its checkpoint; add safetensors")
    if config.cut_here:
        _check_calibration(config.formats)
    taken = {"revisions": (MAIN,), "subfolders": FORMATS}.get(config.layout, ())
    for name in config.names:
        if name in ("full", "largest") or not NAME.fullmatch(name) or name in taken:
            raise UserError(f"subnets: {name!r} cannot be pushed as one of {config.layout}; rename it in the config")
        model.resolve(name)
    for name, path in config.exports.items():
        check_size(model, name, path)


def _check_calibration(formats: Sequence[str]) -> None:
    """Refuse formats that need calibration: sizes that are cut while pushing have none."""
    for name in formats:
        if FORMATS[name].needs_calibration:
            raise UserError(f"formats: {name} needs calibration; write it by hf-elastic export, and give its folder to --exports")


def read_facts(model: ElasticPreTrainedModel, folder: Path, config: PushConfig) -> CardFacts:
    """What the cards say: the options, and what is in the files of the checkpoint's folder and those that the options name."""
    frontier = None if config.frontier is None else Frontier.load(config.frontier)
    metrics = folder / "metrics.json"
    return CardFacts(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(CardConfig)},
        measurements=[
            *(from_metrics(model, json.loads(metrics.read_text(encoding="utf-8"))) if metrics.exists() else ()),
            *(from_frontier(model, frontier) if frontier is not None else ()),
            *(from_evaluation(model, config.results) if config.results is not None else ()),
        ],
        frontier=frontier,
        recipe=config.recipe or {},
    )


def _uploads(
    model: ElasticPreTrainedModel, folder: Path, repo_id: str, facts: CardFacts, config: PushConfig, workspace: Path
) -> list[Upload]:
    """One upload for each branch: of a supernet and of sizes by themselves."""
    places = {name: place_of(repo_id, name, config.layout) for name in config.names}
    folders = {**_cut(type(model), folder, config, workspace / "sizes"), **config.exports}
    uploads = []
    if config.supernet or any(place.repo_id == repo_id for place in places.values()):
        uploads.append(_root(model, folder, repo_id, facts, places, config.supernet, workspace / "frontier"))
    for name, place in places.items():
        uploads.append(_size_upload(model, name, folders[name], place, facts, repo_id if config.supernet else None))
    merged: dict[tuple[str, str], dict] = {}
    for upload in uploads:
        merged.setdefault((upload.repo_id, upload.revision), {}).update(upload.files)
    return [Upload(repo_id, files, revision) for (repo_id, revision), files in merged.items()]


def place_of(repo_id: str, name: str, layout: str) -> Place:
    """Where a size goes."""
    if layout == "repos":
        return Place(f"{repo_id}-{name}")
    return Place(repo_id, revision=name) if layout == "revisions" else Place(repo_id, subfolder=name)


def _cut(elastic_class: type[ElasticPreTrainedModel], folder: Path, config: PushConfig, output_dir: Path) -> dict[str, Path]:
    """Export the sizes that are not exported yet."""
    if not config.cut_here:
        return {}
    model = elastic_class.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer_config.json").exists() else None
    folders = {name: output_dir / name for name in config.names if name in config.cut_here}
    for name, path in folders.items():
        export_subnet(model, name, path, config.formats, tokenizer=tokenizer)
    return folders


def _root(
    model: ElasticPreTrainedModel,
    folder: Path,
    repo_id: str,
    facts: CardFacts,
    places: Mapping[str, Place],
    supernet: bool,
    workspace: Path,
) -> Upload:
    """What is in the repository itself: the supernet, or the card of its sizes where they are all in that one."""
    files: dict[str, Path | bytes] = {}
    if facts.frontier is not None:
        facts.frontier.save(workspace / "frontier.json")
        if len(facts.frontier.objectives) > 1:
            facts.frontier.plot(workspace / "frontier.png")
            facts = dataclasses.replace(facts, picture="frontier.png")
        files = {path.name: path for path in workspace.iterdir()}
    card = elastic_card(model, Place(repo_id) if supernet else None, facts, places, name=Place(repo_id).name)
    files |= with_card(folder, card) if supernet else {CARD: str(card).encode()}
    return Upload(repo_id, files)


def _size_upload(
    model: ElasticPreTrainedModel, name: str, folder: Path, place: Place, facts: CardFacts, parent: str | None = None
) -> Upload:
    """One size by itself; arguments as for `size_card`."""
    files = with_card(folder, size_card(model, name, place, facts, parity_records(folder), parent))
    prefix = f"{place.subfolder}/" if place.subfolder else ""
    return Upload(place.repo_id, {prefix + path: content for path, content in files.items()}, place.revision or MAIN)


def with_card(folder: Path, card: ModelCard) -> dict[str, Path | bytes]:
    """Path in the repository -> file or content: all of a checkpoint, nothing that training left beside it, and the card.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {
        name: path
        for name, path in files.items()
        if not any(fnmatch.fnmatch(part, pattern) for part in name.split("/") for pattern in LEFT_OUT)
    }
    if not kept:
        raise FileNotFoundError(f"there is nothing to push in {folder}")
    return kept if is_kept(folder) else {**kept, CARD: str(card).encode()}
