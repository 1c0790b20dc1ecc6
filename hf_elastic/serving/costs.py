"""What a batch costs at each size: measured profiles, and predictions from them that learn from what is observed."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..core.errors import UserError
from ..utils.files import reading, write_atomically
from ..utils.options import check_integers

OWN_WEIGHT = 0.1  # of one observation in the correction of its size
OTHERS_WEIGHT = 0.02  # in the correction of every other size
LARGEST_CORRECTION = 8.0


@dataclass(frozen=True)
class SizeProfile:
    """What one size costs and is worth.

    Attributes:
        name: of the size.
        quality: measured on the task, in any unit, larger is better; None where it was not measured.
        flops: of one sequence of the longest profiled length.
        seconds: median of one call, `[batch size][length]` as in the profile.
    """

    name: str
    quality: float | None
    flops: int
    seconds: list[list[float]]


@dataclass(frozen=True)
class ServingProfile:
    """Measured costs of all sizes of one model, with one backend on one machine.

    Attributes:
        model: digest of the model.
        backend: what ran it, such as torch, onnx or onnx-int8.
        device: where, such as cpu.
        threads: of one call.
        batch_sizes: sequences per call that were measured, ascending.
        lengths: tokens per sequence that were measured, ascending.
        sizes: the largest first.

    Raises:
        UserError: a value that is not allowed.
    """

    model: str
    backend: str
    device: str
    threads: int
    batch_sizes: list[int]
    lengths: list[int]
    sizes: list[SizeProfile]

    def __post_init__(self):
        check_integers(1, threads=self.threads)
        for name, grid in (("batch_sizes", self.batch_sizes), ("lengths", self.lengths)):
            check_integers(1, **{f"value {value!r} of {name}": value for value in grid})
            if not grid or any(before >= after for before, after in pairwise(grid)):
                raise UserError(f"{name} must be one or more ascending numbers, got {grid}")
        names = [size.name for size in self.sizes]
        if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise UserError(f"sizes must be one or more with different names, got {names}")
        if any(before.flops < after.flops for before, after in pairwise(self.sizes)):
            raise UserError(f"sizes must be ordered from the largest to the smallest by flops, got {names}")
        for size in self.sizes:
            shape = (len(self.batch_sizes), len(self.lengths))
            if len(size.seconds) != shape[0] or any(len(row) != shape[1] for row in size.seconds):
                raise UserError(f"seconds of {size.name} must have the shape {list(shape)}")
            if not all(_is_number(value) and value > 0 for row in size.seconds for value in row):
                raise UserError(f"seconds of {size.name} must be positive numbers")
            if size.quality is not None and not _is_number(size.quality):
                raise UserError(f"quality of {size.name} must be a number or null, got {size.quality!r}")

    @property
    def names(self) -> list[str]:
        """Of the sizes, the largest first."""
        return [size.name for size in self.sizes]

    def check(self, **expected: object) -> None:
        """Refuse a profile of something else.

        Args:
            expected: any of the fields `model`, `backend`, `device`, `threads`, by name.

        Raises:
            UserError: names what differs, there and here.
        """
        for name, value in expected.items():
            found = getattr(self, name)
            if found != value:
                raise UserError(f"the serving profile was measured with {name} {found!r}, here it is {value!r}; measure again")

    def with_qualities(self, qualities: Mapping[str, float]) -> ServingProfile:
        """The same profile, with other qualities for some of the sizes."""
        return replace(self, sizes=[replace(size, quality=qualities.get(size.name, size.quality)) for size in self.sizes])

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON."""
        write_atomically(Path(path), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> ServingProfile:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged or of another kind.
        """
        with reading(path, "serving profile", "is not a serving profile"):
            data = json.loads(Path(path).read_bytes())
            if data.keys() != cls.__dataclass_fields__.keys():
                raise UserError(f"its keys must be {', '.join(cls.__dataclass_fields__)}")
            return cls(**{**data, "sizes": [SizeProfile(**size) for size in data["sizes"]]})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class CostModel:
    """Predicts the seconds of a batch at a size.

    Within the measured grid it interpolates linearly, in the batch size and in the length. Below the grid it says the first
    value, beyond it the last one in proportion. A measured value that is smaller than that of a smaller batch or a shorter
    length is noise, and raised to it: a prediction never falls when the batch or the length grows.

    What is observed corrects it: each size has a factor, the exponential mean of observed / predicted. The factors of the other
    sizes follow more slowly: what slows one size down (another process, heat) slows all, and a size that is not chosen
    because it was slow once would otherwise never be tried again.

    Args:
        profile: measured costs.
    """

    def __init__(self, profile: ServingProfile):
        self.profile = profile
        self.correction = dict.fromkeys(profile.names, 1.0)
        self._grids = {size.name: _rising(size.seconds) for size in profile.sizes}
        self._known: dict[str, dict[tuple[int, int], float]] = {name: {} for name in profile.names}

    def seconds(self, subnet: str, batch: int, length: int) -> float:
        """Predicted duration of one call.

        Args:
            subnet: name of the size.
            batch: sequences, at least 1.
            length: tokens of the longest, at least 1.
        """
        known = self._known[subnet]
        found = known.get((batch, length))
        if found is None:
            found = self._from_grid(self._grids[subnet], batch, length)
            if batch <= self.profile.batch_sizes[-1]:  # the rest may be without end
                known[batch, length] = found
        return found * self.correction[subnet]

    def least_seconds(self, subnet: str, length: int) -> float:
        """Predicted duration of one sequence in a batch of the best size, with no padding."""
        known = self._known[subnet]
        found = known.get((0, length))
        if found is None:  # between two measured batch sizes it lies between their values
            found = min(self.seconds(subnet, batch, length) / batch for batch in self.profile.batch_sizes)
            found = known[0, length] = found / self.correction[subnet]
        return found * self.correction[subnet]

    def _from_grid(self, grid: Sequence[Sequence[float]], batch: int, length: int) -> float:
        row, rest, many = _place(self.profile.batch_sizes, batch)
        column, share, long = _place(self.profile.lengths, length)
        lower, upper = (line[column] + share * (line[min(column + 1, len(line) - 1)] - line[column])
                        for line in (grid[row], grid[min(row + 1, len(grid) - 1)]))  # fmt: skip
        return (lower + rest * (upper - lower)) * many * long

    def observe(self, subnet: str, batch: int, length: int, seconds: float) -> None:
        """Learn from the duration of one call."""
        predicted = self.seconds(subnet, batch, length) / self.correction[subnet]
        ratio = min(max(seconds / predicted, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)
        for name in self.correction:
            weight = OWN_WEIGHT if name == subnet else OTHERS_WEIGHT
            self.correction[name] += weight * (ratio - self.correction[name])


def _place(grid: Sequence[int], value: int) -> tuple[int, float, float]:
    """Where a value lies: index of the grid value below, share of the way to the next, and the factor beyond the last."""
    if value >= grid[-1]:
        return len(grid) - 1, 0.0, value / grid[-1]
    if value <= grid[0]:
        return 0, 0.0, 1.0
    index = bisect_right(grid, value) - 1
    return index, (value - grid[index]) / (grid[index + 1] - grid[index]), 1.0


def _rising(grid: Sequence[Sequence[float]]) -> list[list[float]]:
    """The grid with each value at least that of its neighbours before it."""
    found = [list(row) for row in grid]
    for row, line in enumerate(found):
        for column in range(len(line)):
            above = found[row - 1][column] if row else 0.0
            left = line[column - 1] if column else 0.0
            line[column] = max(line[column], above, left)
    return found
