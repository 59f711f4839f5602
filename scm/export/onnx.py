"""A network as one ONNX file, checked against torch before it is written.

Inputs are `x_t` (batch, C, H, W) and the times `t` (batch,) in radians, and where the network has
them `s` (batch,) and `label` (batch,) int64; the output is the `prediction` (batch, C, H, W) of
`scm.export.prediction`. All but the label are float32, and the noise has standard deviation
sigma_data, as everywhere. What a sampler must know stands in the file's metadata.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scm.config.read import plain
from scm.core.errors import UserError
from scm.core.files import write_atomic
from scm.export.prediction import Prediction
from scm.storage.model import Model
from scm.storage.store import WEIGHTS_SHA256

log = logging.getLogger(__name__)

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
TIMES = (0.02, 0.4, 0.8, 1.1, 1.5)  # radians at which both must agree
TOLERANCE = 1e-4  # the largest difference of the two predictions, in units of sigma_data
HALF_TOLERANCE = 1e-2  # the same where weights are rounded to 11 bits


def write(model: Model, file: Path, *, half: bool = False) -> None:
    """Write `model` as `file`; with `half`, weights as float16 that are computed with as float32.

    Raises UserError, and writes nothing, where the packages are missing, or where onnxruntime's
    prediction differs from torch's by more than `TOLERANCE`, or with `half` `HALF_TOLERANCE`.
    """
    check_installed()
    prediction = prediction_of(model)
    graph = exported(model, prediction)
    if half:
        halve(graph.graph)
    for key, value in facts(model).items():
        graph.metadata_props.add(key=key, value=value)
    data = graph.SerializeToString(deterministic=True)
    worst = check(data, model, prediction, file, half=half)
    write_atomic(file, data)
    log.info(
        "%s: %.2f MB; its prediction differs from torch's by at most %.1g sigma_data",
        *(file, len(data) / 1e6, worst),
    )


def check_installed() -> None:
    """Raise UserError where a package is missing that only this needs."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'scm[onnx]'")


def facts(model: Model) -> dict[str, str]:
    """What a sampler must know, by key: numbers, lists and groups as JSON, the rest as it is.

    `samplers` are the run's own, each with its settings, its class, its network calls, and the
    falling times in radians from the start on.
    """
    samplers = {}
    for name, settings in model.facts.sampler.items():
        made, given = model.sampler(name, settings), plain(settings)
        kind = given.pop("_target_").rpartition(".")[2]
        samplers[name] = {"class": kind, **given, "times": made.times, "calls": made.calls}
    return {
        "sigma_data": json.dumps(model.sigma_data),
        "image_shape": json.dumps(model.image_shape),
        "num_classes": json.dumps(model.facts.model.num_classes),
        "learns": model.facts.objective.learns.name,
        "samplers": json.dumps(samplers),
        WEIGHTS_SHA256: model.sha256,
    }


def prediction_of(model: Model) -> Prediction:
    """A copy on the CPU that computes in float32."""
    net = copy.deepcopy(model.net).cpu().float()
    for part in net.modules():
        if hasattr(part, "compute_dtype"):
            part.compute_dtype = torch.float32  # type: ignore[assignment]
    return Prediction(net, model.sigma_data).eval()


def inputs(model: Model, t: Tensor) -> dict[str, Tensor]:
    """A point of noise at each of these times (B,), by the names of the file's inputs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(t), *model.image_shape, generator=generator)
    given = {"x_t": model.sigma_data * noise, "t": t}
    if model.facts.model.second_time:
        given["s"] = t * torch.rand(len(t), generator=generator)
    if classes := model.facts.model.num_classes:
        given["label"] = torch.arange(len(t)) % classes
    return given


def exported(model: Model, prediction: Prediction) -> Any:
    """The ONNX model, an `onnx.ModelProto`, for any batch."""
    given = inputs(model, torch.tensor([0.5, 1.0]))
    with quiet():
        program = torch.onnx.export(
            prediction,
            kwargs=given,
            dynamic_shapes={name: {0: "batch"} for name in given},
            input_names=list(given),
            output_names=["prediction"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    made = program.model_proto  # a new one each time it is asked for
    graph = made.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")  # of the exporter, with paths of this machine
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter logs each node that it changes, and warns of two inputs with the same axis."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")
            yield
    finally:
        logging.disable(level)


def halve(graph: Any) -> None:
    """Store matrices and kernels as float16, each with a Cast back to float32 in its place.

    Vectors (biases, frequencies) are few and stay.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            with np.errstate(over="ignore"):  # an infinite weight does not pass the check
                half = numpy_helper.to_array(tensor).astype(np.float16)
            casts.append(
                helper.make_node(
                    "Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT
                )
            )
            tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}.half"))
    nodes = [*casts, *graph.node]  # a node stands behind those that it takes from
    graph.ClearField("node")
    graph.node.extend(nodes)


def check(data: bytes, model: Model, prediction: Prediction, file: Path, *, half: bool) -> float:
    """The largest difference of onnxruntime's prediction from torch's, in units of sigma_data.

    At each of `TIMES` by itself and at all in one batch. Raises UserError where it is too large.
    """
    import onnxruntime

    tolerance = HALF_TOLERANCE if half else TOLERANCE
    remedy = "leave --half out" if half else "use the versions that constraints.txt names"
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        differences = [
            difference(session, prediction, inputs(model, torch.tensor(times)))
            for times in (*([time] for time in TIMES), TIMES)
        ]
    except Exception as error:  # onnxruntime's own have no common class
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{file}: not written, onnxruntime refuses it ({said}); {remedy}"
        ) from error
    worst = max(differences) / model.sigma_data
    if not worst <= tolerance:
        raise UserError(
            f"{file}: not written, its prediction differs from torch's by {worst:.2g} sigma_data, "
            f"more than {tolerance:g}; {remedy}"
        )
    return worst


def difference(session: Any, prediction: Prediction, given: dict[str, Tensor]) -> float:
    """The largest difference between the file's prediction and torch's; infinite for a NaN."""
    (theirs,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        mine = prediction(**given)
    worst = (torch.from_numpy(theirs) - mine).abs().max()
    return float(worst.nan_to_num(nan=torch.inf))
