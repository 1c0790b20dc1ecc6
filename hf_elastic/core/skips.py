"""What stands in the place of a module that a layer skips: it computes nothing, and adds nothing to the residual stream."""

from __future__ import annotations

import torch
from torch import nn


class Nothing:
    """A summand that is not there: its sum with a tensor is that tensor itself, so that no addition is run or drawn."""

    def __add__(self, other: object) -> object:
        """The other one."""
        return other

    __radd__ = __add__

    def __mul__(self, factor: object) -> Nothing:
        """Nothing still: some architectures scale what they add."""
        return self

    __rmul__ = __mul__


NOTHING = Nothing()
# What a Spec says of a module: it is a summand itself, the first of a pair of which the other is not used, or gives what it gets.
SUMMAND, PAIR, INPUT = "0", "0, None", "x"


class Skipped(nn.Module):
    """The place of a skipped module.

    Args:
        gives: "0" for nothing to add; "0, None" for a pair, as attention returns it; "x" for the first argument, unchanged.
        original: what is skipped. Its flags are here, too: layers of some architectures look at them.
    """

    def __init__(self, gives: str, original: nn.Module):
        super().__init__()
        flags = {key: value for key, value in vars(original).items() if isinstance(value, (bool, int, str)) and key[0] != "_"}
        vars(self).update(flags)
        self.gives = gives

    def forward(self, *args, **kwargs) -> object:
        """What the layer goes on with."""
        if self.gives == INPUT:
            return args[0]
        # torch.compile knows no objects of others; a sum with the number 0 costs it nothing.
        nothing = 0 if torch.compiler.is_dynamo_compiling() else NOTHING
        return (nothing, None) if self.gives == PAIR else nothing

    def extra_repr(self) -> str:
        """What `repr` says."""
        return f"gives {self.gives}"
