"""Tags known beforehand: which metric is optimised, and where quality is measured."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import QUICK

from scm.commands import train as launch
from scm.config import metrics, rules
from scm.config.compose import composed
from scm.config.read import plain
from scm.core.errors import UserError

SMOKE = QUICK[:1]


@pytest.mark.parametrize(
    ("overrides", "metric"),
    [
        ((), "quality/one_step/frechet_distance"),
        (("objective=diffusion",), "quality/heun/frechet_distance"),
        (("trainer.quality_images=0",), "final/one_step/frechet_distance"),
        (SMOKE, "eval/loss"),
        (("data=bimodal", "model=mlp"), "eval/loss"),
        (("data=fashion_mnist",), "eval/loss"),
        (("optimized_metric=final/two_step/kid",), "final/two_step/kid"),
        (("optimized_metric=eval/error",), "eval/error"),
    ],
    ids=str,
)
def test_the_optimised_metric_is_one_that_the_run_has(overrides, metric):
    config = rules.check(composed(overrides))
    assert metrics.optimized_metric(config) == metric and metric in metrics.optimised(config)


def test_quality_needs_a_feature_network(tmp_path, monkeypatch):
    config = composed([])
    assert metrics.quality_groups(config) == ["quality", "final"]
    monkeypatch.setattr(metrics, "PRETRAINED", tmp_path)
    assert metrics.quality_groups(config) == []
    assert not any("frechet" in tag for tag in metrics.optimised(config))


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("quality/one_step/frechet_distance", -1),
        ("final/two_step/kid", -1),
        ("quality/one_step/class_variation", -1),
        ("quality/one_step/recall", 1),
        ("quality/one_step/coverage", 1),
        ("eval/loss", -1),
        ("eval/toy/one_step_rms", -1),
        ("quality/one_step/density", 0),  # 1 is best
        ("quality/one_step/confidence", 0),
        ("quality/one_step/memorisation", 0),
        ("quality/floor/frechet_distance", 0),
        ("eval/one_step/calls", 0),
        ("samples/one_step/std", 0),
    ],
)
def test_what_has_no_better_direction_is_not_optimised(metric, direction):
    assert metrics.direction(metric) == direction
    config = replace(composed([]), optimized_metric=metric)
    if direction == 0:
        with pytest.raises(UserError, match="lower or higher is better; there is: eval/loss"):
            rules.check(config)
    elif "toy" not in metric:
        rules.check(config)


@pytest.mark.parametrize(
    ("chosen", "value"), [(None, 3.0), ("eval/loss", 7.0), ("quality/one_step/recall", -0.5)]
)
def test_the_command_returns_what_a_sweeper_is_to_minimise(chosen, value, tmp_path, monkeypatch):
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)), mode=RunMode.RUN)
    monkeypatch.setattr(launch.HydraConfig, "get", lambda: hydra)
    numbers = {"quality/one_step/frechet_distance": 3.0, "eval/loss": 7.0}
    numbers["quality/one_step/recall"] = 0.5
    monkeypatch.setattr(launch, "run", lambda *_: {"status": "done", "metrics": numbers})
    cfg = OmegaConf.create({**plain(composed([])), "optimized_metric": chosen})
    assert launch.main(cfg) == value
