"""EleutherAI's lm-eval, which does the scoring: its tasks from our files, and its model class around one size."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..core.errors import MissingPackageError, UserError
from .candidates import Candidate
from .suite import TaskFile

try:
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    message = f"evaluating needs {error.name or error}, which is not installed: run pip install 'hf-elastic[evaluate]'"
    raise MissingPackageError(message) from error

SEED = 1234  # lm-eval's own default
VERSION = lm_eval.__version__


@dataclass(frozen=True)
class Score:
    """What one size scored on one task.

    Attributes:
        value: the task's metric, between 0 and 1.
        stderr: its standard error; None for a single item.
        items: how many were asked.
        truncated: how many requests (an item has one for each choice) were cut, being longer than the model's input.
        metrics: every metric of the task, and its standard error as `<metric>_stderr`.
    """

    value: float
    stderr: float | None
    items: int
    truncated: int
    metrics: dict[str, float | None]


class CandidateLM(HFLM):
    """lm-eval's model class around one candidate, counting what does not fit its input.

    Args:
        candidate: the size.
        tokenizer: its tokenizer.
        batch_size: requests per forward.
    """

    def __init__(self, candidate: Candidate, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        with quiet():  # it warns of what it was not asked to do
            super().__init__(pretrained=candidate.model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.generates = candidate.generates
        self.truncated = 0

    def _loglikelihood_tokens(self, requests, *args, **kwargs) -> list[tuple[float, bool]]:
        """As lm-eval, which cuts a context from the left, but an answer longer than the model's input counts by its beginning."""
        self.truncated += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
        fitting = [(texts, context, answer[: self.max_length]) for texts, context, answer in requests]
        return super()._loglikelihood_tokens(fitting, *args, **kwargs)

    def generate_until(self, requests: list[Instance], *args, **kwargs) -> list[str]:
        """Greedy text up to a stop; raises UserError if the model cannot generate, or has no room for an answer."""
        if not self.generates:
            raise UserError("it generates text, which an exported graph does not; leave it out, or give the checkpoint")
        for request in requests:
            prompt, options = request.args
            room = self.max_length - options["max_gen_toks"]
            if room < 1:
                raise UserError(f"answers of {options['max_gen_toks']} tokens, and the model takes {self.max_length} in all")
            self.truncated += len(self.tok_encode(prompt)) > room
        return super().generate_until(requests, *args, **kwargs)


def load_task(file: TaskFile, num_fewshot: int = 0) -> Task:
    """Make an lm-eval task and read its data.

    Raises:
        UserError: it has no more items than shots.
    """
    with quiet():
        loaded = TaskManager(include_defaults=False).load([file.config])["tasks"][file.name]
    if num_fewshot >= len(loaded.eval_docs):
        raise UserError(f"num_fewshot: {file.name} has {len(loaded.eval_docs)} items, too few for {num_fewshot} shots")
    loaded.set_config(key="num_fewshot", value=num_fewshot)
    return loaded


def run_task(file: TaskFile, task: Task, model: CandidateLM, limit: int | None = None) -> Score:
    """Score one size on one task.

    The shots are drawn with the same seed every time, so that every size gets the same ones; lm-eval never takes the item itself.

    Args:
        file: the task's file.
        task: from `load_task`.
        model: the size.
        limit: only so many items, the first ones.

    Raises:
        UserError: the model cannot run the task.
    """
    task.set_fewshot_seed(SEED)
    model.truncated = 0
    try:
        with quiet():
            found = lm_eval.evaluate(model, {"tasks": {file.name: task}}, limit=limit, log_samples=False)
    except ValueError as error:
        raise UserError(f"{file.name}: {error}") from error
    # lm-eval's keys are "<metric>,<filter>", and a standard error that is not defined is "N/A".
    entries = {key.partition(",")[0]: value for key, value in found["results"][file.name].items() if "," in key}
    metrics = {name: float(value) if isinstance(value, (int, float)) else None for name, value in entries.items()}
    items = found["n-samples"][file.name]["effective"]
    return Score(metrics[file.metric], metrics[f"{file.metric}_stderr"], items, model.truncated, metrics)


def chance(task: Task, limit: int | None = None) -> float:
    """Expected accuracy of a guess: one over the number of choices, over the items that are asked; 0 where there is no choice."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    asked = task.eval_docs.select(range(min(limit or len(task.eval_docs), len(task.eval_docs))))
    return sum(1 / len(task.doc_to_choice(item)) for item in asked) / len(asked)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings of lm-eval and transformers, none asks for an action, and bars where they would fill a file."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
