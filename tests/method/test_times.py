"""The proposal of noise levels against its definition."""

import math

import torch

from scm.method import trigflow
from scm.method.times import LogNormal

SD = 0.5


def test_proposal_has_log_normal_noise_levels():
    """Quantiles of ln(sigma) are those of N(P_mean, P_std^2)."""
    proposal = LogNormal(P_mean=-1.0, P_std=1.4, sigma_data=SD)
    t = proposal(200_000, generator=torch.Generator().manual_seed(0), device="cpu")
    assert t.shape == (200_000,) and t.min() > 0 and t.max() < math.pi / 2
    tau = trigflow.sigma_from_time(t.double(), SD).log()
    normal = torch.distributions.Normal(-1.0, 1.4)
    for q in (0.02, 0.16, 0.5, 0.84, 0.98):
        assert abs(float(tau.quantile(q)) - float(normal.icdf(torch.tensor(q)))) < 0.03
