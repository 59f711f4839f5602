"""Train one configuration, or a sweep of them: `python run.py --help`."""

import hydra
from omegaconf import DictConfig

from scm.commands import train
from scm.config import compose

compose.prepare()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One run in its own folder; returns the metric that a sweeper may minimise."""
    return train.main(cfg)


if __name__ == "__main__":
    with train.composition_errors_in_one_line():
        main()
