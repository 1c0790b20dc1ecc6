"""What Hugging Face expects of a model, passed on to the stock model inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from .adapters import check_merged
from .errors import UserError
from .portable import IS_OLD
from .twins import is_registry


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the usual layout; those that are one stay one, so that tied weights are saved once."""
    copies: dict[tuple, Tensor] = {}
    result = {}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride())
            tensor = copies[key] = copies[key] if key in copies else tensor.contiguous()
        result[name] = tensor
    return result


class DelegationMixin:
    """Embeddings, gradient checkpointing, saving and the like of an elastic model are its base's.

    Comes before `PreTrainedModel` in the bases; needs `base`, `config` and `_active`.
    """

    # Called with the model, a folder, repo_id, revision and facts. The package sets it; remote code alone has none.
    card_writer: ClassVar[Callable | None] = None

    def _init_weights(self, module: nn.Module) -> None:
        self.base._init_weights(module)

    def initialize_weights(self) -> None:
        """Initialise what a checkpoint lacks as the stock class does: some of its modules have rules of its own."""
        self.base.initialize_weights()

    def get_input_embeddings(self) -> nn.Module:
        """The base's input embeddings; the selected size's where it has narrower ones."""
        return self._embeddings("get_input_embeddings")

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the base's input embeddings."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The base's output embeddings, if it has any; the selected size's where it has narrower ones."""
        return self._embeddings("get_output_embeddings")

    def _embeddings(self, getter: str) -> nn.Module | None:
        full = getattr(self.base, getter)()
        if full is None or self.config.subnet is None or self.is_sharded:
            return full
        try:
            own = getattr(self._active(), getter)()
        except UserError:  # somebody is about to replace them, and they do not fit now
            return full
        return full if own.weight.shape == full.weight.shape else own

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the base's output embeddings."""
        self.base.set_output_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Resize the base's token embeddings; all sizes follow."""
        return self.base.resize_token_embeddings(*args, **kwargs)

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

    def gradient_checkpointing_disable(self) -> None:
        """Stop recomputing activations."""
        self.base.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients, in every size."""
        self.base.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        self.base.disable_input_require_grads()

    def set_attn_implementation(self, *args, **kwargs) -> None:
        """Change the attention kernel of every size."""
        self.base.set_attn_implementation(*args, **kwargs)

    @property
    def loss_function(self):
        """The base's."""
        return self.base.loss_function

    @loss_function.setter
    def loss_function(self, value) -> None:
        self.base.loss_function = value

    def resize_position_embeddings(self, *args, **kwargs):
        """The base's; all sizes follow."""
        return self.base.resize_position_embeddings(*args, **kwargs)

    def train(self, mode: bool = True) -> DelegationMixin:
        """Switch to training mode, the base (which is not a submodule) included."""
        super().train(mode)
        if "base" in self.__dict__:
            self.base.training = mode
        return self

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
        tensors = contiguous(tensors)
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

    @contextmanager
    def _prepared_by_own(self, active: nn.Module) -> Iterator[None]:
        """Let the module that runs prepare the inputs of `generate` as this one does, if somebody has replaced how: peft adds its
        prompts there."""
        prepare = vars(self).get("prepare_inputs_for_generation")
        if prepare is None:
            yield
            return

        @functools.wraps(prepare)  # `generate` looks at its arguments
        def checked(*args, **kwargs):
            inputs = prepare(*args, **kwargs)
            self._check_inputs(inputs)
            return inputs

        active.prepare_inputs_for_generation = checked
        try:
            yield
        finally:
            del active.prepare_inputs_for_generation

    def __getattr__(self, name: str):
        """What only the stock model has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("base")
            if base is None or name.startswith("__"):
                raise
            return getattr(base, name)

    def __setattr__(self, name: str, value) -> None:
        """What only the stock model has is set there."""
        base = self.__dict__.get("base")
        if base is not None and name in vars(base) and name not in vars(self) and not hasattr(type(self), name):
            setattr(base, name, value)
        else:
            super().__setattr__(name, value)

    def _replicate_for_data_parallel(self):
        """A replica for `nn.DataParallel`, which then puts copies of modules and weights into its dicts."""
        replica = super()._replicate_for_data_parallel()
        base = self.base._replicate_for_data_parallel()
        for key, value in vars(replica).items():
            if is_registry(key, value):
                base.__dict__[key] = value
        replica.__dict__["base"] = base
        replica.forget_views()  # they share the original's weights
        return replica
