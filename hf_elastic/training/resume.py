"""What a checkpoint needs beside Trainer's own files, and which checkpoint is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

from transformers import TrainerCallback

from ..files import write_atomically
from .sampling import Sampler

# Written last: a checkpoint without it was interrupted.
SAMPLER_FILE = "sampler.json"


class SamplerCallback(TrainerCallback):
    """Saves the sampler with every checkpoint and checks its schedule when the number of steps is known."""

    def __init__(self, sampler: Sampler, accelerator):
        self.sampler = sampler
        self.accelerator = accelerator

    def on_train_begin(self, args, state, control, **kwargs):
        """Check the schedule against the steps."""
        self.sampler.check_steps(state.max_steps)

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint as whole, once every process has written its part."""
        self.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            content = {"seed": self.sampler.seed, "space": self.sampler.space.to_dict()}
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / SAMPLER_FILE, json.dumps(content, indent=2) + "\n")


def last_checkpoint(output_dir: str) -> str:
    """The newest whole checkpoint in a folder: a process killed while it wrote one leaves it incomplete.

    Raises:
        ValueError: there is none.
    """
    found = {
        int(match[1]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / SAMPLER_FILE).is_file()
    }
    if not found:
        raise ValueError(f"resume_from_checkpoint: {output_dir} has no complete checkpoint")
    return str(found[max(found)])


def restore(sampler: Sampler, checkpoint: str) -> None:
    """Go on drawing what the interrupted run would have drawn.

    Raises:
        ValueError: the folder is no checkpoint of an elastic training, or one of another space.
    """
    path = Path(checkpoint) / SAMPLER_FILE
    if not path.is_file():
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is not a complete checkpoint of an elastic training: no {path.name}"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["space"] != sampler.space.to_dict():
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} was trained in another space: {content['space']}, "
            f"not {sampler.space.to_dict()}"
        )
    sampler.seed = content["seed"]
