"""Evolution with reference directions, for three objectives and more (Deb and Jain, IEEE TEC 18(4), 2014); Optuna's."""

import optuna

from .optuna_algorithm import OptunaAlgorithm, broken


class NSGA3(OptunaAlgorithm):
    """Evolution with reference directions, for three objectives and more (Deb and Jain, IEEE TEC 18(4), 2014); Optuna's."""

    def make_sampler(self, population_size: int, seed: int) -> optuna.samplers.BaseSampler:
        """See `OptunaAlgorithm`."""
        return optuna.samplers.NSGAIIISampler(population_size=population_size, seed=seed, constraints_func=broken)
