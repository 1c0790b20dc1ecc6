"""Files to the Hugging Face Hub: what is missing there, in one commit per branch, so that nobody ever loads half of it.

`create_commit` is what every version of the client in range (0.34 to 2.x) has and what is atomic. `upload_large_folder` makes
many commits and is gone in 2.x, whose `upload_folder` may make several as well; `CommitScheduler` is for files that grow. An
upload that was cut off goes on file by file: large files wait in the Hub's storage for the commit, and it says which it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from ..core.errors import UserError
from .config import check_repo_id
from .errors import explained, status_of

MAIN = "main"
# Loaders look for these by name, so that one left over from an earlier push may be loaded in place of the new ones.
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".onnx", ".onnx_data")
# No token is in a file of weights by chance, and those are long to read.
LONGEST_TEXT = 10 * 2**20


@dataclass(frozen=True)
class Upload:
    """What one branch of one repository is to hold.

    Attributes:
        repo_id: `owner/name`; of a dry run also `name`.
        files: path in the repository -> local file or content.
        revision: the branch.
    """

    repo_id: str
    files: Mapping[str, Path | bytes]
    revision: str = MAIN

    def __str__(self) -> str:
        return self.repo_id if self.revision == MAIN else f"{self.repo_id}@{self.revision}"

    def sizes(self) -> dict[str, int]:
        """Path in the repository -> bytes."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size for path, content in self.files.items()
        }


@dataclass(frozen=True)
class Plan:
    """What an upload has to do.

    Attributes:
        upload: what is wanted.
        missing: paths that are not there.
        changed: paths that are there with another content.
        stale: weights there, beside the new ones, that are not part of the upload.
        head: the commit that it was compared with; None if there is no such repository or branch.
        exists: whether the repository is there.
        is_public: whether everybody sees it.
    """

    upload: Upload
    missing: list[str]
    changed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    head: str | None = None
    exists: bool = False
    is_public: bool = False


def connect(token: str | None = None) -> HfApi:
    """A client with the given token, else that of HF_TOKEN or of `hf auth login`.

    Raises:
        UserError: there is none.
    """
    token = token or get_token()
    if token is None:
        raise UserError("no token for the Hub: log in with `hf auth login`, or set the environment variable HF_TOKEN")
    return HfApi(token=token, library_name="hf_elastic")


def full_name(api: HfApi, repo_id: str) -> str:
    """`owner/name`, the owner being the user of the token where none is given.

    Raises:
        UserError: no repository can have this name.
        HubError: see there.
    """
    check_repo_id("repo_id", repo_id)
    if "/" in repo_id:
        return repo_id
    with explained("the user of the token", api.token):
        return f"{api.whoami()['name']}/{repo_id}"


def push(
    uploads: Sequence[Upload],
    api: HfApi,
    *,
    private: bool = False,
    overwrite: bool = False,
    message: str = "Upload with hf_elastic",
) -> list[tuple[Upload, str]]:
    """Make every repository hold its files; what it has already is not sent.

    All are compared before the first is touched. Each gets one commit, on what it was compared with.

    Args:
        uploads: full names; each branch once.
        api: from `connect`.
        private: create repositories that nobody else sees; else they are public, or as the organization's default is.
        overwrite: replace files that differ, and remove weights that an earlier push left.
        message: of the commits.

    Returns:
        Each upload, and the commit that holds it.

    Raises:
        UserError: a repository exists and differs and `overwrite` is False, or is public and should be private; or a file holds
            the token.
        HubError: the Hub refuses, fails or cannot be reached.
    """
    for upload in uploads:
        _check_secrets(upload, api.token)
    plans = []
    for upload in uploads:
        with explained(str(upload), api.token):
            plans.append(compare(api, upload))
    for plan in plans:
        if private and plan.is_public:
            raise UserError(
                f"{plan.upload.repo_id} exists and is public; --private true only holds for new ones: make it private"
            )
        if not overwrite and (different := [*plan.changed, *plan.stale]):
            raise UserError(
                f"{plan.upload} exists and differs: {different[0]}{' and others' if len(different) > 1 else ''}; "
                "add --overwrite true to replace what differs, or choose another repository"
            )
    done = []
    for plan in plans:
        with explained(str(plan.upload), api.token):
            done.append((plan.upload, send(api, plan, private, message)))
    return done


def compare(api: HfApi, upload: Upload) -> Plan:
    """Look at what is there."""
    plan = Plan(upload, missing=list(upload.files))
    try:
        info = api.model_info(upload.repo_id)
    except RepositoryNotFoundError as error:
        if status_of(error) != 404:  # the client takes a refused token for it
            raise
        return plan
    plan = replace(plan, exists=True, is_public=not info.private)
    try:
        head = info.sha if upload.revision == MAIN else api.model_info(upload.repo_id, revision=upload.revision).sha
        tree = api.list_repo_tree(upload.repo_id, recursive=True, revision=head)
        there = {item.path: item for item in tree if isinstance(item, RepoFile)}
    except RevisionNotFoundError:
        return plan
    return replace(
        plan,
        head=head,
        missing=[path for path in upload.files if path not in there],
        changed=[path for path, content in upload.files.items() if path in there and not _is_same(content, there[path])],
        stale=_stale(upload.files, there),
    )


def send(api: HfApi, plan: Plan, private: bool, message: str) -> str:
    """Carry out a plan; returns the commit that now holds the files."""
    upload = plan.upload
    if not plan.exists:
        api.create_repo(upload.repo_id, private=private or None, exist_ok=True)
    head = plan.head or _make_branch(api, upload)
    operations = [CommitOperationAdd(path, upload.files[path]) for path in (*plan.missing, *plan.changed)]
    operations += [CommitOperationDelete(path, is_folder=False) for path in plan.stale]
    if not operations:
        return head
    return api.create_commit(upload.repo_id, operations, commit_message=message, revision=upload.revision, parent_commit=head).oid


def _make_branch(api: HfApi, upload: Upload) -> str:
    """Make sure that the branch is there, and return its head. A new one starts at the first commit: without main's files."""
    if upload.revision != MAIN:
        first = api.list_repo_commits(upload.repo_id)[-1].commit_id
        api.create_branch(upload.repo_id, branch=upload.revision, revision=first, exist_ok=True)
    return api.model_info(upload.repo_id, revision=upload.revision).sha


def _check_secrets(upload: Upload, token: str | None) -> None:
    for path, content in upload.files.items():
        if isinstance(content, Path) and (path.endswith(WEIGHTS) or content.stat().st_size > LONGEST_TEXT):
            continue
        if token and token.encode() in (content if isinstance(content, bytes) else content.read_bytes()):
            raise UserError(f"{path} holds your token for the Hub; it is not uploaded")


def _stale(files: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    folders = {PurePosixPath(path).parent for path in files if path.endswith(WEIGHTS)}
    return [path for path in there if path not in files and path.endswith(WEIGHTS) and PurePosixPath(path).parent in folders]


def _is_same(content: Path | bytes, remote: RepoFile) -> bool:
    """Compare by hash: of the content where it is in large-file storage, else git's of a blob."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size != remote.size:
        return False
    digest = hashlib.sha256() if remote.lfs is not None else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for block in _blocks(content):
        digest.update(block)
    return digest.hexdigest() == (remote.blob_id if remote.lfs is None else remote.lfs.sha256)


def _blocks(content: Path | bytes, size: int = 2**20) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(size):
            yield block
