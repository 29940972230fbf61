"""The formulas: pure functions of tensors, in the formula's own sign and unit."""

from mikit.functional.affinities import affinity, pkt
from mikit.functional.bounds import anchored_infonce, infonce
from mikit.functional.bures import bures2, gaussian_wasserstein2
from mikit.functional.conditional import conditional_mi
from mikit.functional.couplings import optimal_plan, transport_potentials
from mikit.functional.dependence import cka, hsic, label_qmi, qmi
from mikit.functional.discrete import plug_in_entropy, plug_in_mi
from mikit.functional.energy import energy_distance2
from mikit.functional.entropic import sinkhorn, sinkhorn_divergence
from mikit.functional.exact_transport import identity_fraction, wasserstein, wasserstein2
from mikit.functional.gaussian import cca, gaussian_mi, rank_gaussianise, wishart_bias
from mikit.functional.gaussian_laws import diagonal_gaussian_wasserstein2, gaussian_kl
from mikit.functional.gromov import gromov_plan, gromov_wasserstein2
from mikit.functional.kernels import linear_cka, median_bandwidth
from mikit.functional.label_neighbors import ross_mi
from mikit.functional.mmd import mmd2, polynomial_mmd2
from mikit.functional.mmd_subsampled import block_mmd2, linear_time_mmd2
from mikit.functional.nearest_entropy import kozachenko_leonenko, weighted_kl_mi, weighted_kozachenko_leonenko
from mikit.functional.neighbors import ksg
from mikit.functional.noisy_information import noisy_input_information
from mikit.functional.ratios import dv, jsd, nwj, smile
from mikit.functional.recovery import recovered_share
from mikit.functional.scored import infonce_from_scores
from mikit.functional.sliced_maximum import max_sliced_wasserstein2
from mikit.functional.transport import sliced_wasserstein, sliced_wasserstein2
from mikit.functional.variational import difference_of_entropies, gaussian_nll

__all__ = [
    "affinity",
    "anchored_infonce",
    "block_mmd2",
    "bures2",
    "cca",
    "cka",
    "conditional_mi",
    "diagonal_gaussian_wasserstein2",
    "difference_of_entropies",
    "dv",
    "energy_distance2",
    "gaussian_kl",
    "gaussian_mi",
    "gaussian_nll",
    "gaussian_wasserstein2",
    "gromov_plan",
    "gromov_wasserstein2",
    "hsic",
    "identity_fraction",
    "infonce",
    "infonce_from_scores",
    "jsd",
    "kozachenko_leonenko",
    "ksg",
    "label_qmi",
    "linear_cka",
    "linear_time_mmd2",
    "max_sliced_wasserstein2",
    "median_bandwidth",
    "mmd2",
    "noisy_input_information",
    "nwj",
    "optimal_plan",
    "pkt",
    "plug_in_entropy",
    "plug_in_mi",
    "polynomial_mmd2",
    "qmi",
    "rank_gaussianise",
    "recovered_share",
    "ross_mi",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "sliced_wasserstein2",
    "smile",
    "transport_potentials",
    "wasserstein",
    "wasserstein2",
    "weighted_kl_mi",
    "weighted_kozachenko_leonenko",
    "wishart_bias",
]
