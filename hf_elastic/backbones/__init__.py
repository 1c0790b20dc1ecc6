"""One Spec per family of architectures; importing this package registers them all."""

from . import bert, deberta_v2, distilbert, elm, gpt2, gpt_neox, llama, modernbert, mpnet, nomic_bert, opt, transfo_xl

__all__ = [
    "bert",
    "deberta_v2",
    "distilbert",
    "elm",
    "gpt2",
    "gpt_neox",
    "llama",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "opt",
    "transfo_xl",
]
