"""Scaling laws: the forms that the papers print, what follows from them, and the papers' own way of fitting them.

    L(C)    = floor + k C^-a                    MindLLM (arXiv 2310.15777), section 2.4.1, equation 1, as it is meant
    L(N, D) = floor + A N^-alpha + B D^-beta    MiniCPM (arXiv 2404.06395), equation 2; Hoffmann et al. 2022, equation 2
    B(L)    = c L^-p                            MiniCPM, section 3.2: optimal batch size against loss

MindLLM prints equation 1 as L = a log C + L_inf with a = 0.214 and L_inf = 1.692, which grows with compute and has no
limit. The power law L = L_inf + (C0 / C)^a is what such a pair of numbers can mean; k above is C0^a.

C are floating-point operations of training, 6 N D; N parameters, of which the embedding counts once in L(C) (MindLLM's
text was not to be had) and not at all in L(N, D) (MiniCPM, Table 8); D tokens.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# MindLLM, section 2.4.1, equation 1.
MINDLLM_PRINTED_A = 0.214
MINDLLM_PRINTED_LIMIT = 1.692
# MiniCPM, section 3.2: tokens a batch, L in nats a token on C4.
MINICPM_BATCH_COEFFICIENT = 1.21e9
MINICPM_BATCH_EXPONENT = 6.24
# MiniCPM, section 4.5 and Figure 10: on average over its held-out texts, N without the embedding.
MINICPM_ALPHA = 0.29
MINICPM_BETA = 0.23
MINICPM_TOKENS_PER_PARAMETER = 192.0
# Hoffmann et al. 2022 (arXiv 2203.15556), as MiniCPM, section 4.5, quotes it.
HOFFMANN_TOKENS_PER_PARAMETER = 20.0
# Operations of training a parameter on a token, forward and backward (Kaplan et al. 2020, section 2.1).
FLOPS = 6.0


def printed_law(compute: ArrayLike, a: float, limit: float) -> Array:
    """L = a log C + L_inf with the natural logarithm, as MindLLM prints equation 1."""
    return np.asarray(a * np.log(compute) + limit)


def power_law(compute: ArrayLike, limit: float, coefficient: float, exponent: float) -> Array:
    """L = limit + coefficient C^-exponent."""
    return np.asarray(limit + coefficient * np.asarray(compute) ** -exponent)


def loss_law(parameters: Array, tokens: Array, law: Array) -> Array:
    """L(N, D) for `law` = (floor, A, alpha, B, beta) in its last axis."""
    floor, a, alpha, b, beta = np.moveaxis(np.asarray(law), -1, 0)
    return floor + a * parameters**-alpha + b * tokens**-beta


def log_tokens_per_parameter(compute: float, law: Array) -> Array:
    """Natural logarithm of the compute-optimal D / N where C = 6 N D (MiniCPM, equation 3).

    The optimum of A N^-alpha + B D^-beta along N D = C / 6 has alpha A N^-alpha = beta B D^-beta.

    Args:
        law: (floor, A, alpha, B, beta) in the last axis.
    """
    _, a, alpha, b, beta = np.moveaxis(np.asarray(law), -1, 0)
    product = np.log(compute / FLOPS)
    log_parameters = (np.log(alpha * a) - np.log(beta * b) + beta * product) / (alpha + beta)
    return np.asarray(product - 2 * log_parameters)


def default_curve_fit(law: Callable[..., Any], variable: Any, loss: Any) -> list[float] | None:
    """The papers' way: `scipy.optimize.curve_fit` from its default start, all ones. None where it gives up.

    It also "converges" where it has found nothing: at C = 1e13 the gradient by k and a vanishes beside that by L_inf.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            return [float(value) for value in curve_fit(law, variable, loss)[0]]
        except (RuntimeError, ValueError):
            return None
