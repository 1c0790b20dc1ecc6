"""What `ElasticTrainer` puts on the Hub: our model card, and no token."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from ..utils.folders import added
from ..utils.sentence_transformers import copy_sentence_modules
from ..utils.tokenizer import make_tokenizer_portable
from .arguments import ElasticTrainingArguments

CARD = "README.md"
# Options that say how a model was trained, as far as they differ from their defaults.
PUBLISHED = (
    "sampling", "num_random_subnets", "train_subnets", "size_weights", "progressive_schedule", "task_weight", "distillation",
    "temperature", "relation_heads", "growth_cap", "growth_width", "growth_steps", "growth_pairs", "growth_measure_steps",
    "growth_variance", "growth_need", "gradient_surgery", "learning_rate", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "warmup_steps", "warmup_ratio", "weight_decay",
    "lr_scheduler_type", "optim", "label_smoothing_factor", "bf16", "fp16", "seed",
)  # fmt: skip


class PublishMixin:
    """`create_model_card` and saving of a `Trainer`; needs `elastic`."""

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the model card to `output_dir`, unless somebody wrote one there; arguments as for `Trainer`.

        An adapter gets peft's. `tasks`, `dataset_args` and `model_name` say nothing that the model does not.
        """
        if self.elastic is not self.model:
            super().create_model_card(
                language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
            )
            return
        if not self.is_world_process_zero():
            return
        known = {"base_model": finetuned_from, "license": license}
        self.elastic.write_card(
            self.args.output_dir,
            self.hub_model_id or model_name or str(self.args.output_dir),
            metrics={key: value for entry in self.state.log_history for key, value in entry.items() if key.startswith("eval_")},
            recipe=published_arguments(self.args),
            language=_as_list(language),
            tags=_as_list(tags),
            datasets=_as_list(dataset_tags) or _as_list(dataset),
            **{key: value for key, value in known.items() if value is not None},
        )

    def _save(self, output_dir: str | None = None, *args, **kwargs) -> None:
        """Trainer pickles its arguments beside the weights, the token for the Hub with them. Its tokenizer is for one major."""
        token, self.args.hub_token = self.args.hub_token, None
        folder = Path(output_dir or self.args.output_dir)
        try:
            with added(folder) as staging:
                if (folder / CARD).is_file():  # peft adds to a card that is there
                    shutil.copy(folder / CARD, staging)
                super()._save(str(staging), *args, **kwargs)
                make_tokenizer_portable(staging)
                if self.elastic is self.model:
                    copy_sentence_modules(self.elastic, staging)
        finally:
            self.args.hub_token = token


def published_arguments(args: ElasticTrainingArguments) -> dict:
    """The options in `PUBLISHED` that are not at their default, with values that YAML can hold."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    values = args.to_dict()
    return {name: values[name] for name in PUBLISHED if name in values and values[name] not in (None, defaults.get(name))}


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
