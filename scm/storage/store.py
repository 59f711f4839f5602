"""Checkpoints and weights: written whole, verified when read, loaded without running code.

A checkpoint (`step-*.pt`) holds all that its own run needs to go on. Weights (safetensors) are what
everything else reads, with a config as their metadata. Both carry a SHA-256 of what they hold,
since torch and safetensors both load a flipped bit without a word.
"""

import hashlib
import io
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from scm.config.metrics import PRETRAINED
from scm.core.errors import UserError
from scm.core.files import found, reading, write_atomic, write_json

log = logging.getLogger(__name__)

SUFFIX = ".pt"
EMA_FILE = "ema.safetensors"
WEIGHTS_SHA256 = "weights_sha256"  # key of `weights_digest` in every record that names weights
BEST_FILE = "best.safetensors"  # the EMA weights of the best evaluation so far
HUB_FILE = "model.safetensors"  # in a folder as Hugging Face's hub has them
WEIGHTS = "weights of this project"


def digest(value: Any) -> str:
    """SHA-256 over a nested state: key order, types, dtypes, shapes and bytes all count."""
    sha = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, Tensor):
            data = part.detach().cpu().contiguous()
            sha.update(f"tensor {data.dtype} {tuple(data.shape)} ".encode())
            sha.update(data.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, dict):
            sha.update(f"dict {len(part)} ".encode())
            for key, item in part.items():
                feed(key)
                feed(item)
        elif isinstance(part, list | tuple):
            sha.update(f"list {len(part)} ".encode())
            for item in part:
                feed(item)
        else:
            sha.update(f"{type(part).__name__} {part!r} ".encode())

    feed(value)
    return sha.hexdigest()


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int) -> Path:
    """Write `state` as the checkpoint of `step`, then remove all but the newest `keep`.

    Files of later steps do not count and stay: they were passed over as damaged or foreign.
    """
    buffer = io.BytesIO()
    torch.save({**state, "sha256": digest(state)}, buffer)
    path = folder / f"step-{step:08d}{SUFFIX}"
    write_atomic(path, buffer.getvalue())
    for old in [other for other in _newest_first(folder) if other.name <= path.name][keep:]:
        old.unlink()
    return path


def read(path: Path) -> dict[str, Any]:
    """Load and verify one checkpoint onto the CPU; UserError where it is not whole."""
    with reading(path, "a readable checkpoint of this project"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_damaged(state.pop("sha256"), digest(state))
    return state


def _refuse_damaged(expected: str, actual: str) -> None:
    if actual != expected:
        raise UserError("damaged, its contents do not match their checksum; restore the file")


def newest(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The newest whole checkpoint in `folder`; damaged ones are named and passed over.

    So are those of another configuration than `config`, where one is given. None where there is no
    checkpoint at all; UserError where none is good.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            state = read(path)
            if config is not None and state.get("config") != config:
                raise UserError(f"{path}: belongs to a run with another configuration")
            return state
        except UserError as error:
            log.warning("%s; trying the one before it", error)
    if paths:
        raise UserError(f"{folder}: no whole checkpoint among {len(paths)}; start a new run folder")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step-*{SUFFIX}"), reverse=True)


def save_weights(path: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write weights alone as safetensors, the config that builds their network as metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {"config": json.dumps(config), "sha256": weights_digest(tensors)}
    write_atomic(path, safetensors_bytes(tensors, metadata))


def save_hub_folder(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """The same as a folder of the hub's, which is made: the file of weights, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / HUB_FILE, weights, config)
    write_json(folder / "config.json", config)


def weights_digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 of named weights: of names, dtypes, shapes and bytes, whatever file holds them."""
    return digest(dict(sorted(weights.items())))


def named(name: str | Path) -> str | Path:
    """The shipped weights of this name, such as mnist_scd; else, or where it exists, the path."""
    shipped = PRETRAINED / f"{name}.safetensors"
    return shipped if shipped.exists() and not Path(name).exists() else name


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and config of a run's folder (its newest EMA weights), a hub's folder, or a file.

    Raises UserError, in one line, where there is no such thing or it is damaged.
    """
    path = found(path)
    file = path
    if path.is_dir():
        file = hub if (hub := path / HUB_FILE).exists() else path / "checkpoints" / EMA_FILE
    wrong = "a checkpoint, which its own run alone reads" if file.suffix == SUFFIX else ""
    if not file.exists():
        wrong = "no weights in this folder" if path.is_dir() else "no such file or folder"
    if wrong:
        raise UserError(f"{path}: {wrong}; name the folder of a run with weights or its {EMA_FILE}")
    # opened twice: safe_open calls a file missing that it may not read
    with reading(file, WEIGHTS), file.open("rb"), safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        config = dict(json.loads(metadata["config"]))
        _refuse_damaged(metadata["sha256"], weights_digest(weights))
    return weights, config


def stored_digest(path: Path) -> str | None:
    """The `weights_digest` that `save_weights` has written beside them; None where there is none.

    The weights are not read, and so not verified.
    """
    with suppress(UserError), reading(path, WEIGHTS), safe_open(path, framework="pt") as opened:
        return opened.metadata()["sha256"]
    return None
