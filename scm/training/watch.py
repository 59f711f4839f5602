"""Whether training begins to break: the tangent's size against its own past, per noise level.

A run that breaks does not stop. Its loss stays finite, while its tangent grows within some dozens
of steps to several times what it was, at middle noise levels first, and its samples are lost
(docs/stability.md has the runs by which the numbers below were chosen).
"""

import math

import torch
from torch import Tensor

EDGES = (0.04, 0.2, 1.0, 4.0)  # borders of the noise levels, sigma / sigma_data = tan(t)
LEVELS = (*(f"up_to_{edge:g}" for edge in EDGES), f"above_{EDGES[-1]:g}")
GROUP = "tangent_by_noise"  # of the log tags: a level's RMS
GROWTH = "tangent/growth"  # log tag: the largest ratio of a level's RMS to its lowest so far
KEPT = 0.95  # of the running means, per step: they look back about twenty steps
FIRST = 10  # counted steps before there is a past
FROM_R = 0.5  # of the warm-up, before which the tangent says little
LIMIT = 2.0  # growth from which on a run is said to break


def by_noise(rms: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Per level, as means over the batch: its samples' mean square, and their share.

    `rms` (B,) is each sample's root mean square of the tangent, `t` (B,) its time in radians.
    """
    level = torch.bucketize(t.tan(), t.new_tensor(EDGES))
    mine = level == torch.arange(len(LEVELS), device=t.device)[:, None]  # (levels, B)
    values = torch.cat([(mine * rms.square()).mean(1), mine.to(rms).mean(1)])
    return dict(zip(_tags("square") + _tags("share"), values, strict=True))


def levels(means: dict[str, float]) -> dict[str, float]:
    """The means with each level's RMS in place of `by_noise`'s, where it had samples."""
    found = {tag: value for tag, value in means.items() if not tag.startswith(GROUP)}
    for name, square, share in zip(LEVELS, _tags("square"), _tags("share"), strict=True):
        if means.get(share):
            found[f"{GROUP}/{name}"] = math.sqrt(means[square] / means[share])
    return found


def _tags(part: str) -> list[str]:
    return [f"{GROUP}/{name}/{part}" for name in LEVELS]


class Watch:
    """Follows the levels' running means. All stays on the device until it is asked.

    During the warm-up the tangent is divided by r, to which it is about proportional in a sound
    distillation; without a teacher it falls against that.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = torch.tensor(0, device=device)  # that counted
        self.means = torch.zeros(2, len(LEVELS), device=device)  # of squares / r^2, and of shares
        self.lowest = torch.full((len(LEVELS),), math.inf, device=device)
        self.growth = torch.ones(len(LEVELS), device=device)  # at the last step
        self.broke_at = torch.tensor(0, device=device)  # step; 0: it has not

    def add(self, step: int, scalars: dict[str, Tensor], finite: Tensor) -> None:
        """Take the scalars of one step, the `step`-th; nothing where it has no tangent."""
        if "tangent/r" not in scalars:
            return
        r = scalars["tangent/r"]
        squares, shares = (torch.stack([scalars[t] for t in _tags(p)]) for p in ("square", "share"))
        moved = self.means.lerp(torch.stack([squares / r**2, shares]), 1 - KEPT)
        counts = finite & (r >= FROM_R)
        self.means = torch.where(counts, moved, self.means)
        self.steps = self.steps + counts
        size = (self.means[0] / self.means[1]).sqrt()
        known = (self.steps >= FIRST) & size.isfinite()  # a level may have had no sample yet
        self.lowest = torch.where(known, torch.minimum(size, self.lowest), self.lowest)
        self.growth = torch.where(known, size / self.lowest, torch.ones_like(size))
        breaks = (self.broke_at == 0) & (self.growth.max() > LIMIT)
        self.broke_at = torch.where(breaks, step, self.broke_at)

    def scalars(self) -> dict[str, float]:
        """The log's; waits for the device."""
        return {GROWTH: float(self.growth.max())} if int(self.steps) else {}

    def alarm(self, lr: float) -> str:
        """What is to be said where the run has begun to break, else nothing."""
        if not (step := int(self.broke_at)):
            return ""
        level = LEVELS[int(self.growth.argmax())].replace("_", " ")
        return (
            f"training begins to break: since step {step} the tangent has grown beyond {LIMIT:g} "
            f"times its lowest size, now {float(self.growth.max()):.1f} times at noise {level} "
            f"sigma_data; if it stays so, samples are poor. Lower optimizer.lr={lr:g}, or lengthen "
            "objective.tangent_warmup_steps (docs/stability.md)"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return vars(self).copy()

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Go on where `saved` stood."""
        for name, value in saved.items():
            setattr(self, name, value.to(self.means.device))
