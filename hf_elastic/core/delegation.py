"""What Hugging Face expects of a model, passed on to the stock model inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import nn

from .adapters import check_merged
from .portable import IS_OLD


class DelegationMixin:
    """Embeddings, gradient checkpointing, saving and the like of an elastic model are its base's.

    Comes before `PreTrainedModel` in the bases; needs `base`, `config`, `_rebuild` and `_reset_views`.
    """

    # Called with the model, a folder, repo_id, revision and facts. The package sets it; remote code alone has none.
    card_writer: ClassVar[Callable | None] = None

    def _init_weights(self, module: nn.Module) -> None:
        self.base._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The base's input embeddings."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the base's input embeddings."""
        self.base.set_input_embeddings(value)
        self._reset_views()

    def get_output_embeddings(self) -> nn.Module | None:
        """The base's output embeddings, if it has any."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the base's output embeddings."""
        self.base.set_output_embeddings(value)
        self._reset_views()

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Resize the base's token embeddings; all sizes follow."""
        embeddings = self.base.resize_token_embeddings(*args, **kwargs)
        self._rebuild()
        return embeddings

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Tied parameter -> the one it is tied to, as the base says (transformers 5)."""
        return self.base.get_expanded_tied_weights_keys(all_submodels=all_submodels)

    def tie_weights(self, *args, **kwargs):
        """Tie what the base ties. transformers 4.57 asks every module that it finds, and does not find the base."""
        result = super().tie_weights(*args, **kwargs)
        if IS_OLD:
            self.base.tie_weights()
        return result

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """Recompute activations in the backward pass, in every size."""
        self.base.gradient_checkpointing_enable(*args, **kwargs)
        self._reset_views()

    def gradient_checkpointing_disable(self) -> None:
        """Stop recomputing activations."""
        self.base.gradient_checkpointing_disable()
        self._reset_views()

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients, as adapters on a frozen model need."""
        super().enable_input_require_grads()
        self._reset_views()

    def set_attn_implementation(self, *args, **kwargs) -> None:
        """Change the attention kernel of every size."""
        self.base.set_attn_implementation(*args, **kwargs)
        self.config._attn_implementation_internal = self.base.config._attn_implementation
        self._reset_views()

    def train(self, mode: bool = True) -> DelegationMixin:
        """Switch to training mode, the base (which is not a submodule) included."""
        super().train(mode)
        if "base" in self.__dict__:
            self.base.training = mode
        return self

    def load_state_dict(self, *args, **kwargs):
        """Load weights; views of the old ones are dropped."""
        result = super().load_state_dict(*args, **kwargs)
        self._reset_views()
        return result

    def _apply(self, fn, *args, **kwargs):
        result = super()._apply(fn, *args, **kwargs)
        self._reset_views()
        return result

    def save_pretrained(self, save_directory, *args, state_dict: dict | None = None, **kwargs):
        """Like any `save_pretrained`: the full weights under the stock names, and this package's code for
        `trust_remote_code`.

        Raises:
            ValueError: adapters are not merged yet; `save_pretrained` of the PeftModel writes them alone.
        """
        if not self._hf_peft_config_loaded:  # else transformers itself has added the adapter, and saves it alone
            check_merged(self.base)
        # The memory layout is ours; files have the standard one.
        tensors = self.state_dict() if state_dict is None else state_dict
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return super().save_pretrained(save_directory, *args, state_dict=tensors, **kwargs)

    def write_card(self, folder: str | Path, repo_id: str, revision: str | None = None, **facts) -> None:
        """Write a model card to `folder`, unless somebody wrote one there, or this code runs without its package.

        Args:
            folder: where `README.md` goes.
            repo_id: where the model is to be loaded from.
            revision: its branch.
            **facts: as for `hf_elastic.hub.cards.CardFacts`; `metrics`, as `ElasticTrainer.evaluate` returns them.
        """
        writer = type(self).card_writer
        if writer is not None:
            writer(self, Path(folder), repo_id, revision, **facts)

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, revision=None, **kwargs):
        """The last step of `push_to_hub` and of `save_pretrained(push_to_hub=True)`: a good moment for our own card."""
        self.write_card(working_dir, repo_id, revision)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, revision=revision, **kwargs)

    def __getstate__(self) -> dict:
        # Views would be copied as independent weights; they are rebuilt when needed.
        return {**self.__dict__, "_views": {}, "_trained": {}, "_frozen_view": None}
