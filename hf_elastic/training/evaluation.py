"""Evaluation of every size at once, and what a search for hyperparameters makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, has_length

from ..core.modeling_elastic import ElasticPreTrainedModel
from .arguments import ElasticTrainingArguments

# Metrics that Trainer adds to those of the data, by the end of their names.
BOOKKEEPING = ("_runtime", "_per_second", "_model_preparation_time", "_compilation_time", "epoch")


def whole_of(elastic: ElasticPreTrainedModel) -> str | None:
    """The size that has all that is trained: the full one, or the largest of the space while the full one is still to grow."""
    return "largest" if elastic.config.grown else None


@contextmanager
def full_size(elastic: ElasticPreTrainedModel) -> Iterator[None]:
    """Select the whole of what is trained within; the size that was selected before is selected again afterwards."""
    selected = elastic.config.subnet
    elastic.select(whole_of(elastic))
    try:
        yield
    finally:
        elastic.select(selected)


class EvaluationMixin(Trainer):
    """Evaluation and search of a `Trainer` of many sizes; needs `elastic` and `eval_subnets`."""

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer`'s, of the selected size for `predict`, and of the full size and each of `eval_subnets` for `evaluate`.

        Whichever size was selected is selected again afterwards.

        Returns:
            What the full size gives; the metrics also have those of the other sizes, under `{prefix}_{name}_...`, and the
            samples are counted once for each size.
        """
        options = (prediction_loss_only, ignore_keys)
        if description == "Prediction":
            self._name_bar(self.elastic.config.subnet, dataloader)
            return super().evaluation_loop(dataloader, description, *options, metric_key_prefix)
        with full_size(self.elastic):
            self._name_bar(None, dataloader)
            output = super().evaluation_loop(dataloader, f"{description} of the full size", *options, metric_key_prefix)
            metrics = dict(output.metrics)
            for name in self.eval_subnets:
                self.elastic.select(name)
                self._name_bar(name, dataloader)
                prefix = f"{metric_key_prefix}_{name}"
                of_size = super().evaluation_loop(dataloader, f"{description} of {name}", *options, prefix).metrics
                metrics.update({key: value for key, value in of_size.items() if not key.endswith(BOOKKEEPING)})
        return output._replace(metrics=metrics, num_samples=output.num_samples * (1 + len(self.eval_subnets)))

    def _name_bar(self, subnet: str | Mapping | None, dataloader: DataLoader) -> None:
        """Start the progress bar of a size, which Trainer would start without a name."""
        if not (self.state.is_world_process_zero and has_length(dataloader)):
            return
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                if callback.prediction_bar is not None:
                    callback.prediction_bar.close()
                is_kept = callback.training_bar is None
                name = str(subnet or "full")
                callback.prediction_bar = tqdm(total=len(dataloader), desc=name, leave=is_kept, dynamic_ncols=True)

    def hyperparameter_search(self, hp_space=None, compute_objective=None, *args, **kwargs):
        """As `Trainer`'s; options of `ElasticTrainingArguments` may be in `hp_space`, too.

        Args:
            hp_space: as for `Trainer`.
            compute_objective: as for `Trainer`; default: `mean_objective`.
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.
        """
        return super().hyperparameter_search(hp_space, compute_objective or mean_objective, *args, **kwargs)


def mean_objective(metrics: Mapping[str, float]) -> float:
    """The mean over the evaluated sizes of the sum of a size's metrics, or of its loss where there are none."""
    found = {key: value for key, value in metrics.items() if not key.endswith(BOOKKEEPING)}
    losses = [value for key, value in found.items() if key.endswith("_loss")]
    others = [value for key, value in found.items() if not key.endswith("_loss")]
    return sum(others or losses) / max(1, len(losses))


def names_to_evaluate(elastic: ElasticPreTrainedModel, args: ElasticTrainingArguments) -> list[str]:
    """The sizes to evaluate beside the full one.

    Raises:
        UserError: an unknown name.
    """
    names = args.eval_subnets
    if names is None:
        names = args.train_subnets or [*(["smallest"] if elastic.space.size > 1 else []), *elastic.config.subnets]
    for name in names:
        elastic.resolve(name)
    return list(names)
