"""What a search has found out, in an Optuna study that outlives a killed process and that many processes share."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from ..core.errors import UserError
from ..core.space import Subnet
from .objectives import Objective
from .storage import open_storage

SUBNET, WHY, OVER, IDENTITY = "subnet", "why", "over", "identity"
IDENTITY_SECONDS = 10  # how long the process that made a study may take to write what it is of


@dataclass
class Entry:
    """All trials of one subnet.

    Attributes:
        current: the first trial that was not given up; None if all were.
        values: by kind, from any of the trials.
    """

    current: FrozenTrial | None = None
    values: dict[str, dict] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether all is known: its values, or why it has none."""
        return self.current is not None and self.current.state.is_finished()

    @property
    def is_free(self) -> bool:
        """Whether it waits for somebody to evaluate it: nobody has begun, or who had was killed."""
        return self.current is None or self.current.state == TrialState.WAITING


class Study:
    """One trial per subnet, with its values by kind ("quality", "latency", "memory") as user attributes.

    A subnet is claimed before it is evaluated: a waiting trial is written, and of all trials of the subnet the one with the
    lowest number counts, which every process finds to be the same. Whoever turns that one from waiting to running, which the
    database lets one process do only, evaluates it. A thread keeps the claims alive; those of a process that was killed fail
    when they have not been heard of for `stale_after` seconds, and are free again, with the values that were known already.

    Args:
        place: where, as for `open_storage`.
        name: of the study; a storage may have many.
        identity: what the values depend on, JSON by name. A study of another identity is refused.
        objectives: of the study.
        stale_after: seconds.

    Raises:
        ValueError: the storage cannot be used, or the study belongs to another search.
        ImportError: a driver is not installed.
    """

    def __init__(
        self,
        place: str | os.PathLike | None,
        name: str,
        identity: Mapping[str, object],
        objectives: Sequence[Objective],
        stale_after: int,
    ):
        self._storage: BaseStorage = open_storage(place, stale_after)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=[objective.direction for objective in objectives],
            load_if_exists=True,
        )
        self._id = self._storage.get_study_id_from_name(name)
        self._entries: dict[str, Entry] = {}
        self._mine: dict[str, int] = {}  # key -> trial
        self._stop = threading.Event()
        self._check_identity(place, name, json.loads(json.dumps(identity)))
        self._beats = isinstance(self._storage, RDBStorage)
        if self._beats:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        self.refresh()

    def _check_identity(self, place: object, name: str, identity: dict) -> None:
        """Write the identity into a new study, or compare it with that of an old one."""
        deadline = time.monotonic() + IDENTITY_SECONDS
        if not self._study.get_trials(deepcopy=False) and IDENTITY not in self._study.user_attrs:
            self._study.set_user_attr(IDENTITY, identity)
        while (stored := self._study.user_attrs.get(IDENTITY)) is None:
            if time.monotonic() > deadline:
                raise UserError(f"storage {place}: study {name!r} is not one of hf_elastic; give another study_name")
            time.sleep(0.1)
        names = [key for key in {**stored, **identity} if stored.get(key) != identity.get(key)]
        if names:
            differences = "; ".join(f"{n} was {json.dumps(stored.get(n))}, is {json.dumps(identity.get(n))}" for n in names)
            raise UserError(
                f"storage {place}: study {name!r} belongs to another search ({differences}); "
                "use another storage or study_name, or delete it"
            )

    def refresh(self) -> None:
        """Read what other processes wrote, and give up the claims that are stale."""
        if self._beats:
            optuna.storages.fail_stale_trials(self._study)
        entries: dict[str, Entry] = {}
        for trial in self._study.get_trials(deepcopy=False):
            key = trial.user_attrs.get(SUBNET)
            if key is None or OVER in trial.user_attrs:
                continue
            entry = entries.setdefault(key, Entry())
            entry.values.update({kind: value for kind, value in trial.user_attrs.items() if kind not in (SUBNET, WHY)})
            was_given_up = trial.state == TrialState.FAIL and WHY not in trial.user_attrs
            if entry.current is None and not was_given_up:
                entry.current = trial
        for key, entry in self._entries.items():  # a value that was put when the trial had ended is known here only
            if key in entries:
                entries[key].values = {**entry.values, **entries[key].values}
        self._entries = entries

    def claim(self, subnets: Sequence[Subnet], most: int | None = None) -> list[Subnet]:
        """Those of the subnets that this process, and no other, is to evaluate now.

        Args:
            subnets: each once.
            most: subnets that the study may have in all, in the order of their first trials; None is no limit.
        """
        self.refresh()
        wanted = [key for key in map(_key, subnets) if key not in self._entries or self._entries[key].is_free]
        made = {key: self._wait_in_line(key) for key in wanted if not self._has_trial(key)}
        self.refresh()
        within = set(list(self._entries)[:most])
        claimed = []
        for key in wanted:
            if key in within and self._take(key, self._entries[key].current):
                claimed.append(key)
            # What was taken may be what another process had put in line, a moment before this one's own.
            if key in made and self._mine.get(key) != made[key]:
                self._step_back(made[key], is_over=key not in within)
                if key not in within:
                    del self._entries[key]
        return [Subnet(json.loads(key)) for key in claimed]

    def _has_trial(self, key: str) -> bool:
        return key in self._entries and self._entries[key].current is not None

    def _wait_in_line(self, key: str) -> int:
        template = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs={SUBNET: key})
        trial = self._storage.create_new_trial(self._id, template)
        if self._beats:  # before it runs: a process that is killed in between leaves no claim that nobody can see is stale
            self._storage.record_heartbeat(trial)
        return trial

    def _step_back(self, trial: int, is_over: bool) -> None:
        """Give up a trial that this process made and cannot have: it is one too many, or another process has the subnet."""
        # Another process may be taking this very trial, so that only one that nobody has is given up.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            if self._storage.set_trial_state_values(trial, TrialState.RUNNING):
                if is_over:
                    self._storage.set_trial_user_attr(trial, OVER, True)
                self._give_up(trial)

    def _take(self, key: str, trial: FrozenTrial | None) -> bool:
        """Turn a waiting trial into a running one; False if another process was faster."""
        if trial is None or trial.state != TrialState.WAITING:
            return False
        identifier = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        if self._beats:
            self._storage.record_heartbeat(identifier)
        try:
            is_mine = self._storage.set_trial_state_values(identifier, TrialState.RUNNING)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        if is_mine:
            self._mine[key] = identifier
        return is_mine

    def _give_up(self, trial: int) -> None:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial, TrialState.FAIL)

    def _beat(self) -> None:
        while not self._stop.wait(self._storage.get_heartbeat_interval()):
            for trial in list(self._mine.values()):
                # A server that is away for a moment must not end the thread; the next beat tries again.
                with contextlib.suppress(Exception):
                    self._storage.record_heartbeat(trial)

    def get(self, subnet: Subnet, kind: str) -> dict | None:
        """What was put, or None."""
        entry = self._entries.get(_key(subnet))
        return None if entry is None else entry.values.get(kind)

    def put(self, kind: str, values: Mapping[Subnet, dict]) -> None:
        """Keep values of subnets; in the storage, if they are claimed."""
        for subnet, value in values.items():
            key = _key(subnet)
            if key in self._entries:
                self._entries[key].values[kind] = value
            if key in self._mine:
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._storage.set_trial_user_attr(self._mine[key], kind, value)

    def finish(self, subnet: Subnet, costs: Sequence[float] | None, why: str | None = None) -> None:
        """A claimed subnet is evaluated.

        Args:
            subnet: claimed by this process.
            costs: the objectives; None marks the trial as failed.
            why: why there are none.
        """
        trial = self._mine.pop(_key(subnet))
        # A process that slept longer than its claims were valid has lost this one: what counts is what the next one finds.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            if costs is not None:
                self._storage.set_trial_state_values(trial, TrialState.COMPLETE, list(costs))
                return
            self._storage.set_trial_user_attr(trial, WHY, why)
            self._storage.set_trial_state_values(trial, TrialState.FAIL)

    def finished(self) -> Iterator[tuple[Subnet, str | None]]:
        """Every evaluated subnet, in the order of their claims, and why it failed, if it did."""
        for key, entry in self._entries.items():
            if entry.is_finished:
                yield Subnet(json.loads(key)), entry.current.user_attrs.get(WHY)

    def free(self, most: int) -> list[Subnet]:
        """Which of the first `most` subnets somebody wanted and nobody evaluates."""
        return [Subnet(json.loads(key)) for key, entry in self._first(most) if entry.is_free]

    def is_complete(self, most: int) -> bool:
        """Whether the first `most` subnets are evaluated, as far as there are so many."""
        return all(entry.is_finished for _, entry in self._first(most))

    def _first(self, most: int) -> list[tuple[str, Entry]]:
        return list(self._entries.items())[:most]

    def __len__(self) -> int:
        """Subnets that are evaluated, claimed, or free."""
        return len(self._entries)

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have what is claimed and not evaluated, and let go of the storage."""
        self._stop.set()
        if self._beats:
            self._thread.join()
        for trial in self._mine.values():
            self._give_up(trial)
        self._mine.clear()
        if self._beats:
            self._storage.remove_session()
            self._storage.engine.dispose()


def _key(subnet: Subnet) -> str:
    return json.dumps(subnet.to_dict(), sort_keys=True)
