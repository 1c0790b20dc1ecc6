"""Multi-objective tree-structured Parzen estimator (Ozaki et al., GECCO 2020); Optuna's."""

import optuna

from .optuna_algorithm import OptunaAlgorithm, broken


class TPE(OptunaAlgorithm):
    """Multi-objective tree-structured Parzen estimator (Ozaki et al., GECCO 2020); Optuna's."""

    def make_sampler(self, population_size: int, seed: int) -> optuna.samplers.BaseSampler:
        """See `OptunaAlgorithm`."""
        # The batch is asked for as a whole, before any of it is told: a constant liar keeps its rows apart.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True, constraints_func=broken)
