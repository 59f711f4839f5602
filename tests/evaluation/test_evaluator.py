"""Quality during training: which numbers, of which images, and where they end up."""

import json

import pytest
import torch
from runs import TINY, built, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scm.config import metrics as tags
from scm.core.errors import UserError
from scm.data.dataset import to_uint8
from scm.storage import model as models
from scm.training import assemble

SMALL = (*TINY["unet_small"], "trainer.budget.steps=4", "trainer.evaluate_every=2")
JUDGED = (*SMALL, "trainer.quality_images=20", "trainer.final_quality_images=40")


@pytest.fixture(autouse=True)
def small(judge, monkeypatch):
    monkeypatch.setattr(assemble, "quality_of", lambda *_: judge)


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_a_run_has_the_quality_of_its_last_weights(conditional, judge, tmp_path):
    more = ("model.num_classes=10",) if conditional else ()
    metrics = trained(tmp_path, *JUDGED, *more)
    judged = [t for t in metrics["metrics"] if not t.startswith(("eval/", "samples/"))]
    groups = {tag.rpartition("/")[0] for tag in judged}
    names = ("one_step", "two_step", "floor")
    assert groups == {f"{group}/{name}" for group in ("quality", "final") for name in names}
    assert metrics["quality"] == {
        **{"images": 20, "final_images": 40},
        **{"data_sha256": judge.data_sha256, "features_sha256": judge.network.sha256},
        "second_features_sha256": judge.second.sha256,
    }
    model = models.load(tmp_path, torch.device("cpu"), torch.float32)
    sampler = model.sampler("two_step", model.facts.sampler["two_step"])
    images = model.sample(40, sampler=sampler, seed=0)
    for group, n in (("quality", 20), ("final", 40)):
        expected = judge.measure(to_uint8(images[:n]))
        found = {name: metrics["metrics"][f"{group}/two_step/{name}"] for name in tags.QUALITY}
        assert found == pytest.approx(expected, rel=1e-6)
        floor = {name: metrics["metrics"][f"{group}/floor/{name}"] for name in tags.QUALITY}
        assert floor == judge.floor(n)


@pytest.mark.slow
def test_few_at_intervals_and_many_once_in_the_log_and_tensorboard(tmp_path):
    trained(tmp_path, *JUDGED)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for tag, steps in (("quality", [2, 4]), ("final", [4])):
        name = f"{tag}/one_step/frechet_distance"
        assert [record["step"] for record in records if name in record] == steps
    scalars = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert {"quality/two_step/kid", "final/one_step/recall"} <= set(scalars)
    assert min(scalars) == "best/quality/one_step/frechet_distance"  # the first that one sees
    assert not [tag for tag in scalars if "floor" in tag or tag.endswith("/calls")]  # constants


def test_it_is_off_where_nothing_is_asked_for(tmp_path):
    assert built(tmp_path / "run", *SMALL).evaluator.quality is None


def test_a_missing_feature_network_is_one_line_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tags, "PRETRAINED", tmp_path)
    caplog.set_level("INFO")
    assert built(tmp_path / "run", *JUDGED).evaluator.quality is None
    assert caplog.text.count("no quality metrics") == 1
    assert "make one with `python -m scm features --data mnist`" in caplog.text


def test_a_damaged_feature_network_ends_the_run_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.undo()
    data = bytearray(tags.feature_weights("mnist").read_bytes())
    data[-1] ^= 1
    monkeypatch.setattr(tags, "PRETRAINED", tmp_path)
    tags.feature_weights("mnist").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        built(tmp_path / "run", *JUDGED)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_toy_has_no_quality_and_says_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    toy = ("data=bimodal", *TINY["mlp"], "trainer.quality_images=20")
    assert built(tmp_path / "run", *toy).evaluator.quality is None
    assert "quality" not in caplog.text
