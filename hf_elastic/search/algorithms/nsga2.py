"""Evolution by non-dominated sorting and crowding (Deb et al., IEEE TEC 6(2), 2002); Optuna's."""

import optuna

from .optuna_algorithm import OptunaAlgorithm, broken


class NSGA2(OptunaAlgorithm):
    """Evolution by non-dominated sorting and crowding (Deb et al., IEEE TEC 6(2), 2002); Optuna's."""

    def make_sampler(self, population_size: int, seed: int) -> optuna.samplers.BaseSampler:
        """See `OptunaAlgorithm`."""
        return optuna.samplers.NSGAIISampler(population_size=population_size, seed=seed, constraints_func=broken)
