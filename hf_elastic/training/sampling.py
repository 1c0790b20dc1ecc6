"""Which sizes are trained in a step."""

from __future__ import annotations

import random

from ..space import Space, Subnet

SAMPLING = ("sandwich", "all", "single_path")

# `all` trains every size in every step; beyond this many a step would hardly end.
MOST_AT_ONCE = 64


def sizes_of_step(space: Space, sampling: str, num_random: int, seed: int, step: int) -> list[tuple[str, Subnet]]:
    """The sizes of one optimizer step, the largest first.

    The draw depends on `seed` and `step` alone: every process and every micro-batch of the step trains the same sizes, and a
    resumed run draws what the uninterrupted one would have drawn.

    Args:
        space: where sizes come from.
        sampling: "sandwich" (largest, smallest and `num_random` others; Yu & Huang 2019, "Universally Slimmable Networks",
            the sandwich rule), "all" (every size; ElasticLM), "single_path" (one uniform size).
        num_random: random sizes per sandwich step.
        seed: of the run.
        step: number of optimizer steps already done.

    Returns:
        (role, subnet) pairs; the role is "largest", "smallest", "random", or with "all" the subnet's index.

    Raises:
        ValueError: an unknown `sampling`, or "all" with more than 64 sizes.
    """
    if sampling == "all":
        if len(space) > MOST_AT_ONCE:
            raise ValueError(f"sampling: 'all' with {len(space)} sizes; at most {MOST_AT_ONCE}, or use 'sandwich'")
        others = [subnet for subnet in space.enumerate() if subnet != space.largest]
        return [("largest", space.largest), *((f"size_{index}", subnet) for index, subnet in enumerate(others, 1))]
    generator = random.Random(f"{seed}-{step}")
    if sampling == "single_path":
        return [("random", space.sample(generator))]
    if sampling != "sandwich":
        raise ValueError(f"sampling: {sampling!r} is unknown; known: {', '.join(SAMPLING)}")
    sizes = [("largest", space.largest)]
    sizes += [("random", space.sample(generator)) for _ in range(num_random)]
    return [*sizes, ("smallest", space.smallest)] if len(space) > 1 else sizes[:1]
