"""Tags known beforehand: which metric is optimised, and where quality is measured."""

from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import QUICK

from scm import composing, launch, tags, validate

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
    composed = composing.composed(overrides)
    validate.check(composed)
    assert tags.optimized_metric(composed) == metric and metric in tags.available(composed)


def test_quality_needs_a_feature_network(tmp_path, monkeypatch):
    composed = composing.composed([])
    assert tags.quality_groups(composed) == ["quality", "final"]
    monkeypatch.setattr(tags, "PRETRAINED", tmp_path)
    assert tags.quality_groups(composed) == []
    assert not any("frechet" in tag for tag in tags.available(composed))


@pytest.mark.parametrize(("chosen", "value"), [(None, 3.0), ("eval/loss", 7.0)])
def test_the_command_returns_the_optimised_metric(chosen, value, tmp_path, monkeypatch):
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)), mode=RunMode.RUN)
    monkeypatch.setattr(launch.HydraConfig, "get", lambda: hydra)
    numbers = {"quality/one_step/frechet_distance": 3.0, "eval/loss": 7.0}
    monkeypatch.setattr(launch, "run", lambda *_: {"status": "done", "metrics": numbers})
    cfg = OmegaConf.create({**composing.composed([]), "optimized_metric": chosen})
    assert launch.main(cfg) == value
