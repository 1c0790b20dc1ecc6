"""Search algorithms by name."""

from .base import Algorithm
from .evolution import Evolution
from .exhaustive import Exhaustive
from .nsga2 import NSGA2
from .nsga3 import NSGA3
from .random_choice import RandomChoice
from .surrogate import Surrogate
from .tpe import TPE

ALGORITHMS: dict[str, type[Algorithm]] = {
    "surrogate": Surrogate,
    "evolution": Evolution,
    "nsga2": NSGA2,
    "nsga3": NSGA3,
    "tpe": TPE,
    "random": RandomChoice,
    "exhaustive": Exhaustive,
}
