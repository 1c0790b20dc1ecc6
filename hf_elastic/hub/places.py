"""Where a model is on the Hub, and the lines of Python that load it from there."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.modeling_elastic import ElasticPreTrainedModel

# Format of an export, up to its first hyphen -> the package with classes for it, what their names begin with, and what they want
# behind a subfolder: ORTModel takes one for the beginning of a path, and without a slash loads "onnx-int8" for "onnx".
CLASSES = {"onnx": ("optimum.onnxruntime", "ORTModel", "/"), "openvino": ("optimum.intel", "OVModel", "")}
TENSORRT = """\
import json
import onnxruntime  # built with TensorRT
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

folder = snapshot_download("{repo_id}"{revision}, allow_patterns="{folder}/*") + "/{folder}"
settings = json.load(open(folder + "/tensorrt.json"))["onnxruntime"]
model = onnxruntime.InferenceSession(folder + "/model.onnx", providers=[(settings["provider"], settings["options"])])"""


@dataclass(frozen=True)
class Place:
    """A checkpoint on the Hub: a repository, one of its branches, a folder in it."""

    repo_id: str
    revision: str | None = None
    subfolder: str | None = None

    @property
    def name(self) -> str:
        """For a heading."""
        return " ".join(part for part in (self.repo_id.rpartition("/")[2], self.revision or self.subfolder) if part)

    @property
    def link(self) -> str:
        """Markdown."""
        tree = f"/tree/{self.revision or 'main'}/{self.subfolder or ''}".rstrip("/") if self.revision or self.subfolder else ""
        return f"[{self.name}](https://huggingface.co/{self.repo_id}{tree})"


def has_loading_code(format: str) -> bool:
    """Whether `loading_code` knows how an export of this format is loaded."""
    return format == "tensorrt" or format.partition("-")[0] in CLASSES


def loading_code(
    model: ElasticPreTrainedModel,
    place: Place,
    *,
    subnet: str | None = None,
    portability: str = "elastic",
    export: str | None = None,
    format: str = "onnx",
) -> str:
    """Python that loads a model and its tokenizer.

    Args:
        model: whose head it has.
        place: where it is.
        subnet: which size of a supernet.
        portability: whether it takes hf_elastic ("elastic").
        export: the folder of an export beside the checkpoint.
        format: of that export, one that `has_loading_code`.
    """
    auto_class = type(model).base_auto_class.__name__
    options = {"revision": place.revision, "subfolder": place.subfolder}
    tokenizer = _call("AutoTokenizer", place.repo_id, options)
    if export is not None and format == "tensorrt":
        folder = "/".join(part for part in (place.subfolder, export) if part is not None)
        revision = "" if place.revision is None else f', revision="{place.revision}"'
        lines = [TENSORRT.format(repo_id=place.repo_id, revision=revision, folder=folder)]
    elif export is not None:
        package, prefix, slash = CLASSES[format.partition("-")[0]]
        runtime_class = prefix + (auto_class.removeprefix("AutoModel") or "ForFeatureExtraction")
        folder = "/".join(part for part in (place.subfolder, export) if part is not None) + slash
        lines = [f"from {package} import {runtime_class}", "from transformers import AutoTokenizer", ""]
        lines.append(f"model = {_call(runtime_class, place.repo_id, {**options, 'subfolder': folder})}")
    else:
        imports = ["import hf_elastic  # or pass trust_remote_code=True"] if portability == "elastic" else []
        lines = [*imports, f"from transformers import {auto_class}, AutoTokenizer", ""]
        lines.append(f"model = {_call(auto_class, place.repo_id, {**options, 'subnet': subnet})}")
    return "\n".join([*lines, f"tokenizer = {tokenizer}"])


def _call(name: str, repo_id: str, options: dict[str, str | None]) -> str:
    given = "".join(f', {key}="{value}"' for key, value in options.items() if value is not None)
    return f'{name}.from_pretrained("{repo_id}"{given})'
