"""The recorded trainings that quality proxies are scored on: published tables, read and checked."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_elastic.search.proxies.shapes import Shapes, gpt2_shapes, transfo_xl_shapes

LANGUAGE_MODELS = {
    "random_GPT2_wt103": gpt2_shapes,
    "pareto_GPT2_lm1b_corei7": gpt2_shapes,
    "pareto_GPT2_lm1b_titanxp": gpt2_shapes,
    "random_TransXL_lm1b": transfo_xl_shapes,
    "pareto_TransXL_lm1b_corei7": transfo_xl_shapes,
    "pareto_TransXL_lm1b_titanxp": transfo_xl_shapes,
}
ENCODERS = "BERT_benchmark"
EMBEDDING_WIDTH = 128  # of every encoder: ELECTRA's default
# Columns of the encoders' table that are no proxies.
NOT_PROXIES = ("ID", "GLUE Score")


@dataclass(frozen=True)
class Table:
    """N models that were trained alike.

    Attributes:
        name: of the file.
        quality: larger is better, `[N]`.
        unit: what the quality is.
        shapes: of the models.
        recorded: proxies that the table itself has, by name, larger for the better model, `[N]` each.
        decoder_parameters: as the table counts them, `[N]`; None if it does not.
    """

    name: str
    quality: np.ndarray
    unit: str
    shapes: Shapes
    recorded: dict[str, np.ndarray]
    decoder_parameters: np.ndarray | None = None


def read_tables(data_dir: Path) -> list[Table]:
    """Every table of `nas/lts_archai` and `nas/training_free_nas` in `data_dir`.

    Raises:
        FileNotFoundError: a file is missing.
    """
    folder = data_dir / "nas"
    return [*(_language_models(folder / "lts_archai" / f"{name}.csv") for name in LANGUAGE_MODELS), _encoders(folder)]


def _rows(path: Path) -> list[dict[str, str]]:
    with _existing(path).open(newline="") as file:
        return list(csv.DictReader(file))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; --data-dir is the folder that has nas/lts_archai and nas/training_free_nas")
    return path


def _column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _per_layer(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """A column of lists "2 4 8" as `[N, L]`, 0 behind the last layer of each model."""
    depth = _column(rows, "n_layer").astype(int)
    result = np.zeros((len(rows), depth.max()), dtype=np.int64)
    for i, row in enumerate(rows):
        result[i, : depth[i]] = [int(item) for item in row[name].split()]
    return result


def _language_models(path: Path) -> Table:
    """Decoders, trained from scratch, with their perplexity on held-out text."""
    rows = _rows(path)
    d_inner, n_head = (_per_layer(rows, name) for name in ("d_inner", "n_head"))
    d_model, d_embed = (_column(rows, name).astype(int) for name in ("d_model", "d_embed"))
    d_embed = np.where(d_embed < 0, d_model, d_embed)  # -1: as wide as the model
    shapes = LANGUAGE_MODELS[path.stem](d_model, d_inner, n_head, d_embed)
    total = {"total parameters": _column(rows, "params_total")}
    decoder = _column(rows, "params_decoder")
    return Table(path.stem, -_column(rows, "valid_ppl"), "valid_ppl", shapes, total, decoder)


def _encoders(folder: Path) -> Table:
    """Encoders of the FlexiBERT space, pretrained and fine-tuned alike, with their GLUE score."""
    path = folder / "training_free_nas" / "BERT_results_activation.csv"
    rows = _rows(path)
    described = _existing(path.with_name(f"{ENCODERS}.json.gz"))
    models = {model["id"]: model for model in json.loads(gzip.decompress(described.read_bytes()))}
    shapes = flexibert_shapes([models[int(row["ID"])]["hparams"]["model_hparam_overrides"] for row in rows])
    recorded = {name: _column(rows, name) for name in rows[0] if name not in NOT_PROXIES}
    return Table(ENCODERS, _column(rows, "GLUE Score"), "GLUE", shapes, recorded)


def flexibert_shapes(models: list[dict]) -> Shapes:
    """Shapes of encoders of the FlexiBERT space.

    A layer mixes tokens by attention (SA; WMA multiplies queries once more), by a fixed transform (LT) or half by attention and
    half by convolution (DSC), which counts as its attention; then come `num_feed_forward` - 1 further matrices between the two of
    its feed-forward.

    Args:
        models: `{"hidden_size": 256, "nas_config": {"encoder_layers": [...]}}`, one per model.
    """
    depth = max(len(model["nas_config"]["encoder_layers"]) for model in models)
    columns = np.zeros((4, len(models), depth), dtype=np.int64)
    for i, model in enumerate(models):
        d = model["hidden_size"]
        for j, layer in enumerate(model["nas_config"]["encoder_layers"]):
            f, count = layer["feed_forward_dimension"], layer["num_feed_forward"]
            ffn = d * f + f + (count - 1) * (f * f + f) + f * d + d
            norms = 2 * d if layer["operation_type"] == "LT" else 4 * d
            columns[:, i, j] = _mixing(layer, d), ffn, norms, layer["num_operation_heads"]
    width = np.array([min(model["hidden_size"], EMBEDDING_WIDTH) for model in models])
    return Shapes(*columns, final=np.zeros(len(models), dtype=np.int64), width=width)


def _mixing(layer: dict, d: int) -> int:
    """Parameters of what mixes the tokens of a layer, its output projection included."""
    kind, heads, detail = layer["operation_type"], layer["num_operation_heads"], layer["operation_parameter"]
    if kind == "LT":
        return d * d + d
    if kind == "SA":
        return 4 * (d * d + d) + (d * d if detail == "WMA" else 0)
    attending = max(heads // 2, 1)
    width = attending * (d // heads)
    attention = 3 * (d * width + width)
    convolution = d * detail + d * width + width + (width + 1) * attending * detail + d * width + width
    return attention + convolution + d * d + d
