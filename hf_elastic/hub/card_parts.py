"""What a model card is put together from: measurements that are read from files, tables of them, and Python that loads a size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from ..core.layout import Cut
from ..core.modeling_elastic import ElasticPreTrainedModel
from ..core.space import Subnet, is_choice, names_text
from ..search import Frontier
from ..search.objectives import COUNTS, OBJECTIVES
from ..search.picture import value_text
from ..utils.files import reading

COSTS = (*COUNTS, *(objective.name for objective in OBJECTIVES.values() if objective.unit))
# What Trainer adds to the metrics of an evaluation; it is of the machine, not of the model.
BOOKKEEPING = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
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
class Measurement:
    """One value of one size.

    Attributes:
        cut: the size.
        metric: what was measured, such as "accuracy" or "latency_ms".
        value: it.
        text: it for people, with its interval if one is known.
        dataset: what it was measured on, if the file says so.
        setting: of a value for comparison, how that other model was made; None of this one.
    """

    cut: Cut
    metric: str
    value: float
    text: str
    dataset: str | None = None
    setting: str | None = None

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the model is, rather than what it costs."""
        return self.metric not in COSTS

    @property
    def column(self) -> str:
        """Heading of a table."""
        metric = self.metric if self.dataset is None else f"{self.dataset}: {self.metric}"
        return metric if self.setting is None else f"{metric}, {self.setting}"


# --- read from files --------------------------------------------------------------------------------------------------


def from_metrics(model: ElasticPreTrainedModel, metrics: Mapping[str, float]) -> list[Measurement]:
    """What `hf-elastic train` wrote to `metrics.json`, or `ElasticTrainer.evaluate` returned.

    Args:
        model: the elastic model.
        metrics: `eval_METRIC` of the full size, and `eval_SIZE_METRIC`; anything else is left out.
    """
    prefixes = {f"eval_{name}_": name for name in ("smallest", *model.config.subnets)} | {"eval_": None}
    found = []
    for key, value in metrics.items():
        prefix = next((prefix for prefix in sorted(prefixes, key=len, reverse=True) if key.startswith(prefix)), None)
        if prefix is None or key.endswith(BOOKKEEPING) or not isinstance(value, int | float):
            continue
        found.append(Measurement(model.resolve(prefixes[prefix]), key.removeprefix(prefix), value, f"{value:.4g}"))
    return found


def from_frontier(model: ElasticPreTrainedModel, frontier: Frontier) -> list[Measurement]:
    """The values of every evaluated size, with intervals; parameters and FLOPs are left out, being counted anyway.

    Raises:
        UserError: the frontier is of another model, which has other sizes.
    """
    found = []
    for point in frontier.evaluated:
        try:
            cut = model.resolve(point.subnet)
        except ValueError as error:
            raise UserError(f"the frontier is of another model: {error}") from error
        for metric, value in point.values.items():
            if metric not in COUNTS:
                found.append(Measurement(cut, metric, value, value_text(point, metric)))
    return found


def from_evaluation(model: ElasticPreTrainedModel, path: str | Path) -> list[Measurement]:
    """What `hf-elastic evaluate` wrote: a score with its standard error for each size and task.

    Raises:
        UserError: there is no such file, it holds no evaluation, or a size of another model.
    """
    found = []
    with reading(path, "results", "holds no evaluation of this model"):
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        for name, size in data["sizes"].items():
            cut = model.resolve(size["subnet"] if isinstance(size["subnet"], Mapping) else name)
            for task, score in size["scores"].items():
                text = f"{score['value']:.4g}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.2g}")
                found.append(Measurement(cut, data["tasks"][task]["metric"], score["value"], text, task))
    return found


def parity_records(folder: Path) -> dict[str, dict]:
    """Folder ("" for the checkpoint itself, "onnx", ...) -> what its `parity.json` says."""
    paths = {path.parent.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("parity.json"))}
    return {"" if name == "." else name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}


# --- tables, in Markdown ----------------------------------------------------------------------------------------------


def columns(measurements: Iterable[Measurement]) -> list[str]:
    """Headings of a table, quality first."""
    return list(dict.fromkeys(one.column for one in sorted(measurements, key=lambda one: not one.is_quality)))


def cell(measurements: Sequence[Measurement], cut: Cut, column: str) -> str:
    """What a table says of a size; the last file that was read wins."""
    return next((one.text for one in reversed(measurements) if one.cut == cut and one.column == column), "")


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells hold no line breaks or bars; columns that are empty throughout are left out."""
    rows = [list(row) for row in rows]
    kept = [index for index, heading in enumerate(headings) if any(row[index] for row in rows)]
    lines = [[headings[index] for index in kept], ["---"] * len(kept), *([row[index] for index in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(str(part).replace('|', '/') for part in line)} |" for line in lines)


def size_table(
    model: ElasticPreTrainedModel,
    names: Sequence[str],
    measurements: Sequence[Measurement],
    sequence_length: int,
    links: Mapping[str, str] | None = None,
) -> str:
    """Sizes with what they keep, their counts, and what was measured of them.

    Args:
        model: whose sizes they are.
        names: the sizes, a row each.
        measurements: a column for each metric.
        sequence_length: of the counted FLOPs (tokens).
        links: name -> where that size is by itself, in Markdown.
    """
    found = columns(measurements)
    rows = [
        [
            f"`{name}`",
            kept_text(model.subnet(name)),
            counted(model.num_parameters_of(name), model.num_parameters_of(None)),
            counted(*(model.flops_of(size, sequence_length=sequence_length) for size in (name, None))),
            model.portability_of(name),
            (links or {}).get(name, ""),
            *(cell(measurements, model.resolve(name), column) for column in found),
        ]
        for name in names
    ]
    return markdown_table(["size", "what it keeps", "parameters", "FLOPs", "kind", "by itself", *found], rows)


def frontier_table(model: ElasticPreTrainedModel, frontier: Frontier) -> str:
    """The points of a frontier."""
    names = [objective.name for objective in frontier.objectives]
    rows = [[kept_text(model.subnet(point.subnet)), *(value_text(point, name) for name in names)] for point in frontier.points]
    return markdown_table(["what it keeps", *(name.replace("_", " ") for name in names)], rows)


def parity_table(records: Mapping[str, Mapping]) -> str | None:
    """What each `parity.json` found; None without any."""
    rows = []
    for folder, record in records.items():
        limits = ", ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in record.get("tolerance", {}).items())
        rows.append(
            [
                f"`{folder}/`" if folder else "the checkpoint",
                str(record.get("format", "")),
                f"{record['max_abs_difference']:.2g}" if "max_abs_difference" in record else "",
                f"{record['argmax_agreement']:.1%} of {record.get('rows', '?')}" if "argmax_agreement" in record else "",
                limits,
            ]
        )
    return markdown_table(["what", "format", "largest difference", "same decision", "allowed"], rows) if rows else None


def machine_text(frontier: Frontier) -> str | None:
    """The machine and the settings that a frontier was measured with; None where the file does not say."""
    facts = [*frontier.facts.get("machine", {}).items(), *frontier.facts.get("settings", {}).items()]
    texts = [(key.replace("_", " "), value if isinstance(value, str) else json.dumps(value)) for key, value in facts if value]
    lines = ["Latency is a median, in brackets its 95% interval.", "", *(f"- {key}: {text}" for key, text in texts)]
    return "\n".join(lines) if facts else None


def kept_text(subnet: Subnet) -> str:
    """A subnet in words: "3 layers, 12 num_attention_heads, 768 intermediate_size"; of sizes per layer the range, of names how
    many layers have each."""
    texts = []
    for axis, value in subnet.items():
        if is_choice(axis):
            texts.append(f"{axis} {names_text(value)}")
            continue
        low, high = (min(value), max(value)) if isinstance(value, tuple) else (value, value)
        kept = f"{axis} {low}" if low == high else f"{axis} {low} to {high}"
        texts.append(f"{len(value)} layers" if axis == "layers" else kept)
    return ", ".join(texts)


def counted(value: int, full: int) -> str:
    """A count with its unit, and as a share of the full size."""
    units = ((9, " G"), (6, " M"), (3, " k"), (0, ""))
    number = next(f"{value / 10**power:.3g}{unit}" for power, unit in units if value >= 10**power or not power)
    return number if value == full else f"{number} ({value / full:.0%})"


# --- how to load --------------------------------------------------------------------------------------------------------------


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


def is_ours(model: ElasticPreTrainedModel) -> bool:
    """Whether the architecture itself comes with hf_elastic: an elastic checkpoint carries the code that makes a model elastic,
    and not that of the model, which a standard one carries."""
    return type(model.base).__module__.startswith("hf_elastic.")


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
    folder = "/".join(part for part in (place.subfolder, export) if part is not None)
    if export is None:
        imports = []
        if is_ours(model) or portability == "elastic":
            carried = is_ours(model) != (portability == "elastic")
            imports = ["import hf_elastic" + carried * "  # or pass trust_remote_code=True"]
        lines = [*imports, f"from transformers import {auto_class}, AutoTokenizer", ""]
        lines.append(f"model = {_call(auto_class, place.repo_id, {**options, 'subnet': subnet})}")
    elif format == "tensorrt":
        revision = "" if place.revision is None else f', revision="{place.revision}"'
        lines = [TENSORRT.format(repo_id=place.repo_id, revision=revision, folder=folder)]
    else:
        package, prefix, slash = CLASSES[format.partition("-")[0]]
        runtime_class = prefix + (auto_class.removeprefix("AutoModel") or "ForFeatureExtraction")
        lines = [f"from {package} import {runtime_class}", "from transformers import AutoTokenizer", ""]
        lines.append(f"model = {_call(runtime_class, place.repo_id, {**options, 'subfolder': folder + slash})}")
    return "\n".join([*lines, f"tokenizer = {_call('AutoTokenizer', place.repo_id, options)}"])


def _call(name: str, repo_id: str, options: Mapping[str, str | None]) -> str:
    given = "".join(f', {key}="{value}"' for key, value in options.items() if value is not None)
    return f'{name}.from_pretrained("{repo_id}"{given})'
