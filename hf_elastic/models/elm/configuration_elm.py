"""`ElmConfig`: transformers' field names, with a block type, heads and a feed-forward width for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PretrainedConfig

from ...core.errors import UserError
from ...core.following import CodeFollows
from .blocks import BLOCKS, width_of


class LayerSize(NamedTuple):
    """What one layer is: the blocks that it holds, of which it runs the first; its heads and its feed-forward width."""

    blocks: tuple[str, ...]
    num_attention_heads: int
    intermediate_size: int


class ElmConfig(CodeFollows, PretrainedConfig):
    """Configuration of an ELM (arXiv 2510.27037).

    The block types, the widths and the trigram embedding follow the authors' related public code; the paper itself could not be
    read here.

    Args:
        vocab_size: number of tokens.
        embedding_size: width of the word embeddings.
        hidden_size: width of the hidden states.
        num_hidden_layers: number of layers.
        block_type: `"bert"` or `"mobilebert"` for every layer, or a list with one entry per layer. An entry that is itself a list
            names the blocks that a layer of a supernet holds, of which it runs the first; a list of one such list is that of
            every layer: `[["bert", "mobilebert"]]`.
        num_attention_heads: heads of every layer, or a list. They partition the width of attention: the hidden size in a bert
            block, a quarter of it in a mobilebert block.
        intermediate_size: width of the feed-forward network of every layer, or a list.
        hidden_dropout_prob: probability for embeddings and outputs of blocks.
        attention_probs_dropout_prob: probability for attention weights.
        classifier_dropout: probability before a classifier; None is `hidden_dropout_prob`.
        max_position_embeddings: the longest input.
        type_vocab_size: number of token types.
        initializer_range: standard deviation of the normal initialisation.
        layer_norm_eps: epsilon of the layer normalisations.
        is_decoder: a causal model, whose tokens see no later ones: neither in attention nor in the embedding of trigrams.
        use_cache: whether a causal model returns its key-value cache where it is not told.
        pad_token_id: padding, whose embedding is zero at first.
        bos_token_id: start of a text.
        eos_token_id: end of a text.
        tie_word_embeddings: the head of a language model shares the word embeddings.

    Raises:
        ValueError: a value that is not allowed, named together with what is.
    """

    model_type = "elm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 128,
        hidden_size: int = 528,
        num_hidden_layers: int = 12,
        block_type: str | Sequence[str | Sequence[str]] = "bert",
        num_attention_heads: int | Sequence[int] = 12,
        intermediate_size: int | Sequence[int] = 528,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        classifier_dropout: float | None = None,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        is_decoder: bool = False,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.block_type = _as_data(block_type)
        self.num_attention_heads = _as_data(num_attention_heads)
        self.intermediate_size = _as_data(intermediate_size)
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        self.is_decoder = is_decoder
        self.validate_sizes()

    def validate_sizes(self) -> None:
        """Check all fields together; the model does so again, since fields may have been set after construction.

        Raises:
            ValueError: a value that is not allowed.
        """
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            if not _is_positive_integer(getattr(self, name)):
                raise UserError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 0 and below 1, got {getattr(self, name)!r}")
        for layer, size in enumerate(self.layer_sizes()):
            if len(set(size.blocks)) < len(size.blocks):
                raise UserError(f"block_type: {list(size.blocks)} of layer {layer} names a block twice")
            for block in size.blocks:
                if block not in BLOCKS:
                    raise UserError(f"block_type: {block!r} is unknown; known: {', '.join(BLOCKS)}")
                width = width_of(block, self.hidden_size)
                if not width or width % size.num_attention_heads:
                    raise UserError(
                        f"num_attention_heads: {size.num_attention_heads} does not divide {width}, the width of attention in the "
                        f"{block} block of layer {layer}"
                    )

    def layer_sizes(self) -> list[LayerSize]:
        """What each layer is, first to last.

        Raises:
            ValueError: a list that has not one entry per layer, or a number that is none.
        """
        blocks = self.block_type
        if isinstance(blocks, list) and len(blocks) == 1 and isinstance(blocks[0], list):
            blocks = blocks * self.num_hidden_layers
        named = [tuple(entry) if isinstance(entry, list) else (entry,) for entry in self._per_layer("block_type", blocks)]
        if not all(named):
            raise UserError(f"block_type: every layer needs at least one block, got {self.block_type!r}")
        numbers = {name: self._per_layer(name, getattr(self, name)) for name in ("num_attention_heads", "intermediate_size")}
        for name, values in numbers.items():
            if not all(map(_is_positive_integer, values)):
                raise UserError(f"{name} must be a positive integer or a list of them, got {getattr(self, name)!r}")
        return [LayerSize(*sizes) for sizes in zip(named, *numbers.values(), strict=True)]

    def _per_layer(self, name: str, value: object) -> list:
        values = value if isinstance(value, list) else [value] * self.num_hidden_layers
        if len(values) != self.num_hidden_layers:
            raise UserError(f"{name} has {len(values)} entries for num_hidden_layers={self.num_hidden_layers}: {value!r}")
        return values


def _as_data(value: object) -> object:
    return [_as_data(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
