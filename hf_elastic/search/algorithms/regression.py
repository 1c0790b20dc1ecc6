"""A Gaussian process over the sizes of a space: what a few dozen evaluated ones say about all others."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize

# Logarithms of the amplitudes of the two kernels and of the noise, then of one inverse length per coarse feature, then of the
# one of all fine features: where the search for them starts, and how far it may go. Values and features are standardised.
START = {"coarse": 0.0, "fine": -3.0, "noise": -7.0, "inverse": -1.0}
BOUNDS = {"coarse": (-6.0, 5.0), "fine": (-12.0, 3.0), "noise": (-13.0, 0.0), "inverse": (-6.0, 2.0)}
PRIOR_WIDTH = 3.0  # standard deviation of the normal prior around where the search starts
STEPS = 40
REFIT = 1.1  # growth of the sizes that are known, from one fit of the parameters to the next
JITTER = 1e-6
TINY = 1e-12  # a square root has no gradient at 0


class Regression:
    """A Gaussian process on a value, or on its logarithm where all values are positive.

    The kernel is `a k(u, u') + b k(u, u') l(v, v')`; k is Matern's of order 3/2, which follows the steps that latencies have,
    l squared-exponential; u are the coarse features, each with a length of its own, v the fine ones with one length for all:
    what the whole and the sums over layers say, and a correction by where in the depth it is. The lengths, amplitudes and
    noise maximise the marginal likelihood times the prior (Rasmussen and Williams, Gaussian Processes for Machine Learning,
    2006, sections 4.2 and 5.4); this combination of kernels is ours.

    Args:
        coarse: `[N, C]`.
        fine: `[N, F]`.
        values: `[N]`.
        before: a regression of the same value on fewer sizes, whose parameters this one starts from; with less than a tenth more
            sizes it keeps them, since finding them takes most of the time and they hardly move.
    """

    def __init__(self, coarse: np.ndarray, fine: np.ndarray, values: np.ndarray, before: Regression | None = None):
        self._is_log = bool((values > 0).all())
        targets = np.log(values) if self._is_log else values
        self._mean, self._scale = targets.mean(), targets.std() or 1.0
        self._coarse, self._fine = Standardised(coarse), Standardised(fine)
        targets = torch.from_numpy((targets - self._mean) / self._scale)
        self._inputs = self._coarse(coarse), self._fine(fine)
        is_fitted = before is None or len(values) >= REFIT * before._fitted_on
        self._fitted_on = len(values) if is_fitted else before._fitted_on
        self._parameters = self._fit(targets, before) if is_fitted else before._parameters
        with torch.no_grad():
            self._lower = self._factor(self._parameters)
            self._weights = torch.cholesky_solve(targets[:, None], self._lower)[:, 0]

    def predict(self, coarse: np.ndarray, fine: np.ndarray, shift: float = 0.0) -> np.ndarray:
        """Values `[N]` in the unit of those that it was fitted on: the mean plus `shift` standard deviations."""
        with torch.no_grad():
            kernel = _kernel((self._coarse(coarse), self._fine(fine)), self._inputs, self._parameters)
            explained = torch.linalg.solve_triangular(self._lower, kernel.T, upper=False).square().sum(dim=0)
            deviation = (self._parameters[:2].exp().sum() - explained).clamp(min=0).sqrt()
            predicted = (kernel @ self._weights + shift * deviation).numpy() * self._scale + self._mean
        return np.exp(predicted) if self._is_log else predicted

    def _fit(self, targets: torch.Tensor, before: Regression | None) -> torch.Tensor:
        names = ["coarse", "fine", "noise"] + ["inverse"] * (self._inputs[0].shape[1] + 1)
        middle = torch.tensor([START[name] for name in names], dtype=torch.float64)
        start = middle if before is None else before._parameters

        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = torch.tensor(values, requires_grad=True)
            factor = self._factor(parameters)
            explained = (targets * torch.cholesky_solve(targets[:, None], factor)[:, 0]).sum() / 2
            prior = (((parameters - middle) / PRIOR_WIDTH) ** 2).sum() / 2
            total = explained + factor.diagonal().log().sum() + prior
            total.backward()
            return total.item(), parameters.grad.numpy()

        options = {"maxiter": STEPS, "ftol": 1e-5}
        found = minimize(loss, start.numpy(), jac=True, method="L-BFGS-B", bounds=[BOUNDS[n] for n in names], options=options)
        return torch.from_numpy(found.x)

    def _factor(self, parameters: torch.Tensor) -> torch.Tensor:
        kernel = _kernel(self._inputs, self._inputs, parameters)
        return torch.linalg.cholesky(kernel + (parameters[2].exp() + JITTER) * torch.eye(len(kernel), dtype=torch.float64))


class Standardised:
    """Features as they were in the sizes fitted on: of mean 0 and deviation 1; one that never varied stays as it is."""

    def __init__(self, features: np.ndarray):
        self._mean = features.mean(axis=0)
        deviation = features.std(axis=0)
        self._deviation = np.where(deviation > 0, deviation, 1.0)

    def __call__(self, features: np.ndarray) -> torch.Tensor:
        """Features `[N, F]` in these units."""
        return torch.from_numpy((features - self._mean) / self._deviation)


def _kernel(left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor], parameters) -> torch.Tensor:
    lengths = parameters[3:-1].exp()
    distance = (3 * _squares(left[0] * lengths, right[0] * lengths) + TINY).sqrt()
    coarse = (1 + distance) * torch.exp(-distance)
    fine = torch.exp(-_squares(left[1], right[1]) * (2 * parameters[-1]).exp() / (2 * max(1, left[1].shape[1])))
    return coarse * (parameters[0].exp() + parameters[1].exp() * fine)


def _squares(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Squared distances `[N, M]`; `cdist` has no gradient where two rows are equal."""
    products = (left * left).sum(1)[:, None] + (right * right).sum(1)[None] - 2 * left @ right.T
    return products.clamp(min=0)
