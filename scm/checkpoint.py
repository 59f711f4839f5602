"""Checkpoints: written whole, verified when read, loadable without running code.

A checkpoint is a dict of tensors, numbers, strings, lists and dicts. Its `sha256` covers everything
else in it: torch.load and safetensors both load a flipped bit silently. Knows nothing of training.
"""

import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from scm.errors import UserError
from scm.files import found, write_atomic

log = logging.getLogger(__name__)

SUFFIX = ".pt"
EMA_FILE = "ema.safetensors"
WEIGHTS_SHA256 = "weights_sha256"  # key of `weights_digest` in every record that names weights
BEST_FILE = "best.safetensors"  # the EMA weights of the best evaluation so far


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
    try:
        _refuse_growing(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        expected = state.pop("sha256")
        _refuse_unbacked(state, path.stat().st_size)
        actual = digest(state)
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint of this project ({reason})") from error
    if actual != expected:
        raise UserError(
            f"{path}: damaged, its contents do not match their checksum; restore the file"
        )
    return state


def _refuse_growing(path: Path) -> None:
    """torch.save compresses nothing and stores all once: anything else could fill the memory.

    So could a device such as /dev/zero, which has no end.
    """
    if not path.is_file():
        raise ValueError("not a file")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("holds compressed parts")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("claims more bytes than it has")


def _refuse_unbacked(state: Any, size: int) -> None:
    """A tensor may claim any shape over a few bytes, with strides of 0: it must have its bytes.

    Lists that hold a list many times, on many levels, unfold to more parts than a file of `size`
    bytes has: they could be walked for ever.
    """
    waiting, seen = [state], 0
    while waiting:
        part, seen = waiting.pop(), seen + 1
        if seen > size:
            raise ValueError("holds parts within parts without end")
        if isinstance(part, Tensor) and part.nbytes > part.untyped_storage().nbytes():
            raise ValueError(f"holds a tensor of shape {tuple(part.shape)} without its values")
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part


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


def weights_digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 of named weights: of names, dtypes, shapes and bytes, whatever file holds them."""
    return digest(dict(sorted(weights.items())))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """EMA weights and resolved config of a run folder, a checkpoint or a safetensors file.

    Raises UserError, in one line, where there is no such thing or it is damaged.
    """
    path = found(path)
    if path.is_dir():
        state = newest(path / "checkpoints")
        if state is None:
            raise UserError(f"{path}: no checkpoint in this folder; name a run's folder or a file")
    elif not path.exists():
        raise UserError(f"{path}: no such file or folder; name a run's folder or a checkpoint file")
    elif path.suffix == ".safetensors" and path.is_file():
        return _read_safetensors(path)
    else:
        state = read(path)
    weights = state.get("ema")
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path}: holds no weights of this project")
    return weights, state.get("config", {})


def stored_digest(path: Path) -> str | None:
    """The `weights_digest` that `save_weights` has written beside them; None where there is none.

    The weights are not read, and so not verified.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path.open("rb").close()  # safe_open calls a file missing that it may not read
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(metadata["config"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not weights of this project ({error})") from error
    if weights_digest(weights) != metadata.get("sha256"):
        raise UserError(
            f"{path}: damaged, its weights do not match their checksum; restore the file"
        )
    return weights, config
