"""Profiles whose every duration can be worked out by hand."""

from hf_elastic.serving.costs import CostModel, ServingProfile, SizeProfile
from hf_elastic.serving.scheduler import Request

BATCH_SIZES, LENGTHS = [1, 2, 4, 8, 16, 32], [10, 20, 40]
# Name, quality, milliseconds for each sequence of ten tokens; each call takes one millisecond beside.
SIZES = (("full", 0.9, 10.0), ("half", 0.8, 5.0), ("tiny", 0.6, 1.0))


def profile(sizes=SIZES, fixed=1.0) -> ServingProfile:
    """Durations that grow linearly with the tokens of the batch."""
    found = [
        SizeProfile(
            name,
            quality,
            int(slope * 1000),
            [[(fixed + slope * batch * length / 10) / 1000 for length in LENGTHS] for batch in BATCH_SIZES],
        )
        for name, quality, slope in sizes
    ]
    return ServingProfile("0123", "torch", "cpu", 1, BATCH_SIZES, LENGTHS, found)


def costs(**options) -> CostModel:
    return CostModel(profile(**options))


def requests(count: int, length: int = 10, arrival: float = 0.0, first: int = 0, **options) -> list[Request]:
    """Equal requests with ids from `first`."""
    return [Request(first + index, arrival, length, **options) for index in range(count)]
