"""ELM (arXiv 2510.27037) as a model of transformers 4.57 and 5, bidirectional or causal.

Blocks and embedding follow the authors' related public code (see `ElmConfig`); the head of the language models, which projects
back to the width of the embeddings as ELECTRA's does, is ours.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from ...core.errors import UserError
from ...core.portable import IS_OLD
from .blocks.parts import NoNorm
from .configuration_elm import ElmConfig
from .layers import ElmEmbeddings, ElmLayer

if IS_OLD:
    from transformers.modeling_attn_mask_utils import _prepare_4d_attention_mask
else:
    from transformers.masking_utils import create_bidirectional_mask


class ElmPreTrainedModel(PreTrainedModel):
    """Initialisation and what all ELMs can do."""

    config_class = ElmConfig
    base_model_prefix = "elm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = not IS_OLD  # whose masks for encoders have four dimensions
    _supports_attention_backend = True
    _no_split_modules = ["ElmLayer"]

    def __init__(self, config: ElmConfig):
        config.validate_sizes()
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Only functions of `nn.init` for parameters: transformers 5 makes them skip what a checkpoint has filled.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, (nn.LayerNorm, NoNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class ElmModel(ElmPreTrainedModel):
    """ELM without a head."""

    def __init__(self, config: ElmConfig):
        super().__init__(config)
        self.embeddings = ElmEmbeddings(config)
        self.layers = nn.ModuleList(ElmLayer(config, size, index) for index, size in enumerate(config.layer_sizes()))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states `[batch, length, hidden]`.

        Args:
            input_ids: `[batch, length]`.
            attention_mask: 1 for what counts, 0 for padding, `[batch, past + length]`.
            token_type_ids: `[batch, length]`; None is type 0.
            position_ids: `[1 or batch, length]`; None counts on from the cache.
            inputs_embeds: word embeddings `[batch, length, embedding]` instead of `input_ids`.
            past_key_values: of a causal model, what was returned for the tokens before.
            use_cache: return it; None is the config's.
            output_attentions: return attention weights; None is the config's.
            output_hidden_states: return the embeddings and the outputs of all layers; None is the config's.

        Raises:
            ValueError: both or none of `input_ids` and `inputs_embeds`; a cache for a bidirectional model; attention weights of
                a kernel that has none.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if output_attentions and self.config._attn_implementation != "eager":
            raise UserError("output_attentions: only the eager kernel has them; load the model with attn_implementation='eager'")
        past_key_values = self._cache(_given_cache(past_key_values, kwargs), use_cache)
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        positions = torch.arange(past, past + words.shape[1], device=words.device)
        if position_ids is None:
            position_ids = positions[None]
        mask = self._mask(words, attention_mask, past_key_values, positions)
        padding = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        hidden = self.embeddings(words, position_ids, token_type_ids, padding, past_key_values)
        states, attentions = [hidden], []
        for layer in self.layers:
            hidden, weights = layer(hidden, attention_mask=mask, past_key_values=past_key_values)
            states.append(hidden)
            attentions.append(weights)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to fill, None for none."""
        if not self.config.is_decoder:
            if given is not None:
                raise UserError("past_key_values: a bidirectional ELM has none, since every token sees those after it")
            return None
        use_cache = self.config.use_cache if use_cache is None else use_cache
        recomputes = self.training and any(layer.gradient_checkpointing for layer in self.layers)
        return DynamicCache() if given is None and use_cache and not recomputes else given

    def _mask(
        self, words: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None, positions: torch.Tensor
    ) -> torch.Tensor | None:
        """What the attention kernel wants to know of whom each token sees."""
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        if self.config.is_decoder and IS_OLD:
            return create_causal_mask(self.config, words, attention_mask, positions, cache)
        if self.config.is_decoder:
            return create_causal_mask(self.config, words, attention_mask, cache)
        if not IS_OLD:
            return create_bidirectional_mask(self.config, words, attention_mask)
        return None if attention_mask is None else _prepare_4d_attention_mask(attention_mask, words.dtype)


class ElmLMHead(nn.Module):
    """Hidden states back to the width of the embeddings, and their products with those of all words."""

    def __init__(self, config: ElmConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.activation = nn.GELU(approximate="tanh")
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to logits `[..., vocabulary]`."""
        return self.decoder(self.norm(self.activation(self.dense(hidden_states))))


class _WithLMHead(ElmPreTrainedModel):
    _tied_weights_keys = {"lm_head.decoder.weight": "elm.embeddings.word_embeddings.weight"}

    def __init__(self, config: ElmConfig):
        super().__init__(config)
        self.elm = ElmModel(config)
        self.lm_head = ElmLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The last layer of the head."""
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the last layer of the head."""
        self.lm_head.decoder = value


class ElmForMaskedLM(_WithLMHead):
    """A masked language model."""

    def __init__(self, config: ElmConfig):
        check_direction(self, config, is_decoder=False)
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Logits `[batch, length, vocabulary]` and the loss of `labels`, where they are not -100; see `ElmModel.forward`."""
        outputs = self.elm(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


class ElmForCausalLM(_WithLMHead, GenerationMixin):
    """A causal language model."""

    def __init__(self, config: ElmConfig):
        check_direction(self, config, is_decoder=True)
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits `[batch, length, vocabulary]` and the loss of `labels`, usually `input_ids`: position i predicts label i + 1.

        Args:
            logits_to_keep: logits of the last so many positions only, or of those given; 0 is all. For the others see
                `ElmModel.forward`.
        """
        past_key_values = _given_cache(past_key_values, kwargs)
        outputs = self.elm(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, past_key_values, use_cache),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _given_cache(past_key_values: Cache | None, others: dict) -> Cache | None:
    """The cache by either of its names, the second one taken out of the other arguments: transformers 5.24 says `cache`."""
    cache = others.pop("cache", None)
    return cache if past_key_values is None else past_key_values


def check_direction(model: PreTrainedModel, config: ElmConfig, *, is_decoder: bool) -> None:
    """Raise UserError unless a config is of a bidirectional, or of a causal model."""
    if config.is_decoder != is_decoder:
        raise UserError(f"{type(model).__name__} needs a config with is_decoder={is_decoder}, got {config.is_decoder}")
