"""Folders of runs that never were, with the files of real ones, for timing what reads them."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import yaml

from scm.config import metrics
from scm.config.read import plain
from scm.config.schema import Config
from scm.storage.folder import RunFolder, Status

SEEDS = 5  # runs of a setting
STEPS, LOG_EVERY, EVALUATE_EVERY = 3000, 50, 500  # of experiment=mnist_sct
PICTURE_BYTES = 70_000  # of a grid of 64 digits
LOGGED = (
    *("train/loss", "train/error", "train/w", "tangent/rms", "tangent/r", "train/grad_norm"),
    *("train/learning_rate", "train/ema_decay", "train/skipped_steps", "usage/images_per_second"),
    *("usage/images_seen", "usage/seconds", "usage/peak_memory_bytes"),
)


def write_sweep(folder: Path, n: int, config: Config) -> None:
    """n finished runs of `config` that differ by learning rate and seed; always the same."""
    for k in range(n):
        setting, seed = divmod(k, SEEDS)
        _write_run(folder, config, lr=1e-4 * (1 + setting), seed=seed)


def _write_run(sweep: Path, config: Config, *, lr: float, seed: int) -> None:
    config = replace(config, seed=seed, optimizer=replace(config.optimizer, lr=lr))
    overrides = [f"optimizer.lr={lr:.4g}", f"seed={seed}", "trainer.budget.steps=3000"]
    folder = RunFolder(sweep / ",".join(overrides[:2]))
    folder.open(
        {
            "config.yaml": yaml.safe_dump(plain(config), sort_keys=False),
            "overrides.yaml": yaml.safe_dump(overrides),
            "command.txt": "python run.py " + " ".join(overrides),
        }
    ).close()
    noise = random.Random(f"{lr} {seed}")  # nosec B311  (numbers to draw, no secret)
    tags = [metrics.LOSS, *(f"eval/{sampler}/calls" for sampler in config.sampler)]
    tags += [
        f"{group}/{sampler}/{name}"
        for group in ("quality", "final")
        for sampler in config.sampler
        for name in metrics.QUALITY
    ]
    measured = {tag: 1 + noise.random() for tag in tags}
    folder.write_metrics(
        {
            "status": Status.done,
            "objective": "sct",
            "steps": STEPS,
            "seconds": 800.0,
            "git_commit": "0" * 40,
            "metrics": measured,
        }
    )
    _write_history(folder.path / "metrics.jsonl", measured, noise)
    if seed == 0:  # the page shows one run of a setting
        for name in config.sampler:
            data = b"\x89PNG" + os.urandom(PICTURE_BYTES)
            (folder.samples / f"{name}_{STEPS:08d}.png").write_bytes(data)


def _write_history(file: Path, measured: dict[str, float], noise: random.Random) -> None:
    """A record per log interval, and one per evaluation with what is measured on the way."""
    during = [tag for tag in measured if not tag.startswith("final/")]
    with file.open("w") as lines:
        for step in range(LOG_EVERY, STEPS + 1, LOG_EVERY):
            logged = {tag: 1 + noise.random() for tag in LOGGED} | {"usage/seconds": step * 0.27}
            lines.write(json.dumps({"step": step, **logged}) + "\n")
            if step % EVALUATE_EVERY == 0:
                shown = measured if step == STEPS else {tag: 1 + noise.random() for tag in during}
                lines.write(json.dumps({"step": step, **shown}) + "\n")
