"""`TransformerXLConfig`: transformers' field names for Transformer-XL, with heads and feed-forward width per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PretrainedConfig

from ...core.errors import UserError
from ...core.following import CodeFollows

DEFAULT_CUTOFFS = (20000, 40000, 200000)  # of the released WikiText-103 model


class LayerSize(NamedTuple):
    """The sizes of one layer: heads, width of a head, width of the feed-forward network."""

    n_head: int
    d_head: int
    d_inner: int


class TransformerXLConfig(CodeFollows, PretrainedConfig):
    """Configuration of a Transformer-XL (Dai et al. 2019, arXiv 1901.02860).

    Fields and defaults are those of transformers 4's `TransfoXLConfig`, except that `n_head`, `d_head` and `d_inner` may be
    lists with one entry per layer.

    Args:
        vocab_size: number of tokens.
        cutoffs: token ids where the clusters of the adaptive embedding and softmax end, the last one (`vocab_size`) left
            out; None is those of 20000, 40000 and 200000 that are below `vocab_size`, and none if not `adaptive`.
        d_model: width of the hidden states, even.
        d_embed: width of the embeddings of the first cluster; None is `d_model`.
        n_head: heads of every layer, or a list with one number per layer.
        d_head: width of a head of every layer, or a list; None divides `d_model` by the heads of each layer, so that layers
            with different heads partition the same width.
        d_inner: width of the feed-forward network of every layer, or a list.
        div_val: cluster i has embeddings of width `d_embed // div_val**i`; with 1 all clusters share one table.
        pre_lnorm: normalise the input of each block, not its output.
        n_layer: number of layers.
        mem_len: how many positions of earlier segments each layer remembers; 0 is no memory, as `torch.export` wants it where
            lengths vary.
        clamp_len: distances above this count as this; 0 or less is off.
        same_length: every position attends to exactly the last `mem_len` positions, itself included.
        proj_share_all_but_first: tie the projections of all clusters but the first; read where `tie_projs` is None.
        tie_projs: which clusters' projections the softmax shares with the embedding, one bool per cluster.
        attn_type: 0, the attention of Transformer-XL; the others are not implemented.
        sample_softmax: 0 or less; sampling is not implemented.
        adaptive: False is an ordinary embedding and softmax, and takes no cutoffs.
        dropout: probability for embeddings, positions, outputs of blocks and inside the feed-forward network.
        dropatt: probability for attention weights.
        untie_r: every layer has its own position biases `r_w_bias` and `r_r_bias`; False shares one pair over all layers.
        init: `"normal"` or `"uniform"`.
        init_range: bound of the uniform initialisation.
        init_std: standard deviation of the normal initialisation.
        proj_init_std: standard deviation of the projections of the adaptive embedding and softmax.
        layer_norm_epsilon: epsilon of the layer normalisations.
        return_logits: whether `forward` computes logits; None is only where it is given no labels, because that is what the
            adaptive softmax saves. Set it to True to get metrics out of `Trainer`.
        tie_word_embeddings: the softmax shares the tables of the embedding.
        eos_token_id: end of text.
        use_cache: whether `forward` returns memory where it is not told.

    Raises:
        ValueError: a value that is not allowed, named together with what is.
    """

    model_type = "transformer_xl"
    keys_to_ignore_at_inference = ["mems"]
    attribute_map = {
        "n_token": "vocab_size",
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 267735,
        cutoffs: Sequence[int] | None = None,
        d_model: int = 1024,
        d_embed: int | None = None,
        n_head: int | Sequence[int] = 16,
        d_head: int | Sequence[int] | None = None,
        d_inner: int | Sequence[int] = 4096,
        div_val: int = 4,
        pre_lnorm: bool = False,
        n_layer: int = 18,
        mem_len: int = 1600,
        clamp_len: int = 1000,
        same_length: bool = True,
        proj_share_all_but_first: bool = True,
        tie_projs: Sequence[bool] | None = None,
        attn_type: int = 0,
        sample_softmax: int = -1,
        adaptive: bool = True,
        dropout: float = 0.1,
        dropatt: float = 0.0,
        untie_r: bool = True,
        init: str = "normal",
        init_range: float = 0.01,
        proj_init_std: float = 0.01,
        init_std: float = 0.02,
        layer_norm_epsilon: float = 1e-5,
        return_logits: bool | None = None,
        tie_word_embeddings: bool = True,
        eos_token_id: int | None = 0,
        use_cache: bool = True,
        **kwargs,
    ):
        kwargs.pop("model_type", None)  # a checkpoint of transformers' own class says "transfo-xl"
        if cutoffs is None:
            cutoffs = [cutoff for cutoff in DEFAULT_CUTOFFS if adaptive and cutoff < vocab_size]
        self.vocab_size = vocab_size
        self.cutoffs = list(cutoffs)
        self.d_model = d_model
        self.d_embed = d_model if d_embed is None else d_embed
        self.n_head = _as_data(n_head)
        self.d_head = _as_data(d_head)
        self.d_inner = _as_data(d_inner)
        self.div_val = div_val
        self.pre_lnorm = pre_lnorm
        self.n_layer = n_layer
        self.mem_len = mem_len
        self.clamp_len = clamp_len
        self.same_length = same_length
        if tie_projs is None:
            tie_projs = [False, *[proj_share_all_but_first] * len(self.cutoffs)]
        self.tie_projs = list(tie_projs)
        self.attn_type = attn_type
        self.sample_softmax = sample_softmax
        self.adaptive = adaptive
        self.dropout = dropout
        self.dropatt = dropatt
        self.untie_r = untie_r
        self.init = init
        self.init_range = init_range
        self.proj_init_std = proj_init_std
        self.init_std = init_std
        self.layer_norm_epsilon = layer_norm_epsilon
        self.return_logits = return_logits
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, eos_token_id=eos_token_id, **kwargs)
        self.validate_sizes()

    def validate_sizes(self) -> None:
        """Check all fields together; the model does so again, since fields may have been set after construction.

        Raises:
            ValueError: a value that is not allowed.
        """
        self._validate_numbers()
        self._validate_choices()
        self._validate_clusters()
        sizes = self.layer_sizes()
        if not self.untie_r and len({(size.n_head, size.d_head) for size in sizes}) > 1:
            raise UserError(
                f"untie_r=False shares one pair of position biases, so all layers need the same heads, got n_head={self.n_head} "
                f"and d_head={self.d_head}; set untie_r=True"
            )

    def layer_sizes(self) -> list[LayerSize]:
        """The sizes of each layer, first to last.

        Raises:
            ValueError: a list that has not one entry per layer, or heads that do not divide `d_model`.
        """
        n_heads, d_inners = self._per_layer("n_head"), self._per_layer("d_inner")
        if self.d_head is not None:
            d_heads = self._per_layer("d_head")
        else:
            for n_head in n_heads:
                if self.d_model % n_head:
                    raise UserError(f"n_head must divide d_model={self.d_model} where d_head is None, got {self.n_head}")
            d_heads = [self.d_model // n_head for n_head in n_heads]
        return [LayerSize(*sizes) for sizes in zip(n_heads, d_heads, d_inners, strict=True)]

    @property
    def clusters(self) -> list[tuple[int, int]]:
        """First token id and the one after the last of each cluster."""
        ends = [*self.cutoffs, self.vocab_size]
        return list(zip([0, *self.cutoffs], ends, strict=True))

    @property
    def cluster_widths(self) -> list[int]:
        """Width of the embeddings of each cluster."""
        return [self.d_embed // self.div_val**index for index in range(len(self.cutoffs) + 1)]

    def _per_layer(self, name: str) -> list[int]:
        value = getattr(self, name)
        values = value if isinstance(value, list) else [value] * self.n_layer
        if len(values) != self.n_layer or not all(_is_positive_integer(item) for item in values):
            raise UserError(f"{name} must be a positive integer or a list of n_layer={self.n_layer} of them, got {value!r}")
        return values

    def _validate_numbers(self) -> None:
        for name in ("vocab_size", "d_model", "d_embed", "n_layer", "div_val"):
            if not _is_positive_integer(getattr(self, name)):
                raise UserError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        if self.d_model % 2:
            raise UserError(f"d_model must be even (half sines, half cosines), got {self.d_model}")
        if self.mem_len != 0 and not _is_positive_integer(self.mem_len):
            raise UserError(f"mem_len must be 0 or a positive integer, got {self.mem_len!r}")
        if self.same_length and self.mem_len == 0:
            raise UserError("same_length=True attends to the last mem_len positions, got mem_len=0; set same_length=False")
        for name in ("dropout", "dropatt"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 0 and below 1, got {getattr(self, name)!r}")

    def _validate_choices(self) -> None:
        if self.attn_type != 0:
            raise UserError(f"attn_type must be 0 (the attention of Transformer-XL), got {self.attn_type!r}")
        if self.sample_softmax > 0:
            raise UserError(f"sample_softmax must be 0 or less (sampling is not implemented), got {self.sample_softmax!r}")
        if self.init not in ("normal", "uniform"):
            raise UserError(f"init must be 'normal' or 'uniform', got {self.init!r}")

    def _validate_clusters(self) -> None:
        bounds = [0, *self.cutoffs, self.vocab_size]
        if not all(_is_positive_integer(cutoff) for cutoff in self.cutoffs) or sorted(set(bounds)) != bounds:
            raise UserError(f"cutoffs must be rising token ids below vocab_size={self.vocab_size}, got {self.cutoffs}")
        if self.cutoffs and not self.adaptive:
            raise UserError(f"adaptive=False takes no cutoffs, got {self.cutoffs}; set adaptive=True or cutoffs=[]")
        if self.cluster_widths[-1] < 1:
            raise UserError(
                f"d_embed must be at least div_val**len(cutoffs) = {self.div_val ** len(self.cutoffs)}, so that the last "
                f"cluster has a width, got {self.d_embed}"
            )
        if len(self.tie_projs) != len(self.cutoffs) + 1:
            raise UserError(f"tie_projs must have one bool for each of {len(self.cutoffs) + 1} clusters, got {self.tie_projs}")


def _as_data(value: int | Sequence[int] | None) -> int | list[int] | None:
    return value if value is None or isinstance(value, int) else list(value)


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
