"""Transformer-XL (Dai et al. 2019, arXiv 1901.02860) as a language model of transformers 4.57 and 5.

A state dict loads strictly into transformers 4's `TransfoXLLMHeadModel`, and the other way, where all layers are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from ...core.errors import UserError
from ...core.portable import IS_OLD
from .adaptive import IGNORED, AdaptiveEmbedding, AdaptiveSoftmax
from .configuration_transfo_xl import TransformerXLConfig
from .layers import PositionalEmbedding, RelativeAttention, TransformerXLLayer
from .outputs import TransformerXLCausalLMOutput, TransformerXLModelOutput


class TransformerXLPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and weight tying of all Transformer-XL models."""

    config_class = TransformerXLConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerXLLayer"]

    def __init__(self, config: TransformerXLConfig):
        config.validate_sizes()
        super().__init__(config)
        self._tied_weights_keys: dict[str, str] = {}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Tied parameter -> the one it is tied to. transformers 5 asks; its own answer is nothing without tied tables."""
        return super().get_expanded_tied_weights_keys(True) if all_submodels else dict(self._tied_weights_keys)

    def _tie_weights(self) -> None:
        """What transformers 4.57 calls to tie."""
        for target, source in self._tied_weights_keys.items():
            module, _, name = target.rpartition(".")
            setattr(self.get_submodule(module), name, self.get_parameter(source))

    def _init_weights(self, module: nn.Module) -> None:
        # Only functions of `nn.init` for parameters: transformers 5 makes them skip what a checkpoint has filled.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            self._init_weight(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, self.config.init_std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ParameterList):
            for projection in module.parameters():
                nn.init.normal_(projection, 0.0, self.config.proj_init_std)
        elif isinstance(module, AdaptiveSoftmax) and module.cutoffs:
            self._init_weight(module.cluster_weight)
            nn.init.zeros_(module.cluster_bias)
        elif isinstance(module, RelativeAttention):
            self._init_weight(module.r_w_bias)
            self._init_weight(module.r_r_bias)
        elif isinstance(module, PositionalEmbedding):
            module.inv_freq.copy_(module.frequencies(module.inv_freq.device))

    def _init_weight(self, weight: torch.Tensor) -> None:
        if self.config.init == "uniform":
            nn.init.uniform_(weight, -self.config.init_range, self.config.init_range)
        else:
            nn.init.normal_(weight, 0.0, self.config.init_std)

    def resize_token_embeddings(self, *args, **kwargs):
        """Raise ValueError: the clusters partition the vocabulary."""
        raise UserError("the vocabulary of a Transformer-XL cannot be resized; build one with another vocab_size and cutoffs")


class TransformerXLModel(TransformerXLPreTrainedModel):
    """Transformer-XL without a head: hidden states, and memory from segment to segment."""

    def __init__(self, config: TransformerXLConfig):
        super().__init__(config)
        self.word_emb = AdaptiveEmbedding(config)
        self.pos_emb = PositionalEmbedding(config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerXLLayer(config, size) for size in config.layer_sizes())
        if not config.untie_r:
            for name in ("r_w_bias", "r_r_bias"):
                setattr(self, name, getattr(self.layers[0].dec_attn, name))
                self._tied_weights_keys.update({f"layers.{index}.dec_attn.{name}": name for index in range(config.n_layer)})
        self.post_init()

    def get_input_embeddings(self) -> AdaptiveEmbedding:
        """The adaptive embedding."""
        return self.word_emb

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        mems: Sequence[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        use_cache: bool | None = None,
    ) -> TransformerXLModelOutput:
        """Hidden states of one segment.

        Args:
            input_ids: `[batch, length]`.
            mems: what the segment before returned as `mems`. None is no memory at all, as in the authors' PyTorch code;
                transformers 4's class starts from `mem_len` vectors of zeros, which can be given here to do the same.
            attention_mask: 1 for what counts, 0 for padding, `[batch, any length]`, of the last positions of memory and segment;
                positions before them count.
            inputs_embeds: `[batch, length, d_model]` instead of `input_ids`.
            output_attentions: return attention weights; None is the config's.
            output_hidden_states: return the inputs of all layers; None is the config's.
            use_cache: return `mems`; None is the config's.

        Raises:
            ValueError: both or none of `input_ids` and `inputs_embeds`; `mems` of other sizes than this model's.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = self.config.use_cache if use_cache is None else use_cache
        hidden = self.drop(self.word_emb(input_ids) if inputs_embeds is None else inputs_embeds)
        memories = self._memories(mems, batch=hidden.shape[0])
        remembered = 0 if memories[0] is None else memories[0].shape[1]
        blocked = self._blocked(hidden, remembered, attention_mask)
        positions = self.drop(self._positions(hidden, remembered))
        inputs, attentions = [], []
        for layer, memory in zip(self.layers, memories, strict=True):
            inputs.append(hidden)
            hidden, weights = layer(hidden, positions, blocked, memory)
            attentions.append(weights if output_attentions else None)
        hidden = self.drop(hidden)
        return TransformerXLModelOutput(
            last_hidden_state=hidden,
            mems=self._remember(inputs, memories) if use_cache else None,
            hidden_states=(*inputs, hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _memories(self, mems: Sequence[torch.Tensor] | None, batch: int) -> list[torch.Tensor | None]:
        """Memory of each layer with the batch first."""
        if mems is None:
            return [None] * len(self.layers)
        shapes = [tuple(memory.shape) for memory in mems]
        if len(mems) != len(self.layers) or any(shape != (shapes[0][0], batch, self.config.d_model) for shape in shapes):
            raise UserError(
                f"mems must be {len(self.layers)} tensors, one per layer, of shape [memory, batch={batch}, "
                f"d_model={self.config.d_model}], got {shapes}"
            )
        return [memory.transpose(0, 1) for memory in mems]

    def _remember(self, inputs: list[torch.Tensor], memories: list[torch.Tensor | None]) -> list[torch.Tensor] | None:
        """The last `mem_len` inputs of each layer, old and new, detached."""
        if self.config.mem_len == 0:
            return None
        both = [new if old is None else torch.cat([old, new], dim=1) for new, old in zip(inputs, memories, strict=True)]
        return [hidden[:, -self.config.mem_len :].transpose(0, 1).detach() for hidden in both]

    def _positions(self, hidden: torch.Tensor, remembered: int) -> torch.Tensor:
        distances = torch.arange(remembered + hidden.shape[1] - 1, -1, -1, device=hidden.device)
        if self.config.clamp_len > 0:
            # Not clamp, which TensorRT has for floats only.
            distances = torch.where(distances > self.config.clamp_len, self.config.clamp_len, distances)
        return self.pos_emb(distances, hidden.dtype)

    def _blocked(self, hidden: torch.Tensor, remembered: int, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Which keys each query must not attend to, `[1 or batch, 1, query, key]`."""
        key = torch.arange(remembered + hidden.shape[1], device=hidden.device)
        distance = key[remembered:, None] - key
        blocked = distance < 0
        if self.config.same_length:
            blocked = blocked | (distance >= self.config.mem_len)
        blocked = blocked[None, None]
        if attention_mask is not None:
            counts = attention_mask[:, -key.shape[0] :]
            counts = nn.functional.pad(counts, (key.shape[0] - counts.shape[1], 0), value=1)
            blocked = blocked | (counts == 0)[:, None, None]
        return blocked


class TransformerXLForCausalLM(TransformerXLPreTrainedModel, GenerationMixin):
    """Transformer-XL with an adaptive softmax that shares the embedding's tables."""

    # Whether Trainer gives `num_items_in_batch`, which makes accumulated gradients those of one big batch. In 4.57 it counts the
    # first label of each row as well, which nothing predicts, and every loss would come out too small.
    accepts_loss_kwargs = not IS_OLD
    _is_stateful = True  # assisted generation would have to take back part of `mems`

    def __init__(self, config: TransformerXLConfig):
        super().__init__(config)
        self.transformer = TransformerXLModel(config)
        self.crit = AdaptiveSoftmax(config)
        self._tied_weights_keys = self._ties_to_embedding()
        self.post_init()

    def _ties_to_embedding(self) -> dict[str, str]:
        embedding, source = self.transformer.word_emb, "transformer.word_emb"
        tables = range(len(embedding.emb_layers) if self.config.tie_word_embeddings else 0)
        ties = {f"crit.out_layers.{index}.weight": f"{source}.emb_layers.{index}.weight" for index in tables}
        for index in range(len(self.crit.out_projs)):
            if self.config.tie_projs[index]:  # one table has one projection
                ties[f"crit.out_projs.{index}"] = f"{source}.emb_projs.{index if len(embedding.emb_projs) > 1 else 0}"
        return ties

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        mems: Sequence[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_logits: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        use_cache: bool | None = None,
    ) -> TransformerXLCausalLMOutput:
        """Loss or log-probabilities of one segment; see `TransformerXLModel.forward` for what is not listed.

        Args:
            labels: `[batch, length]`, usually `input_ids`: position i predicts label i + 1, so that the first label of a segment
                is not predicted. -100 does not count.
            targets: `[batch, length]`, position i predicts target i. Give these instead of `labels` to predict the first token
                of the next segment as well. (Trainer takes every argument with "label" in its name for a label it must have.)
            return_logits: return log-probabilities of the whole vocabulary; None is the config's, and if that is None too, only
                where there are no labels.
            logits_to_keep: return them for the last so many positions only; 0 is all.
            num_items_in_batch: what to divide the summed loss by; None is the number of labels that count, at least 1.

        Raises:
            ValueError: as `TransformerXLModel.forward`.
        """
        outputs = self.transformer(
            input_ids,
            mems=mems,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            use_cache=use_cache,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        if targets is None and labels is not None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if return_logits is None:
            return_logits = targets is None if self.config.return_logits is None else self.config.return_logits
        return TransformerXLCausalLMOutput(
            loss=None if targets is None else self._loss(hidden, targets, num_items_in_batch),
            logits=self.crit.log_probabilities(hidden[:, -logits_to_keep:]) if return_logits else None,
            mems=outputs.mems,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, hidden: torch.Tensor, labels: torch.Tensor, items: int | torch.Tensor | None) -> torch.Tensor:
        labels = labels.reshape(-1).to(hidden.device)
        if items is None:
            items = (labels != IGNORED).sum().clamp(min=1)
        return self.crit(hidden.flatten(0, 1), labels) / items

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, use_cache=None, logits_to_keep=1, **kwargs
    ) -> dict:
        """Only the newest token where there is memory, which `generate` carries as `past_key_values`."""
        mems = past_key_values if use_cache is not False else None
        return {
            "input_ids": input_ids if mems is None else input_ids[:, -1:],
            "mems": mems,
            "use_cache": use_cache is not False,
            "attention_mask": attention_mask,
            "logits_to_keep": logits_to_keep,
            "return_logits": True,
        }

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: `generate` must make no key-value cache, `mems` are what is carried on."""
        return False

    @staticmethod
    def _reorder_cache(mems: list[torch.Tensor], beam_idx: torch.Tensor) -> list[torch.Tensor]:
        """Memory of the beams that go on, for beam search."""
        return [memory.index_select(1, beam_idx.to(memory.device)) for memory in mems]


def register() -> None:
    """Make the models known to the Auto classes; the config is already."""
    AutoModel.register(TransformerXLConfig, TransformerXLModel, exist_ok=True)
    AutoModelForCausalLM.register(TransformerXLConfig, TransformerXLForCausalLM, exist_ok=True)
    # Trainer looks here for whose labels it has to shift when it smooths them.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[TransformerXLConfig.model_type] = TransformerXLForCausalLM.__name__
