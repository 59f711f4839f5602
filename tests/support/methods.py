"""Named methods put together by hand, as conf/objective does, for tests in float64."""

from scm.method import derivative, objective, tangent, times, velocity, weighting
from scm.method.matching import Dmd

SD = 0.5


def common(weights=weighting.Unit, *, adaptive=True, teacher=None):
    """What every objective has."""
    pair = velocity.Pair()
    return {
        "velocity": velocity.Teacher(teacher=teacher, sigma_data=SD) if teacher else pair,
        "times": times.LogNormal(P_mean=-1.0, P_std=1.4, sigma_data=SD),
        "adaptive_weight": adaptive,
        "weighting": weights(sigma_data=SD),
        "sigma_data": SD,
    }


def diffusion(weights=weighting.Unit, **more):
    """||sigma_data F - v||^2."""
    return objective.Regression(**common(weights, **more))


def consistency(weights=weighting.Unit, *, form="dual", warmup=8, control=None, **more):
    """sCT, or sCD with a `teacher`."""
    return objective.Eulerian(
        derivative=derivative.Jvp(form=form, sigma_data=SD),
        direction=None,
        tangent=control or tangent.Normalize(c=0.1, norm="rms"),
        tangent_warmup_steps=warmup,
        **common(weights, **more),
    )


def discrete(
    N, weights=weighting.Unit, *, rule="song", warmup=8, control=None, sigma_max=80.0, **more
):
    """The same over N intervals."""
    grid = {"sigma_min": 0.002, "sigma_max": sigma_max, "rho": 7.0, "sigma_data": SD}
    return objective.Eulerian(
        derivative=derivative.Difference(N=N, rule=rule, **grid),
        direction=None,
        tangent=control or tangent.Raw(),
        tangent_warmup_steps=warmup,
        **common(weights, **more),
    )


def matching(score, data, *, calls_at=(1.1,), weight=1.0):
    """Distribution matching of samples, whose diffusion model is `score`, with `data`'s."""
    return Dmd(
        score=score,
        weight=weight,
        score_steps=1,
        calls_at=list(calls_at),
        sigma_max=80.0,
        velocity=velocity.Teacher(teacher=data, sigma_data=SD),
        times=times.LogNormal(P_mean=-0.4, P_std=1.2, sigma_data=SD),
        sigma_data=SD,
    )
