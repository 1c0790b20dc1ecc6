"""What sentence-transformers keeps beside a checkpoint, for the checkpoints that are made from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoModel, PretrainedConfig

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticPreTrainedModel

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
# The transformer's own files; each other module has a folder, whose name begins with its place.
FILES = (MODULES, SETTINGS, "sentence_*_config.json")
FOLDERS = "[0-9]*_*/*"
WEIGHTS = (".safetensors", ".bin")
DIMENSIONS = ("word_embedding_dimension", "embedding_dimension")  # of a pooling module: the old name and the new one


def copy_sentence_modules(model: ElasticPreTrainedModel, folder: Path, config: PretrainedConfig | None = None) -> None:
    """Copy modules.json, the pooling and the other modules, and the prompts of the checkpoint that a model was read from.

    Nothing is done for a model with a head, and for one that does not come from sentence-transformers.

    Args:
        model: the supernet.
        folder: where it, or a size of it, was written.
        config: the stock config of what was written there; default: the supernet's.

    Raises:
        UserError: a module has weights for hidden channels, and the model may drop or reorder those.
    """
    source = _source(model)
    if source is None:
        return
    full = model.base.config
    paths = [one["path"] for one in json.loads((source / MODULES).read_text(encoding="utf-8"))]
    for path in filter(None, paths):
        has_weights = any(file.suffix in WEIGHTS for file in (source / path).glob("*"))
        if has_weights and len(model.space.get("hidden_size", ())) > 1:
            raise UserError(
                f"hidden_size: the module {path} of sentence-transformers has weights for the hidden channels of the full size; "
                "leave hidden_size out of the space"
            )
        if any((source / path).glob("*")):  # some have nothing to save, and an empty folder
            shutil.copytree(source / path, folder / path, dirs_exist_ok=True)
        if (folder / path / "config.json").is_file():
            _set_dimension(folder / path / "config.json", full.hidden_size, (config or full).hidden_size)
    for pattern in FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _source(model: ElasticPreTrainedModel) -> Path | None:
    """The local folder of the checkpoint that a model was read from, if it is one of sentence-transformers."""
    name = model.name_or_path or model.base.name_or_path
    if type(model).base_auto_class is not AutoModel or not name:
        return None
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=[*FILES, FOLDERS]))
        except (OSError, HfHubHTTPError, HFValidationError):  # not on the Hub, or out of reach
            return None
    return folder if (folder / MODULES).is_file() else None


def _set_dimension(path: Path, full: int, hidden_size: int) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in DIMENSIONS:
        if values.get(name) == full:
            values[name] = hidden_size
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
