"""What the vectors of documents depend on, written down so that another model's are never mixed with them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..core.errors import UserError
from ..measure.digests import INCIDENTAL
from .heads import SizeHeads, no_documents
from .towers import Towers
from .transformer import ElasticTransformer

# The prompts that `encode_document` looks for, in its order.
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
# Settings of a config or a module that change no vector of a document; nor do dropout rates.
WITHOUT_EFFECT = (
    *INCIDENTAL, "id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states",
    "chunk_size_feed_forward", "gradient_checkpointing", "initializer_range", "tokenizer_class", "unpad_inputs", "query_length",
    "query_expansion",
)  # fmt: skip
DROPOUT = ("dropout", "pdrop", "drop_rate")
UNLIMITED = 10**9  # tokens; tokenizers without a limit have a larger number
SHOWN = 4  # differences in one message


@dataclass(frozen=True)
class Fingerprint:
    """Which tower encoded documents, and how.

    Attributes:
        name: what the model was loaded as; for messages, not compared.
        parts: everything that is compared, by a readable name; hashes of what is long.
    """

    name: str
    parts: dict[str, object]

    @property
    def digest(self) -> str:
        """One sha256 of all parts, as 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def check(self, other: Fingerprint, what: str) -> None:
        """Refuse another tower.

        Args:
            other: of the model that was given.
            what: what belongs to the tower of this fingerprint, such as an index.

        Raises:
            UserError: names both models, what differs and both values.
        """
        names = [name for name in {**self.parts, **other.parts} if self.parts.get(name) != other.parts.get(name)]
        if not names:
            return
        shown = [f"{name} {_short(self.parts.get(name))}, not {_short(other.parts.get(name))}" for name in names[:SHOWN]]
        more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UserError(
            f"{what} belongs to the document tower of {self.name}, and that of {other.name} is another one: "
            f"{'; '.join(shown)}{more}"
        )


def fingerprint_of(model: SentenceTransformer) -> Fingerprint:
    """The fingerprint of the tower with which a model encodes documents.

    That is the route of a Router that `task="document"` takes, and the modules after it: the same tower has the same fingerprint
    with and without a Router. Weights count as their float32 bytes: a half-precision tower is the same one when it is loaded in
    float32, and one that was rounded to half precision is another.

    Raises:
        UserError: the tower's weights cannot be read (a graph), or it has no known dimension.
    """
    modules = document_modules(model)
    parts: dict[str, object] = {
        "dimension": dimension_of(model),
        "normalised": isinstance(modules[-1], Normalize),
        "prompt": document_prompt(model),
        "max_seq_length": token_limit(model),
    }
    for index, module in enumerate(modules):
        parts |= {f"{index}.{type(module).__name__}.{name}": value for name, value in _settings(module).items()}
    parts["tokenizer"] = _tokenizer_digest(modules[0])
    parts["weights"] = _weights_digest(modules)
    first = modules[0]
    name = first.model.name_or_path if isinstance(first, Transformer) else ""
    return Fingerprint(name or type(first).__name__, json.loads(json.dumps(parts, default=str)))


def document_modules(model: SentenceTransformer) -> list[nn.Module]:
    """The modules that a document goes through, in order.

    Raises:
        UserError: a Router has no route for documents, the model encodes queries only, or a module runs a graph, whose weights
            cannot be compared.
    """
    found: list[nn.Module] = []
    for module in model:
        if isinstance(module, SizeHeads):
            raise no_documents()
        if isinstance(module, Towers):
            found += module.document
            continue
        if isinstance(module, ElasticTransformer):  # the size that runs, which a stock model of that size equals
            module = module.sized(module.model.config.subnet)
        if not isinstance(module, Router):
            found.append(module)
            continue
        try:
            route = module._resolve_route(task="document", modality="text")
        except ValueError as error:
            raise UserError(f"the model has no tower for documents: {error}") from error
        found += module.sub_modules[route]
    for module in found:
        if isinstance(module, Transformer) and module.backend != "torch":
            raise UserError(f"the tower for documents runs in {module.backend}; load it with the backend torch")
    return found


def document_prompt(model: SentenceTransformer) -> str:
    """What `encode_document` writes before each text; may be empty."""
    name = next((name for name in DOCUMENT_PROMPTS if name in model.prompts), model.default_prompt_name)
    return (model.prompts[name] if name is not None else "") or ""


def dimension_of(model: SentenceTransformer) -> int:
    """How many numbers a document's vector has.

    Raises:
        UserError: no module says it.
    """
    for module in reversed(document_modules(model)):
        if (method := getattr(module, "get_embedding_dimension", None)) is not None and (dimension := method()) is not None:
            return min(dimension, model.truncate_dim or dimension)
    raise UserError("no module of the tower for documents says how many dimensions its vectors have")


def token_limit(model: SentenceTransformer) -> int | None:
    """The most tokens of a document that are read, special ones included; None without a limit."""
    first = document_modules(model)[0]
    own = first.document_length if isinstance(first, Transformer) else None
    limits = [limit for limit in (own, getattr(first, "max_seq_length", None)) if limit is not None and limit < UNLIMITED]
    return min(limits, default=None)


def _settings(module: nn.Module) -> dict[str, object]:
    """The settings that change a document's vector; those that are not set are left out, as libraries write them or do not."""
    values: dict[str, object] = {}
    if isinstance(module, Transformer):
        values |= {"architecture": type(module.model).__name__, **module.config.to_dict()}
    values |= module.get_config_dict() if callable(getattr(module, "get_config_dict", None)) else {"repr": repr(module)}
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and name not in WITHOUT_EFFECT and not any(word in name for word in DROPOUT)
    }


def _tokenizer_digest(module: nn.Module) -> str:
    tokenizer = getattr(module, "tokenizer", None)
    if tokenizer is None:
        return "none"
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        facts = json.loads(backend.to_str())
        facts = {name: value for name, value in facts.items() if name not in ("truncation", "padding")}  # of the last call
        tokens = backend.get_vocab_size()
    else:
        facts, tokens = _slow_facts(tokenizer), len(tokenizer)
    sides = [getattr(tokenizer, name, None) for name in ("truncation_side", "padding_side")]
    digest = hashlib.sha256(json.dumps([facts, sides], sort_keys=True, default=str).encode())
    return f"{type(tokenizer).__name__} of {tokens:,} tokens, sha256 {digest.hexdigest()}"


def _slow_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """What a tokenizer without a `tokenizer.json` depends on: the files of its vocabulary, and its special tokens."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}
    return {"files": files, "vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}


def _weights_digest(modules: Iterable[nn.Module]) -> str:
    digest, count = hashlib.sha256(), 0
    for index, module in enumerate(modules):
        for name, weight in sorted(module.state_dict().items()):
            weight = weight.detach().cpu()
            weight = weight.float() if weight.is_floating_point() else weight
            digest.update(f"{index}.{name} {tuple(weight.shape)}".encode())
            digest.update(weight.contiguous().numpy().reshape(-1).view("uint8"))
            count += weight.numel()
    return f"{count:,} numbers, sha256 {digest.hexdigest()}"


def _short(value: object) -> str:
    """A value in a message: 12 digits of a hash, the beginning of what is long."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) and "sha256 " in value else repr(value)
    before, mark, digits = text.partition("sha256 ")
    text = before + mark + digits[:12] if mark else text
    return text if len(text) <= 80 else f"{text[:77]}..."
