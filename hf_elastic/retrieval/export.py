"""`export_denser` and `export_ranker`: one size as plain sentence-transformers reads it, without hf_elastic."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer

from ..core.errors import UserError
from ..core.modeling_elastic import ElasticModel
from ..export.inputs import TEXTS
from ..export.parity import Tolerance, check_parity, compare, write_parity
from ..export.subnet import check_standard, export_subnet
from ..utils.folders import check_output, filled
from ..utils.sentence_transformers import SETTINGS
from .denser import ElasticDenser
from .elastic import ElasticMixin, settings_of
from .graph import TASK
from .heads import stock_modules
from .ranker import ElasticRanker
from .transformer import with_model

TOLERANCE = Tolerance(max_relative_difference=1e-5)


def export_denser(
    model: ElasticDenser,
    subnet: str | Mapping | None,
    output_dir: str | Path,
    formats: Sequence[str] = (),
    *,
    texts: Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a size of a denser as a stock `SentenceTransformer`.

    In the asymmetric mode it is a `Router` with a small tower for queries (`encode_query`) and the full one for documents
    (`encode_document`, and `encode`), the linear head as `Dense`; in the symmetric mode one tower of that size; in the query mode
    one for queries, the head as `Dense`: plain sentence-transformers does not stop it from encoding documents. `formats` are
    graphs of the tower for queries, each in a folder of its name, for `load_graph`.

    Args:
        model: the denser.
        subnet: a name, a size, or None for the full one.
        output_dir: an empty or new folder, unless `overwrite`.
        formats: some of those of `export_subnet`, such as "onnx", "onnx-int8" or "openvino".
        texts: what the file is compared on with the model that it came from; default: a few of our own.
        overwrite: replace what is in `output_dir`.

    Returns:
        What `parity.json` says; each format has one of its own.

    Raises:
        UserError: no such size or format, a size that is not standard (the message names the nearest that is), an asymmetric
            model in half precision, or a folder that is not empty.
        ParityError: what was written gives other vectors than the model. Nothing is left then.
    """
    name = model.name_of(subnet)
    texts = list(texts or TEXTS)
    if model.mode == "asymmetric" and name is not None and model.dtype.itemsize < 4:  # loaded, its Dense would be float32
        raise UserError(f"model: {model.dtype}; a stock Router with a head cannot be loaded in it; export model.float()")

    def vectors(one: SentenceTransformer, **size) -> np.ndarray:
        queries = one.encode_query(texts, **size)
        if model.mode == "query":
            return queries
        return np.concatenate([queries, one.encode_document(texts, **({} if model.mode == "asymmetric" else size))])

    def write(folder: Path) -> None:
        _stock_denser(model, name).save_pretrained(str(folder))
        if formats:
            _write_graphs(model, name, folder, formats, texts)

    return _export(model, name, output_dir, write, vectors, SentenceTransformer, texts, overwrite)


def export_ranker(
    model: ElasticRanker,
    subnet: str | Mapping | None,
    output_dir: str | Path,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a size of a ranker as a stock `CrossEncoder`.

    Args:
        model: the ranker.
        subnet: a name, a size, or None for the full one.
        output_dir: an empty or new folder, unless `overwrite`.
        pairs: (query, document) that the file is compared on with the model that it came from; default: a few of our own.
        overwrite: replace what is in `output_dir`.

    Returns:
        What `parity.json` says.

    Raises:
        UserError: no such size, one that is not standard (the message names the nearest that is), or a folder that is not empty.
        ParityError: what was written gives other scores than the model. Nothing is left then.
    """
    name = model.name_of(subnet)
    pairs = [list(pair) for pair in (pairs or zip(TEXTS, reversed(TEXTS)))]

    def scores(one: CrossEncoder, **size) -> np.ndarray:
        return one.predict(pairs, **size)

    def write(folder: Path) -> None:
        modules = _extracted(model, name, list(model))
        CrossEncoder(modules=modules, device=str(model.device), **settings_of(model)).save_pretrained(str(folder))

    return _export(model, name, output_dir, write, scores, CrossEncoder, pairs, overwrite)


def _export(
    model: ElasticMixin,
    name: str | Mapping | None,
    output_dir: str | Path,
    write: Callable[[Path], None],
    compute: Callable[..., np.ndarray],
    kind: type,
    inputs: list,
    overwrite: bool,
) -> dict[str, Any]:
    check_standard(model.elastic, name)
    where = {"overwrite": overwrite, "inputs": {"the folder of the model": model.elastic.name_or_path}}
    check_output(output_dir, **where)
    expected = compute(model, subnet=name)
    with filled(output_dir, **where) as staging:
        write(staging)
        comparison = compare(expected, compute(kind(str(staging), device=str(model.device))))
        check_parity(comparison, TOLERANCE)
        return write_parity(staging / "parity.json", "sentence-transformers", comparison, inputs, TOLERANCE)


def _stock_denser(model: ElasticDenser, name) -> SentenceTransformer:
    if model.mode != "asymmetric":
        modules = _extracted(model, name, list(model))
    elif name is None:
        modules = list(model[0].document)
    else:
        modules = [Router.for_query_document(_extracted(model, name, list(model[0].sizes)), list(model[0].document))]
    return SentenceTransformer(modules=modules, device=str(model.device), **settings_of(model))


def _write_graphs(model: ElasticDenser, name, folder: Path, formats: Sequence[str], texts: list[str]) -> None:
    """The graphs of the tower for queries, each with what sentence-transformers needs to encode with it."""
    tower = model.tower("query", name)
    elastic, size = model.elastic, name
    if name is None and model.mode == "asymmetric":
        elastic, size = ElasticModel.from_base(model[0].document[0].model, importance="none"), None
    with tempfile.TemporaryDirectory() as scratch:
        export_subnet(elastic, size, f"{scratch}/graphs", formats, tokenizer=tower.tokenizer, texts=texts)
        tower.save_pretrained(f"{scratch}/tower", create_model_card=False)
        Path(scratch, "tower", "model.safetensors").unlink()
        if model.mode != "symmetric":
            path = Path(scratch, "tower", SETTINGS)
            path.write_text(
                json.dumps({**json.loads(path.read_text(encoding="utf-8")), TASK: "query"}, indent=2), encoding="utf-8"
            )
        for one in formats:
            shutil.copytree(Path(scratch, "tower"), folder / one)
            for file in Path(scratch, "graphs", one).iterdir():
                if file.is_file() and not (folder / one / file.name).exists():
                    shutil.copyfile(file, folder / one / file.name)


def _extracted(model: ElasticMixin, name, modules: Sequence) -> list:
    """The modules with a stock model of a size in the first, and stock ones for what depends on its width."""
    first, *rest = modules
    return stock_modules(with_model(first, model.elastic.extract(name), Transformer), rest, name)
