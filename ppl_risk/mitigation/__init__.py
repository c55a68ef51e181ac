"""Secure mitigation of backdoors that nobody can detect, by random self-reduction.

Definitions and theorems: Goldwasser, Shafer, Vafa and Vaikuntanathan, arXiv 2411.03279. Each file says what is the paper's and
what is ours.
"""

from ppl_risk.mitigation import planted as planted
from ppl_risk.mitigation.advice import advise as advise
from ppl_risk.mitigation.canonical import CanonicalOutput as CanonicalOutput
from ppl_risk.mitigation.canonical import Mitigator as Mitigator
from ppl_risk.mitigation.canonical import mitigation_model as mitigation_model
from ppl_risk.mitigation.card import GuaranteeCard as GuaranteeCard
from ppl_risk.mitigation.card import Premise as Premise
from ppl_risk.mitigation.composition import Attacked as Attacked
from ppl_risk.mitigation.composition import Composition as Composition
from ppl_risk.mitigation.composition import compare_risk as compare_risk
from ppl_risk.mitigation.composition import plain as plain
from ppl_risk.mitigation.control import PARITY as PARITY
from ppl_risk.mitigation.control import Reduction as Reduction
from ppl_risk.mitigation.control import resample as resample
from ppl_risk.mitigation.deferral import defer_to_trusted as defer_to_trusted
from ppl_risk.mitigation.domains import Ball as Ball
from ppl_risk.mitigation.domains import Cube as Cube
from ppl_risk.mitigation.domains import Domain as Domain
from ppl_risk.mitigation.domains import Simplex as Simplex
from ppl_risk.mitigation.fourier_series import FourierSeries as FourierSeries
from ppl_risk.mitigation.fourier_series import walsh_hadamard as walsh_hadamard
from ppl_risk.mitigation.global_fourier import GlobalFourier as GlobalFourier
from ppl_risk.mitigation.in_problem import model_of as model_of
from ppl_risk.mitigation.in_problem import with_model as with_model
from ppl_risk.mitigation.local_affine import LocalAffine as LocalAffine
from ppl_risk.mitigation.local_polynomial import LocalPolynomial as LocalPolynomial
from ppl_risk.mitigation.mitigated import Mitigated as Mitigated
from ppl_risk.mitigation.mitigated import Oracle as Oracle
from ppl_risk.mitigation.relearn import relearn_affine as relearn_affine
from ppl_risk.mitigation.relearn import relearn_affine_robust as relearn_affine_robust
from ppl_risk.mitigation.relearn import relearn_polynomial as relearn_polynomial
from ppl_risk.mitigation.relearn_parities import relearn_parities as relearn_parities
from ppl_risk.mitigation.robust_bounds import MedianBars as MedianBars
from ppl_risk.mitigation.robust_bounds import mean_of_medians_bars as mean_of_medians_bars
from ppl_risk.mitigation.robust_mean import group_failure as group_failure
from ppl_risk.mitigation.robust_mean import group_size as group_size
from ppl_risk.mitigation.robust_mean import mean_of_medians as mean_of_medians
from ppl_risk.mitigation.robust_mean import median as median
from ppl_risk.mitigation.robust_mean import median_of_means as median_of_means
from ppl_risk.mitigation.robust_mean import trimmed_mean as trimmed_mean
from ppl_risk.mitigation.total_variation import Advantage as Advantage
from ppl_risk.mitigation.total_variation import TotalVariation as TotalVariation
from ppl_risk.mitigation.total_variation import distinguisher_advantage as distinguisher_advantage
from ppl_risk.mitigation.total_variation import total_variation_test as total_variation_test
from ppl_risk.mitigation.weiszfeld import geometric_median as geometric_median
