"""`ElasticTrainer`: a `Trainer` whose step trains several sizes of one model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel, Trainer
from transformers.utils import is_peft_available

from ..core.errors import UserError
from ..core.layout import Cut
from ..core.modeling_elastic import ElasticForCausalLM, ElasticPreTrainedModel
from .arguments import ElasticTrainingArguments, as_user_error
from .checkpoints import CheckpointsMixin, check_adapter, last_checkpoint, restore
from .distributed import check_arguments, prepare_accelerator
from .evaluation import EvaluationMixin, full_size, names_to_evaluate, whole_of
from .gradients import SizeGradients, add_rows_in_place
from .growth import Growth
from .losses import DISTILLATION, DistillationInputs
from .precision import warn_of_slow_bf16
from .projectors import Projectors, ProjectorsMixin
from .publish import PublishMixin
from .rows import Part, RowsMixin
from .sampling import TrainedSize, check_size_weights, loss_weights, make_sampler, row_shards
from .size_losses import SizeLosses
from .teacher import Observer, Teacher, check_own_parts, detach


class ElasticTrainer(PublishMixin, CheckpointsMixin, EvaluationMixin, RowsMixin, ProjectorsMixin, Trainer):
    """Trains the sizes of an elastic model together, the smaller ones also by distillation.

    Every step draws some sizes, runs each forward and backward, and updates once. The loss is the weighted average over the
    sizes, each of `task_weight * task + sum of distillation[term] * term`; the largest learns the task alone, unless it has a
    teacher of its own.

    Args:
        model: an elastic model, or one with LoRA adapters (`peft.get_peft_model`); None with a `model_init` that makes one.
        args: `ElasticTrainingArguments`.
        *positional: as for `Trainer`.
        teacher: a model to distil from, with the same tokens and labels; None is the largest size of the step itself, detached
            (in-place distillation; with "single_path" or several processes that costs one more forward).
        **kwargs: as for `Trainer`.

    Raises:
        UserError: the model is not elastic; it is frozen at one size, with adapters or the relation term; a name, a schedule,
            the teacher or the number of relation heads does not fit; or the processes are arranged in a way that cannot work
            (see `training/distributed.py`).
    """

    def __init__(
        self,
        model: ElasticPreTrainedModel | None = None,
        args: ElasticTrainingArguments | None = None,
        *positional,
        teacher: PreTrainedModel | None = None,
        **kwargs,
    ):
        args = args or ElasticTrainingArguments(output_dir="runs")
        if not isinstance(args, ElasticTrainingArguments):
            raise UserError(f"ElasticTrainer needs ElasticTrainingArguments, got {type(args).__name__}")
        self._given_teacher = teacher
        if model is not None:
            self._set_up(model, args)
        with as_user_error(ValueError):
            super().__init__(model, args, *positional, **kwargs)
        # The labels of a step are counted for these two, and the number is passed on to the first; see compute_loss.
        self.model_accepts_loss_kwargs = self.compute_loss_func is None
        self._size_losses = SizeLosses()
        self._cosines: dict[str, float] = {}

    def _set_up(self, model: PreTrainedModel, args: ElasticTrainingArguments) -> None:
        """Find all that depends on the model and on the options of its sizes, of which each trial of a search has its own."""
        elastic = elastic_of(model)
        if not isinstance(elastic, ElasticPreTrainedModel):
            raise UserError(f"ElasticTrainer needs an elastic model, got {type(model).__name__}")
        if elastic is not model and model.active_peft_config.is_prompt_learning:
            kind = model.active_peft_config.peft_type.value
            raise UserError(f"{kind} is learned for one size, with transformers' Trainer; adapters for all come from add_lora")
        if elastic.frozen_cut is not None:
            _check_frozen(model, elastic, args)
        if elastic is not model and args.growth_cap is not None:
            raise UserError("growth_cap: adapters (LoRA) train no widths; train the weights themselves")
        self.sampler = make_sampler(elastic, args)
        check_size_weights(self.sampler, args.size_weights)
        self.observer = Observer(elastic.layout, elastic.base, args)
        if self.observer.projections is not None:
            cuts = [elastic.resolve(subnet) for subnet in (*elastic.space.extremes(), *self.sampler.named.values())]
            self.observer.projections.check_heads(args.relation_heads, cuts)
        choices = elastic.layout.choices
        check_arguments(args, ", ".join(choices) if choices.are_open else None)
        self.eval_subnets = names_to_evaluate(elastic, args)
        self.teacher = None
        if self._given_teacher is not None:
            self.teacher = Teacher(self._given_teacher, elastic, self.observer, args)
        else:
            check_own_parts(elastic.layout, args)
        projected = {} if self.teacher is None else self.teacher.projected
        if projected and args.fsdp:
            raise UserError(f"fsdp: maps to a teacher of other channels ({', '.join(projected)}) are not sharded; use DDP")
        self.projectors = Projectors(projected, args.seed).to(args.device)

    def call_model_init(self, trial=None):
        """Make a model with the user's `model_init`."""
        model = super().call_model_init(trial)
        if trial is None:  # else the options of the trial come first
            self._set_up(model, self.args)
        return model

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, and refuse one that cannot train slices of shared weights."""
        super().create_accelerator_and_postprocess()
        prepare_accelerator(self.accelerator, self.args)

    def create_scheduler(self, num_training_steps: int, *args, **kwargs):
        """Create the learning rate's schedule, and check the one of the sizes: from here on the number of steps is known."""
        self.sampler.check_steps(num_training_steps)
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def _determine_best_metric(self, *args, **kwargs) -> bool:
        with as_user_error(KeyError):  # metric_for_best_model is none of the metrics
            return super()._determine_best_metric(*args, **kwargs)

    @property
    def elastic(self) -> ElasticPreTrainedModel:
        """The elastic model, without adapters, compilers and wrappers around it."""
        return elastic_of(self.model)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as `Trainer` does; the size that was selected before is selected again afterwards.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the last complete one in `output_dir`.
            *args: as for `Trainer.train`.
            **kwargs: as for `Trainer.train`.

        Raises:
            UserError: there is no complete checkpoint, or it is of another space or another LoRA adapter.
            NotFiniteLossError: a loss is not finite; names the size and the step.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            restore(self.sampler, self.projectors, resume_from_checkpoint)
            if not self.is_fsdp_enabled:  # FSDP may keep its parts under other names
                check_adapter(self.model, resume_from_checkpoint)
        warn_of_slow_bf16(self.args)
        with nullcontext() if self.model_init else full_size(self.elastic):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _inner_training_loop(self, *args, **kwargs):
        """Train; a model of `model_init` is new, and a trial has set its options."""
        if self.model_init is not None:
            self.args.check_sizes()
            self._set_up(self.model, self.args)
            if kwargs["resume_from_checkpoint"]:
                restore(self.sampler, self.projectors, kwargs["resume_from_checkpoint"])
        self.remove_callback(Growth)  # of a trial before
        if self.sampler.growth is not None:
            self.add_callback(self.sampler.growth)
        self._size_losses = SizeLosses()  # a trial that was pruned, or a batch too large for memory, may have left some
        with full_size(self.elastic):
            return super()._inner_training_loop(*args, **kwargs)

    # --- training ----------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of every size of this step.

        Returns:
            The loss, averaged over the sizes, scaled for gradient accumulation as `Trainer` expects it.

        Raises:
            NotFiniteLossError: a loss is not finite.
        """
        model.train()
        optimizer = self.optimizer
        if hasattr(optimizer, "train") and callable(optimizer.train):  # schedule-free optimizers switch modes
            optimizer.train()
        if (every := self.args.torch_empty_cache_steps) and self.state.global_step % every == 0:
            clear_device_cache()
        inputs = self._prepare_inputs(inputs)
        elastic = self.elastic
        sizes = self._sizes(elastic)
        parts = self._parts(inputs, num_items_in_batch, [size.shard for size in sizes])
        watched = self._watches_gradients()
        gradients = SizeGradients(elastic.parameters()) if watched else None
        losses = []
        self._start_projectors()
        try:
            teacher = self._teacher_of_step(model, elastic, inputs, sizes)
            for index, (size, part) in enumerate(zip(sizes, parts)):
                # Gradients are reduced once, in the last backward of the last micro-batch.
                last = index == len(sizes) - 1 and self.accelerator.sync_gradients
                with torch.enable_grad() if last else self.accelerator.no_sync(model):
                    # The teacher of a step is its largest size, which has nothing to learn from itself.
                    own = size.role == "largest" and self.teacher is None
                    taught = None if own else teacher
                    loss, observed = self._size_loss(model, elastic, inputs, size.cut, taught, part, num_items_in_batch)
                    if own and teacher is None and self._distils:
                        teacher = detach(observed)
                    losses.append(loss.detach())
                    self.accelerator.backward(loss * (part.share * size.weight))
                if gradients is not None:
                    gradients.add(size.role)
        finally:
            elastic.select(None)
            if not model.training:
                model.train()
        self._finish_projectors()
        losses = torch.stack(losses)
        shares = torch.stack([torch.as_tensor(part.share, dtype=losses.dtype, device=losses.device) for part in parts])
        self._size_losses.add(losses, shares)
        if self.accelerator.sync_gradients:
            self._size_losses.finish_step(self.accelerator, sizes, elastic.layout, self.state.global_step)
        if gradients is not None:
            self._cosines = gradients.cosines() if self.args.gradient_cosine_steps else {}
            gradients.finish(surgery=self.args.gradient_surgery, seed=f"{self.args.seed}-{self.state.global_step}")
        return (losses * shares * torch.tensor([size.weight for size in sizes], device=losses.device)).sum()

    @property
    def _distils(self) -> bool:
        return any(self.args.distillation.values())

    def _watches_gradients(self) -> bool:
        every = self.args.gradient_cosine_steps
        return self.args.gradient_surgery != "none" or bool(every and (self.state.global_step + 1) % every == 0)

    def _sizes(self, elastic: ElasticPreTrainedModel) -> list[TrainedSize]:
        """This step's sizes. Processes reduce gradients once, in the last backward, so the largest comes last there."""
        drawn = self.sampler.draw(self.state.global_step, self.state.max_steps)
        cuts = [elastic.resolve(subnet) for _, subnet in drawn]
        shards = row_shards(drawn, self.args.split_random_rows)
        weights = loss_weights(elastic, drawn, self.args.size_weights, shards)
        sizes = [TrainedSize(role, cut, weight, shard) for (role, _), cut, weight, shard in zip(drawn, cuts, weights, shards)]
        return sizes[1:] + sizes[:1] if self.args.world_size > 1 else sizes

    def _teacher_of_step(self, model, elastic, inputs: Mapping, sizes: list[TrainedSize]) -> dict | None:
        """What the sizes of this step learn from, unless it is the largest size's own training forward."""
        if not self._distils or (self.teacher is None and sizes[0].role == "largest"):
            return None
        if self.teacher is None and all(size.role == "largest" for size in sizes):
            return None
        wanted = {key: value for key, value in inputs.items() if key not in ("labels", "start_positions", "end_positions")}
        with self.accelerator.autocast():
            if self.teacher is not None:
                return self.teacher.observe(wanted)
            elastic.select(whole_of(elastic))
            elastic.eval()
            cut = elastic.resolve(whole_of(elastic))
            # Through the wrapper: a sharded model gathers its weights there.
            with torch.no_grad(), self.observer.watch(elastic.trained_module(cut), cut) as inside:
                outputs = model(**wanted, **self.observer.options())
                observed = self.observer.observed(outputs, inside)
            elastic.train()
            return detach(observed)

    def _size_loss(self, model, elastic, inputs: Mapping, cut: Cut, teacher: dict | None, part: Part, num_items_in_batch):
        """Loss of one size, a mean over the items of its part of the micro-batch, and what it has to teach."""
        inputs, teacher = part.of(inputs), part.of(teacher)
        elastic.select(elastic.layout.subnet_of(cut))
        observer = self.observer
        # Reducers of several processes expect dense gradients, compilers fixed modules; a GPU fills memory fast enough.
        one_cpu = self.args.world_size == 1 and self.args.device.type == "cpu"
        largest = cut == elastic.resolve(whole_of(elastic))
        if one_cpu and not self.args.torch_compile and not largest:
            add_rows_in_place(elastic.trained_skeleton(cut))
        if model.training != (dropout := largest or self.args.subnet_dropout):
            model.train(dropout)
        module, growth = elastic.trained_module(cut), self.sampler.growth
        measured = nullcontext() if growth is None else growth.watch(module, cut, inputs, self.state.global_step)
        with self.compute_loss_context_manager():
            with observer.watch(module, cut) as inside, measured:
                loss, outputs = self._task_loss(model, {**inputs, **observer.options()}, part, num_items_in_batch)
            if not part.counts:  # a mean over no labels is not a number; other processes wait for a gradient all the same
                loss = (outputs["logits"] * 0).sum()
            observed = observer.observed(outputs, inside)
            if teacher is not None:
                compared = DistillationInputs(
                    batch=inputs,
                    student=observed,
                    teacher=teacher,
                    shifted=isinstance(elastic, ElasticForCausalLM),
                    temperature=self.args.temperature,
                    relation_heads=self.args.relation_heads,
                    projectors=self.projectors,
                )
                loss = self.args.task_weight * loss
                for name, weight in self.args.distillation.items():
                    if weight:
                        loss = loss + weight * DISTILLATION[name](compared)
        return loss, observed

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log, with the mean loss of each role of a size since the last time, over all processes."""
        if "loss" in logs:
            logs.update(self._size_losses.take())
            if self.sampler.growth is not None:
                logs["mean_parameters"] = self.sampler.growth.mean_size()
            logs.update({name: round(value, 4) for name, value in self._cosines.items()})
            self._cosines = {}
        super().log(logs, *args, **kwargs)


def _check_frozen(model, elastic: ElasticPreTrainedModel, args: ElasticTrainingArguments) -> None:
    """Raise UserError for what needs the layers that a model had before it was cut to one size."""
    if elastic is not model:
        raise UserError("this checkpoint is frozen at one size, which is trained without adapters (LoRA)")
    if args.distillation.get("relation"):
        raise UserError("distillation: this checkpoint is frozen at one size, which is trained without the term 'relation'")


def elastic_of(model):
    """The model that LoRA adapters were added to, or the model itself."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model.get_base_model()
    return model
