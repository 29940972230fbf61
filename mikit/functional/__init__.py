"""The formulas: pure functions of tensors, in the formula's own sign and unit."""

from mikit.functional.bounds import infonce, infonce_from_scores
from mikit.functional.gaussian import cca, gaussian_mi, rank_gaussianise, wishart_bias
from mikit.functional.kernels import linear_cka, median_bandwidth, mmd2
from mikit.functional.neighbors import ksg
from mikit.functional.recovery import recovered_share
from mikit.functional.variational import difference_of_entropies, gaussian_nll

__all__ = [
    "cca",
    "difference_of_entropies",
    "gaussian_mi",
    "gaussian_nll",
    "infonce",
    "infonce_from_scores",
    "ksg",
    "linear_cka",
    "median_bandwidth",
    "mmd2",
    "rank_gaussianise",
    "recovered_share",
    "wishart_bias",
]
