"""Where a model is on the Hub, and the lines of Python that load it from there."""

from __future__ import annotations

from dataclasses import dataclass

from ..modeling_elastic import ElasticPreTrainedModel


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


def loading_code(
    model: ElasticPreTrainedModel,
    place: Place,
    *,
    subnet: str | None = None,
    portability: str = "elastic",
    onnx: str | None = None,
) -> str:
    """Python that loads a model and its tokenizer.

    Args:
        model: whose head it has.
        place: where it is.
        subnet: which size of a supernet.
        portability: whether it takes hf_elastic ("elastic").
        onnx: the folder of an ONNX export beside the checkpoint: then it is loaded with Optimum.
    """
    auto_class = type(model).base_auto_class.__name__
    options = {"revision": place.revision, "subfolder": place.subfolder}
    tokenizer = _call("AutoTokenizer", place.repo_id, options)
    if onnx is not None:
        suffix = auto_class.removeprefix("AutoModel") or "ForFeatureExtraction"
        runtime_class = f"ORTModel{suffix}"
        # Optimum takes a subfolder for the beginning of a path: without the slash, "onnx" loads "onnx-int8", which sorts first.
        folder = "/".join(part for part in (place.subfolder, onnx, "") if part is not None)
        lines = [f"from optimum.onnxruntime import {runtime_class}", "from transformers import AutoTokenizer", ""]
        lines.append(f"model = {_call(runtime_class, place.repo_id, {**options, 'subfolder': folder})}")
    else:
        imports = ["import hf_elastic  # or pass trust_remote_code=True"] if portability == "elastic" else []
        lines = [*imports, f"from transformers import {auto_class}, AutoTokenizer", ""]
        lines.append(f"model = {_call(auto_class, place.repo_id, {**options, 'subnet': subnet})}")
    return "\n".join([*lines, f"tokenizer = {tokenizer}"])


def _call(name: str, repo_id: str, options: dict[str, str | None]) -> str:
    given = "".join(f', {key}="{value}"' for key, value in options.items() if value is not None)
    return f'{name}.from_pretrained("{repo_id}"{given})'
