"""Every choice uniform."""

import optuna

from .optuna_algorithm import OptunaAlgorithm


class RandomChoice(OptunaAlgorithm):
    """Every choice uniform."""

    def make_sampler(self, population_size: int, seed: int) -> optuna.samplers.BaseSampler:
        """See `OptunaAlgorithm`."""
        return optuna.samplers.RandomSampler(seed=seed)

    def first_rows(self, population_size: int) -> int:
        """No row: all are random."""
        return 0
