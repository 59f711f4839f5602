"""What a run leaves of itself: metrics.json, records, pictures and TensorBoard's pages."""

import json
import math

import pytest
import torch
from runs import TINY, built, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog

from scm.config.metrics import is_better
from scm.storage import model, store
from scm.training.recorder import openings


@pytest.mark.slow
def test_what_a_run_leaves(tmp_path):
    path = tmp_path / "run"
    metrics = trained(path, *TINY["unet_small"])
    wanted = {
        *("status", "objective", "seed", "steps", "images_seen", "seconds", "images_per_second"),
        *("peak_memory_bytes", "parameters", "git_commit", "versions", "device", "metrics"),
    }
    assert wanted <= set(metrics) and json.loads((path / "metrics.json").read_text()) == metrics
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 6, 8, 12, 12]
    pictures = {p.name for p in (path / "samples").iterdir()}
    assert pictures == {
        f"{name}_{step:08d}.png"
        for name in ("one_step", "two_step", "denoising_strip", "loss_over_noise")
        for step in (6, 12)
    }
    trained_net = model.load(
        path / "checkpoints" / "ema.safetensors", torch.device("cpu"), torch.float32
    )
    from_folder = model.load(path, torch.device("cpu"), torch.float32)
    assert store.digest(dict(trained_net.net.state_dict())) == store.digest(
        dict(from_folder.net.state_dict())
    )


@pytest.mark.slow
def test_tensorboard_shows_scalars_pictures_config_and_hparams_in_one_run(tmp_path):
    trained(tmp_path / "run", *TINY["unet_small"])
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = events.Tags()
    assert {"train/loss", "tangent/rms", "usage/images_per_second", "eval/loss"} <= set(
        tags["scalars"]
    )
    groups = {"best", "eval", "samples", "tangent", "tangent_by_noise", "train", "usage"}
    assert {tag.split("/")[0] for tag in tags["scalars"]} == groups
    assert set(tags["images"]) == {
        f"samples/{n}" for n in ("one_step", "two_step", "denoising_strip", "loss_over_noise")
    }
    assert tags["tensors"] == ["config/text_summary"]
    assert (
        "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    )
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


def test_a_resumed_runs_board_drops_what_came_after_its_checkpoint(tmp_path):
    parts = built(tmp_path / "run", "data=bimodal", *TINY["mlp"])
    parts.folder.path.mkdir()
    openings(parts, 4)["tensorboard"]([]).close()
    (file,) = parts.folder.path.glob("events.*")
    events = EventFileLoader(str(file)).Load()
    (step,) = [event.step for event in events if event.session_log.status == SessionLog.START]
    assert step == 5  # the first that it takes


def test_better_is_lower_but_for_the_metrics_that_say_otherwise():
    assert is_better("eval/loss", 1.0, None) and is_better("eval/loss", 1.0, 2.0)
    assert not is_better("eval/loss", 2.0, 1.0) and not is_better("eval/loss", 1.0, 1.0)
    assert is_better("quality/one_step/recall", 0.5, 0.4)
    assert not is_better("quality/one_step/recall", 0.4, 0.5)
    assert not is_better("eval/loss", math.nan, None) and not is_better("eval/loss", -math.inf, 1.0)
