"""The block types of an ELM, one file each with a class `Block`; importing one imports transformers' attention."""

from importlib import import_module

# Name, which is that of the file -> by what the hidden size is divided to get the width of its attention.
BLOCKS = {"bert": 1, "mobilebert": 4}


def width_of(name: str, hidden_size: int) -> int:
    """Width of attention in a block, all heads together."""
    return hidden_size // BLOCKS[name]


def block_class(name: str) -> type:
    """The class of a block."""
    return import_module(f".{name}", __package__).Block
