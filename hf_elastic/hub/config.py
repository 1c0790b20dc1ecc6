"""What is pushed, where to, and what its model cards say: the options of `push_model`, `push_folder` and `hf-elastic push`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from ..core.errors import UserError
from ..utils.options import check_integers, read_mapping

LAYOUTS = ("repos", "revisions", "subfolders")


@dataclass(kw_only=True)
class CardConfig:
    """What a model card says that neither the model nor a file knows.

    Raises:
        UserError: a name that nothing on the Hub can have, or a length below 1.
    """

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
    sequence_length: int = field(default=128, metadata={"help": "Length of the input whose FLOPs are counted (tokens)."})

    def __post_init__(self):
        check_integers(1, sequence_length=self.sequence_length)
        for name, values in {"base_model": [self.base_model] if self.base_model else [], "datasets": self.datasets}.items():
            for value in values:
                check_repo_id(name, value)


@dataclass(kw_only=True)
class PushConfig(CardConfig):
    """What to upload of an elastic checkpoint, and how.

    Raises:
        UserError: an unknown layout, or nothing to push; or as for `CardConfig`.
    """

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
    frontier: str | None = field(default=None, metadata={"help": "A frontier.json, for measured values and the picture."})
    results: str | None = field(default=None, metadata={"help": "Results of hf-elastic evaluate, for the table."})
    # A mapping; the command reads it from the file.
    recipe: str | None = field(default=None, metadata={"help": "Recipe of the training, for its options."})

    def __post_init__(self):
        super().__post_init__()
        exports = read_mapping("exports", self.exports) or {}
        self.exports = {name: Path(path) for name, path in exports.items()}
        if self.layout not in LAYOUTS:
            raise UserError(f"layout: {self.layout!r} is unknown; known: {', '.join(LAYOUTS)}")
        if not self.supernet and not self.names:
            raise UserError("nothing to push: neither the supernet nor any subnets")

    @property
    def names(self) -> list[str]:
        """Sizes that are uploaded by themselves."""
        return [*dict.fromkeys([*self.subnets, *self.exports])]

    @property
    def cut_here(self) -> set[str]:
        """Those of them that are not exported yet."""
        return set(self.subnets) - set(self.exports)


def check_repo_id(option: str, name: str) -> None:
    """Raise UserError, naming the option, for what cannot be a name on the Hub."""
    try:
        validate_repo_id(name)
    except ValueError as error:  # the client's own HFValidationError
        raise UserError(f"{option}: {error}") from error
