"""`ElasticTrainer`: a `Trainer` whose step trains several sizes of one model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel, Trainer
from transformers.training_args import ParallelMode

from ..layout import Cut
from ..modeling_elastic import ElasticForCausalLM, ElasticPreTrainedModel
from .arguments import ElasticTrainingArguments
from .losses import PREDICTIONS, counted_items, hidden_states, soft_cross_entropy
from .sampling import sizes_of_step


class ElasticTrainer(Trainer):
    """Trains the sizes of an elastic model together, the smaller ones also by distillation.

    Every step draws some sizes, runs each forward and backward, and updates once. The loss is the average over the sizes;
    the largest learns the task, the others `task_weight * task + logits_weight * logits + hidden_weight * hidden`.

    Args:
        model: an elastic model.
        args: `ElasticTrainingArguments`.
        teacher: a stock model to distil from, with the same tokens and labels; None is the largest size of the step itself,
            detached (in-place distillation; with "single_path" that costs one more forward).
        **kwargs: as for `Trainer`.

    Raises:
        ValueError: the model is not elastic or is frozen at one size, or the teacher's vocabulary or labels differ.
    """

    def __init__(
        self,
        model: ElasticPreTrainedModel,
        args: ElasticTrainingArguments | None = None,
        teacher: PreTrainedModel | None = None,
        **kwargs,
    ):
        if not isinstance(model, ElasticPreTrainedModel) or model.frozen_cut is not None:
            raise ValueError(f"ElasticTrainer needs an elastic model that is not frozen, got {type(model).__name__}")
        args = args or ElasticTrainingArguments(output_dir="runs")
        _check_teacher(teacher, model)
        super().__init__(model=model, args=args, **kwargs)
        sizes_of_step(model.space, args.sampling, args.num_random_subnets, args.seed, 0)
        self.model_accepts_loss_kwargs = True  # so that the labels of a step are counted; see compute_loss
        self.eval_subnets = self._check_names(args.eval_subnets)
        self.teacher = teacher
        if teacher is not None:
            teacher.to(args.device).eval().requires_grad_(False)
        self._size_losses: dict[str, list] = defaultdict(lambda: [0.0, 0])

    def _check_names(self, names: list[str] | None) -> list[str]:
        if names is None:
            names = [*(["smallest"] if len(self.model.space) > 1 else []), *self.model.config.subnets]
        for name in names:
            self.model.resolve(name)
        return list(names)

    def train(self, *args, **kwargs):
        """Train as `Trainer` does. Views of the model made before it are stale afterwards."""
        self.model.set_memory_layout("standard")
        try:
            return super().train(*args, **kwargs)
        finally:
            self.model.set_memory_layout("prefix")

    # --- training ----------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of every size of this step.

        Returns:
            The loss, averaged over the sizes, scaled for gradient accumulation as `Trainer` expects it.
        """
        model.train()
        optimizer = self.optimizer
        if hasattr(optimizer, "train") and callable(optimizer.train):  # schedule-free optimizers switch modes
            optimizer.train()
        inputs = self._prepare_inputs(inputs)
        elastic = self._elastic(model)
        sizes = self._sizes(elastic)
        share = self._share(inputs, num_items_in_batch)
        total = torch.zeros((), device=self.args.device)
        try:
            teacher = self._teacher_outputs(model, elastic, inputs, sizes)
            for index, (role, cut) in enumerate(sizes):
                sync = index == len(sizes) - 1
                with self.accelerator.no_sync(model) if not sync else torch.enable_grad():
                    # Where processes train the largest size last, it must not learn from its own earlier forward.
                    own = role == "largest" and self.teacher is None
                    loss, outputs = self._size_loss(model, elastic, inputs, cut, None if own else teacher)
                    if role == "largest" and teacher is None and self._distils:
                        teacher = _detach(outputs)
                    self._record(role, loss)
                    scaled = loss * share / len(sizes)
                    self.accelerator.backward(scaled)
                total += scaled.detach()
        finally:
            elastic.select(None)
        return total

    @property
    def _distils(self) -> bool:
        return bool(self.args.logits_weight or self.args.hidden_weight)

    def _elastic(self, model) -> ElasticPreTrainedModel:
        return self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def _sizes(self, elastic: ElasticPreTrainedModel) -> list[tuple[str, Cut]]:
        """This step's sizes. Processes reduce gradients once, in the last backward, so the largest comes last there."""
        args = self.args
        drawn = sizes_of_step(elastic.space, args.sampling, args.num_random_subnets, args.seed, self.state.global_step)
        sizes = [(role, elastic.resolve(subnet)) for role, subnet in drawn]
        return sizes[1:] + sizes[:1] if self._is_distributed else sizes

    @property
    def _is_distributed(self) -> bool:
        return self.args.parallel_mode == ParallelMode.DISTRIBUTED

    def _share(self, inputs: Mapping, num_items_in_batch) -> torch.Tensor | float:
        """How much of the optimizer step this micro-batch is: a mean over its items times this adds up to the mean over all."""
        if num_items_in_batch is None:
            return 1 / self.current_gradient_accumulation_steps
        return self._get_num_items_in_batch([inputs], self.args.device) / num_items_in_batch

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """Count the labels that a causal model predicts: all but the first, which transformers 4.57 counts as well."""
        if isinstance(self._elastic(self.model), ElasticForCausalLM):
            shifted = [batch["labels"][..., 1:] for batch in batch_samples if "labels" in batch]
            batch_samples = [{"labels": labels, "shift_labels": labels} for labels in shifted]
        return super()._get_num_items_in_batch(batch_samples, device)

    def _teacher_outputs(self, model, elastic, inputs: Mapping, sizes) -> dict | None:
        """What the sizes of this step learn from, unless it is the largest size's own training forward."""
        first_role = sizes[0][0]
        if not self._distils or (self.teacher is None and first_role == "largest"):
            return None
        wanted = {key: value for key, value in inputs.items() if key != "labels"}
        with torch.no_grad(), self.accelerator.autocast():
            if self.teacher is not None:
                return _detach(self.teacher(**wanted, output_hidden_states=bool(self.args.hidden_weight)))
            return _detach(elastic.view("largest")(**wanted, output_hidden_states=bool(self.args.hidden_weight)))

    def _size_loss(self, model, elastic, inputs: Mapping, cut: Cut, teacher: dict | None):
        """Loss of one size, a mean over the items of the micro-batch, and its outputs."""
        elastic.select(elastic.layout.subnet_of(cut))
        wanted = dict(inputs)
        if self.args.hidden_weight:
            wanted["output_hidden_states"] = True
        with self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, wanted, return_outputs=True)
            if loss.dim():
                loss = loss.mean()  # one loss per device under DataParallel
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {self.state.global_step} for {elastic.layout.subnet_of(cut).to_dict()}"
                )
            if teacher is None:
                return loss, outputs
            loss = self.args.task_weight * loss
            if self.args.logits_weight:
                loss = loss + self.args.logits_weight * self._logits_loss(inputs, outputs, teacher)
            if self.args.hidden_weight:
                mask = inputs.get("attention_mask")
                tokens = mask.bool() if mask is not None else None
                states = hidden_states(outputs["hidden_states"], teacher["hidden_states"], cut, tokens)
                loss = loss + self.args.hidden_weight * states
            return loss, outputs

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """As `Trainer`'s, but always a mean over the micro-batch: `_share` weights it, and the distillation with it."""
        return super().compute_loss(model, inputs, return_outputs=return_outputs)

    def _logits_loss(self, inputs: Mapping, outputs: Mapping, teacher: Mapping) -> torch.Tensor:
        shifted = isinstance(self._elastic(self.model), ElasticForCausalLM)
        terms = []
        for key in PREDICTIONS:
            if key in outputs and key in teacher:
                items = counted_items(inputs, outputs[key], shifted=shifted)
                terms.append(soft_cross_entropy(outputs[key], teacher[key], items, self.args.temperature))
        return torch.stack(terms).mean()

    def _record(self, role: str, loss: torch.Tensor) -> None:
        record = self._size_losses[role]
        record[0] = record[0] + loss.detach()
        record[1] += 1

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log, with the mean loss of each role of a size since the last time."""
        if "loss" in logs:
            for role, (total, count) in self._size_losses.items():
                logs[f"loss_{role}"] = round(float(total) / count, 4)
            self._size_losses.clear()
        super().log(logs, *args, **kwargs)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluate the full size, and each of `eval_subnets` under `{prefix}_{name}_...`."""
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if several:  # each of them came through here on its own
            return metrics
        for name in self.eval_subnets:
            self.model.select(name)
            try:
                metrics.update(super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_{name}"))
            finally:
                self.model.select(None)
        return metrics


def _detach(outputs: Mapping) -> dict:
    """The predictions and hidden states of an output, without gradient."""
    kept = {key: outputs[key].detach() for key in PREDICTIONS if key in outputs}
    if outputs.get("hidden_states") is not None:
        kept["hidden_states"] = tuple(state.detach() for state in outputs["hidden_states"])
    return kept


def _check_teacher(teacher: PreTrainedModel | None, model: ElasticPreTrainedModel) -> None:
    if teacher is None:
        return
    for field in ("vocab_size", "num_labels"):
        theirs, ours = getattr(teacher.config, field), getattr(model.config, field)
        if theirs != ours:
            raise ValueError(f"the teacher's {field} is {theirs}, the model's is {ours}; they must be equal")
