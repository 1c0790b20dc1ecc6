"""What each size of a step sees of a micro-batch: all of its rows, or those that are dealt out to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate.utils import recursively_apply
from transformers import Trainer

from ..core.modeling_elastic import ElasticForCausalLM
from .sampling import RowShard


@dataclass(frozen=True)
class Part:
    """The rows of a micro-batch that one size trains on.

    Attributes:
        rows: which ones, every so-many-th; None is all.
        batch: rows of the micro-batch.
        share: how much of the optimizer step they are: a mean over their items times this adds up, over the parts and the
            micro-batches, to the mean over all items.
        counts: whether they have items; a mean over none is not a number.
    """

    rows: slice | None
    batch: int
    share: torch.Tensor | float
    counts: bool

    def of(self, values):
        """These rows of a tensor, or of every tensor in a mapping or tuple. What has no rows is left as it is; where a row is
        several sequences (multiple choice), they stay together."""
        return values if self.rows is None else recursively_apply(self._rows_of, values)

    def _rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 0 or tensor.shape[0] % self.batch:
            return tensor
        return tensor.unflatten(0, (self.batch, -1))[self.rows].flatten(0, 1).contiguous()  # models call view() on labels


class RowsMixin(Trainer):
    """Counts the items of a micro-batch (labels, or rows where there are no labels), deals its rows out, and has the loss of one
    part of them."""

    loss_is_scaled_for_ga: bool | None = None  # as in transformers 5

    def _parts(self, inputs: Mapping, num_items_in_batch, shards: list[RowShard]) -> list[Part]:
        """The part of the micro-batch for each size of a step.

        Args:
            inputs: the micro-batch.
            num_items_in_batch: items of the optimizer step; None if they are not counted.
            shards: of each size. In the next step each gets the part that comes next.
        """
        items = self._items_of_rows(inputs)
        batch, total = len(items), sum(items)
        if num_items_in_batch is None:
            share = 1 / self.current_gradient_accumulation_steps
        else:
            share = total / num_items_in_batch
            # The items of all processes are counted, and their gradients are averaged.
            share = share * self.args.world_size if self.args.average_tokens_across_devices else share
        parts = []
        for index, count in shards:
            if count == 1:
                parts.append(Part(None, batch, share, bool(total)))
                continue
            rows = slice((index + self.state.global_step) % count, None, count)
            found = sum(items[rows])
            # A size without rows runs all the same, on all of them and for nothing: other processes wait for it.
            parts.append(Part(rows if items[rows] else None, batch, share * (found / max(1, total)), bool(found)))
        return parts

    def _items_of_rows(self, inputs: Mapping) -> list[int]:
        """Items of each row of this process's micro-batch; without labels every row is one."""
        batch = next(len(value) for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim)
        if "labels" not in inputs:
            return [1] * batch
        return self._counted(inputs["labels"]).ne(-100)[..., None].flatten(1).sum(1).tolist()

    def _counted(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels that are predicted: a causal model predicts all but the first of a sequence."""
        return labels[..., 1:] if isinstance(self.elastic, ElasticForCausalLM) else labels

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """Count the labels that a causal model predicts: all but the first, which transformers 4.57 counts as well."""
        if isinstance(self.elastic, ElasticForCausalLM):
            shifted = [self._counted(batch["labels"]) for batch in batch_samples if "labels" in batch]
            batch_samples = [{"labels": labels, "shift_labels": labels} for labels in shifted]
        return super()._get_num_items_in_batch(batch_samples, device)

    def _task_loss(self, model, inputs: dict, part: Part, num_items_in_batch):
        """What the task asks for, a mean over the items of a part of the micro-batch, and the outputs."""
        is_scaled = self.compute_loss_func is not None if self.loss_is_scaled_for_ga is None else self.loss_is_scaled_for_ga
        items = num_items_in_batch if is_scaled or self.compute_loss_func is not None else None
        loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)
        # Such a loss is its share of the optimizer step already, and gets it once more, with the distillation.
        return loss / part.share if is_scaled else loss, outputs

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """As `Trainer`'s; without a `compute_loss_func` always a mean over the micro-batch, which its share weights later."""
        items = None if self.compute_loss_func is None else num_items_in_batch
        return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=items)
