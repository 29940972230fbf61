"""Formulas as pure functions of tensors, each in its conventional sign and unit."""

from mikit.functional.bounds.infonce import anchored_infonce, infonce
from mikit.functional.bounds.infonce_scores import infonce_from_scores
from mikit.functional.bounds.ratios import dv, jsd, nwj, smile
from mikit.functional.distillation.pkt import affinity, pkt
from mikit.functional.flow.information_plane import noisy_input_information
from mikit.functional.flow.recovery import recovered_share
from mikit.functional.gaussian.bures import bures2, gaussian_wasserstein2
from mikit.functional.gaussian.canonical import cca, gaussian_mi, rank_gaussianise, wishart_bias
from mikit.functional.gaussian.divergence import diagonal_gaussian_wasserstein2, gaussian_kl
from mikit.functional.kernels.bandwidth import linear_cka, median_bandwidth
from mikit.functional.kernels.dependence import cka, hsic, label_qmi, qmi
from mikit.functional.kernels.energy import energy_distance2
from mikit.functional.kernels.mmd import mmd2, polynomial_mmd2
from mikit.functional.kernels.mmd_blocks import block_mmd2, linear_time_mmd2
from mikit.functional.labels.plug_in import plug_in_entropy, plug_in_mi
from mikit.functional.neighbors.conditional import conditional_mi
from mikit.functional.neighbors.entropy import kozachenko_leonenko, weighted_kl_mi, weighted_kozachenko_leonenko
from mikit.functional.neighbors.ksg import ksg
from mikit.functional.neighbors.ross import ross_mi
from mikit.functional.transport.exact import identity_fraction, wasserstein, wasserstein2
from mikit.functional.transport.gromov import gromov_plan, gromov_wasserstein2
from mikit.functional.transport.max_sliced import max_sliced_wasserstein2
from mikit.functional.transport.plans import optimal_plan, transport_potentials
from mikit.functional.transport.sinkhorn import sinkhorn, sinkhorn_divergence
from mikit.functional.transport.sliced import sliced_wasserstein, sliced_wasserstein2
from mikit.functional.vid.residuals import difference_of_entropies, gaussian_nll

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
