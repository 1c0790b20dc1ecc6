"""What a checkpoint needs beside Trainer's own files, and which checkpoint is whole."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME

from ..core.errors import UserError
from ..utils.files import write_atomically
from .projectors import Projectors
from .sampling import Sampler

# Written last and deleted first: a checkpoint without it was interrupted.
SAMPLER_FILE = "sampler.json"


class CheckpointsMixin:
    """Saving of a `Trainer` that a kill at any moment leaves with a whole checkpoint; needs `sampler` and `projectors`."""

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint, and delete old ones only when every process has written its part of the new one."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            mark_incomplete(folder)
        if self.sampler.growth is not None:
            self.sampler.growth.gather(self.args.device)
        self.accelerator.wait_for_everyone()
        # Trainer would delete the old ones as soon as the first process has written its part.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.projectors.save(folder)
            mark_complete(folder, self.sampler)
            delete_old(str(folder.parent), limit, self.state.best_model_checkpoint)

    def _load_best_model(self) -> None:
        """Load the best checkpoint, which knows how far its widths had grown."""
        super()._load_best_model()
        restore(self.sampler, self.projectors, self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole supernet as `Trainer` does, also where FSDP keeps its checkpoints in parts."""
        super().save_model(output_dir, _internal_call)
        if not self.is_fsdp_enabled or _internal_call:
            return
        if "SHARDED_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))


def checkpoints(output_dir: str) -> list[Path]:
    """The checkpoints in a folder, whole or not, the oldest first."""
    found = {
        int(match[1]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }
    return [found[step] for step in sorted(found)]


def is_complete(checkpoint: str | Path) -> bool:
    """Whether every process had written its part."""
    return (Path(checkpoint) / SAMPLER_FILE).is_file()


def mark_complete(checkpoint: str | Path, sampler: Sampler) -> None:
    """Save the sampler, which says that all else is there."""
    content = {"seed": sampler.seed, "space": sampler.space.to_dict()}
    if sampler.growth is not None:
        content["growth"] = sampler.growth.state()
    write_atomically(Path(checkpoint) / SAMPLER_FILE, json.dumps(content, indent=2) + "\n")


def mark_incomplete(checkpoint: str | Path) -> None:
    """Before a checkpoint is written again or deleted: what is in between must not pass for whole."""
    (Path(checkpoint) / SAMPLER_FILE).unlink(missing_ok=True)


def delete_old(output_dir: str, limit: int | None, keep: str | None) -> None:
    """Delete all but the newest whole checkpoints, and what interrupted runs left before them.

    Args:
        output_dir: their folder.
        limit: how many to keep; None is all.
        keep: one that stays whatever its age, such as the best.
    """
    if limit is None or limit < 1:
        return
    found = checkpoints(output_dir)
    newest = [path for path in found if is_complete(path)][-limit:]
    kept = {path.resolve() for path in newest} | ({Path(keep).resolve()} if keep else set())
    for path in found[: found.index(newest[-1])] if newest else []:
        if path.resolve() not in kept:
            mark_incomplete(path)
            shutil.rmtree(path, ignore_errors=True)


def last_checkpoint(output_dir: str) -> str:
    """The newest whole checkpoint in a folder: a process killed while it wrote one leaves it incomplete.

    Raises:
        UserError: there is none.
    """
    found = [path for path in checkpoints(output_dir) if is_complete(path)]
    if not found:
        raise UserError(f"resume_from_checkpoint: {output_dir} has no complete checkpoint")
    return str(found[-1])


# What decides which tensors an adapter has, and what they mean.
ADAPTER_FIELDS = ("r", "lora_alpha", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "use_rslora")


def check_adapter(model: nn.Module, checkpoint: str) -> None:
    """Raise UserError if a checkpoint has another LoRA adapter than the model, or only one of them has any."""
    configs = list(getattr(model, "peft_config", {}).values())
    stored = Path(checkpoint) / ADAPTER_CONFIG_NAME
    if len(configs) > 1:
        return  # peft keeps each in a folder of its own, and says itself what does not fit
    if bool(configs) != stored.is_file():
        kinds = ("all weights", "a LoRA adapter alone")
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} is of a training of {kinds[not configs]}, and this is one of "
            f"{kinds[bool(configs)]}; the same lora is needed"
        )
    if not configs:
        return
    theirs, ours = json.loads(stored.read_text(encoding="utf-8")), configs[0].to_dict()
    for field in ADAPTER_FIELDS:
        one, other = (sorted(v) if isinstance(v, (list, set)) else v for v in (theirs.get(field), ours.get(field)))
        if one != other:
            raise UserError(f"resume_from_checkpoint: {checkpoint} was trained with lora {field} {one}, not {other}")


def restore(sampler: Sampler, projectors: Projectors, checkpoint: str) -> None:
    """Go on drawing what the interrupted run would have drawn, with the projectors as they were.

    Raises:
        UserError: the folder is no checkpoint of an elastic training, or one of another space, growth, teacher or terms.
    """
    path = Path(checkpoint) / SAMPLER_FILE
    if not path.is_file():
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} is not a complete checkpoint of an elastic training: no {path.name}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        space, seed = content["space"], content["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"resume_from_checkpoint: {path} is damaged: {error!r}") from error
    if space != sampler.space.to_dict():
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} was trained in another space: {space}, not {sampler.space.to_dict()}"
        )
    growth = content.get("growth")
    if (growth is None) != (sampler.growth is None):
        cap = None if growth is None else growth["recipe"]["growth_cap"]
        raise UserError(f"resume_from_checkpoint: {checkpoint} was trained with growth_cap {cap}; the same is needed")
    if growth is not None:
        sampler.growth.restore(growth, checkpoint)
    projectors.load(checkpoint)
    sampler.seed = seed
