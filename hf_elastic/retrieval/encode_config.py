"""How documents are encoded: options of `encode_corpus` and of `hf-elastic retrieve index`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UserError
from ..utils.options import check_integers

DTYPES = ("float32", "float16")


@dataclass(kw_only=True)
class EncodingConfig:
    """How documents are encoded.

    Raises:
        UserError: a value that is not allowed.
    """

    batch_size: int = field(default=32, metadata={"help": "Documents that are encoded at once (count)."})
    shard_size: int = field(
        default=1024,
        metadata={
            "help": "Documents of one file of vectors (count), which are sorted by length; a killed run loses less than that."
        },
    )
    dtype: str = field(
        default="float32", metadata={"help": "What vectors are kept in until the index is made: float32, float16."}
    )

    def __post_init__(self):
        check_integers(1, batch_size=self.batch_size, shard_size=self.shard_size)
        if self.dtype not in DTYPES:
            raise UserError(f"dtype: {self.dtype!r} is not supported; supported: {', '.join(DTYPES)}")
