"""ONNX files: what onnxruntime predicts is what torch does, alone, in a batch, and in sampling."""

import copy
import json
import logging
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import TINY, untrained

import scm
from scm.commands import export
from scm.core.errors import UserError
from scm.export import onnx
from scm.method import trigflow
from scm.method.samplers import noise_blocks
from scm.storage import store

missing = [name for name in onnx.PACKAGES if find_spec(name) is None]


def with_onnx(test):
    """A test that exports with torch's own exporter, which takes seconds."""
    return pytest.mark.slow(pytest.mark.skipif(bool(missing), reason="needs .[onnx]")(test))


PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
NETWORKS = {
    "unet": TINY["unet_attention"],
    "mobile": (*TINY["unet_mobile"], "model.multipliers=[1]"),
    "dit": (*TINY["dit"], "objective=lsd"),
    "mlp": (*TINY["mlp"], "data=bimodal"),
    "two_times": (*TINY["mlp"], "data=bimodal", "objective=meanflow"),
    "conditional": (*TINY["unet_small"], "model.num_classes=10"),
    "both": (*TINY["unet_small"], "model.num_classes=10", "objective=lsd"),
}


def opened(file):
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def predicted(session, **given):
    """What the file predicts, as a tensor."""
    (made,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    return torch.from_numpy(made)


@pytest.fixture(scope="module")
def student():
    return scm.load("mnist_scd", device="cpu", precision="fp32")


# ---------------------------------------------------------------- without the packages


@pytest.mark.parametrize("name", ["unet", "two_times", "conditional", "both"])
def test_the_prediction_is_what_turns_a_point_into_its_end(name):
    """f(x_t, t, s) = cos(t - s) x_t - sin(t - s) prediction."""
    model = untrained(*NETWORKS[name])
    given = onnx.inputs(model, torch.tensor([0.2, 0.9, 1.5]))
    x_t, t, label = given["x_t"], given["t"], given.get("label")
    s = given.get("s", torch.zeros(3))
    turn = (t - s).view(-1, 1, 1, 1)
    led = torch.cos(turn) * x_t - torch.sin(turn) * onnx.prediction_of(model)(**given)
    expected = model.flow(x_t, t, s, label) if "s" in given else model.denoise(x_t, t, label)
    torch.testing.assert_close(led, expected, rtol=1e-4, atol=1e-5)
    assert ("s" in given) == (name in ("two_times", "both"))
    assert ("label" in given) == (name in ("conditional", "both"))


def test_its_facts_are_what_a_sampler_must_know(student):
    facts = onnx.facts(student)
    assert json.loads(facts["sigma_data"]) == 0.5
    assert json.loads(facts["image_shape"]) == [1, 28, 28]
    assert json.loads(facts["num_classes"]) == 0 and facts["learns"] == "consistency"
    assert facts[store.WEIGHTS_SHA256] == student.sha256
    two = json.loads(facts["samplers"])["two_step"]
    assert two["times"] == pytest.approx([math.atan(80 / 0.5), 1.1])
    assert (two["class"], two["calls"]) == ("ConsistencySteps", 2)


@pytest.mark.parametrize(
    ("error", "half", "said"),
    [
        (0.0, False, ""),
        (4e-5, False, ""),
        (6e-5, False, "differs from torch's by 0.00012 sigma_data, more than 0.0001; use the"),
        (4e-3, True, ""),
        (6e-3, True, "differs from torch's by 0.012 sigma_data, more than 0.01; leave --half out"),
        (math.nan, True, "differs from torch's by inf sigma_data"),
    ],
)
def test_a_prediction_of_another_value_is_refused(error, half, said, monkeypatch, tmp_path):
    """onnxruntime replaced by torch with an error in one image's one value."""
    model = untrained(*NETWORKS["two_times"])
    prediction = onnx.prediction_of(model)

    class Session:
        def __init__(self, data, providers):
            assert data == b"a graph"

        def run(self, outputs, given):
            with torch.no_grad():
                made = prediction(**{name: torch.from_numpy(one) for name, one in given.items()})
            made[-1] += error
            return [made.numpy()]

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    if not said:
        worst = onnx.check(b"a graph", model, prediction, tmp_path / "net.onnx", half=half)
        assert worst == pytest.approx(error / model.sigma_data, rel=1e-2)
        return
    with pytest.raises(UserError, match=f"net.onnx: not written, its prediction {said}"):
        onnx.check(b"a graph", model, prediction, tmp_path / "net.onnx", half=half)


def test_without_the_packages_the_command_names_the_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(onnx, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(SystemExit):
        export.main(["mnist_scd", str(tmp_path / "net"), "--to", "onnx"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "error: ONNX needs no_such_package: pip install 'scm[onnx]'"


# ---------------------------------------------------------------- with them


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The shipped sCD as ONNX, by the command and by its name."""
    made = tmp_path_factory.mktemp("onnx") / "scd.onnx"
    export.main(["mnist_scd", str(made), "--to", "onnx"])
    return made


@with_onnx
@pytest.mark.parametrize("name", ["unet", "mobile", "dit", "mlp", "two_times", "conditional"])
def test_it_predicts_as_torch_does(name, tmp_path):
    model = untrained(*NETWORKS[name])
    onnx.write(model, tmp_path / "net.onnx")
    session, facts = opened(tmp_path / "net.onnx"), model.facts
    inputs = {"x_t", "t"} | ({"s"} if facts.model.second_time else set())
    inputs |= {"label"} if facts.model.num_classes else set()
    assert {one.name for one in session.get_inputs()} == inputs
    generator = torch.Generator().manual_seed(1)
    for n in (1, 2, 5):
        x_t = torch.randn(n, *model.image_shape, generator=generator)
        t = torch.linspace(0.05, 1.55, n)
        s = t * torch.rand(n, generator=generator)
        label = torch.arange(n) + 3 if facts.model.num_classes else None
        given = {"x_t": x_t, "t": t, "s": s, "label": label}
        made = predicted(session, **{key: given[key] for key in inputs})
        F, _ = model.net(x_t / model.sigma_data, t, label, s if "s" in inputs else None)
        torch.testing.assert_close(made, model.sigma_data * F, rtol=1e-4, atol=2e-5)
        assert made.abs().max() > 0.01  # the test sees a network that says something


@with_onnx
def test_steps_with_it_are_the_models(student, file):
    session = opened(file)
    for name, calls in (("one_step", 1), ("two_step", 2)):
        sampler = json.loads(session.get_modelmeta().custom_metadata_map["samplers"])[name]
        assert len(sampler["times"]) == sampler["calls"] == calls
        noise = noise_blocks(3, 0, 6, image_shape=(1, 28, 28), sigma_data=0.5)
        x = torch.zeros(6, 1, 28, 28)
        for k, time in enumerate(sampler["times"]):
            t = torch.full((6,), time)
            x_t = noise(k) if k == 0 else trigflow.interpolate(x, noise(k), t)
            prediction = predicted(session, x_t=x_t, t=t)
            x = math.cos(time) * x_t - math.sin(time) * prediction
        torch.testing.assert_close(x, student.sample(6, steps=calls, seed=3), rtol=0, atol=1e-4)


@with_onnx
def test_the_pages_lines_make_the_models_images_without_torch(student, file, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (block,) = [block for block in blocks if "onnxruntime" in block]
    shutil.copy(file, tmp_path / "digits.onnx")
    ending = "import sys\nassert 'torch' not in sys.modules\nnp.save('x.npy', x)\n"
    subprocess.run([sys.executable, "-c", block + ending], cwd=tmp_path, check=True)
    random = np.random.default_rng(0)
    drawn = [0.5 * random.standard_normal((32, 1, 28, 28), np.float32) for _ in range(2)]
    sampler = student.sampler_with(2)
    x = sampler(student.net, lambda k: torch.from_numpy(drawn[k]), None)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "x.npy")), x, rtol=0, atol=1e-3)


@with_onnx
def test_a_flow_map_leads_to_its_second_time(tmp_path):
    model = untrained(*NETWORKS["two_times"])
    onnx.write(model, tmp_path / "map.onnx")
    session = opened(tmp_path / "map.onnx")
    x, t, s = torch.randn(4, 1, 1, 1), torch.full((4,), 1.2), torch.full((4,), 0.3)
    led = math.cos(0.9) * x - math.sin(0.9) * predicted(session, x_t=x, t=t, s=s)
    torch.testing.assert_close(led, model.flow(x, 1.2, 0.3), rtol=1e-4, atol=1e-5)
    apart = led - model.flow(x, 1.2, 0.8)
    assert apart.abs().max() > 1e-2


@with_onnx
def test_halves_are_half_as_large_and_stay_within_their_bound(student, file, tmp_path):
    half = tmp_path / "half.onnx"
    onnx.write(student, half, half=True)
    assert file.stat().st_size > 8e6 and half.stat().st_size < 0.52 * file.stat().st_size
    session, generator = opened(half), torch.Generator().manual_seed(2)
    x_t = 0.5 * torch.randn(16, 1, 28, 28, generator=generator)
    t = torch.linspace(0.05, 1.55, 16)
    exact = predicted(opened(file), x_t=x_t, t=t)
    worst = (predicted(session, x_t=x_t, t=t) - exact).abs().max() / 0.5
    assert 1e-4 < worst < onnx.HALF_TOLERANCE


@with_onnx
def test_no_file_has_a_path_of_this_machine(file):
    from onnx import checker, load

    data = file.read_bytes()
    assert b"forward" not in data and str(onnx.__file__).encode() not in data
    checker.check_model(load(file), full_check=True)


@with_onnx
def test_a_model_of_16_bits_is_exported_in_32_and_to_the_same_bytes(tmp_path):
    model = untrained(*NETWORKS["mlp"])
    onnx.write(model, tmp_path / "net.onnx")
    rough = copy.deepcopy(model.net)
    rough.compute_dtype = torch.bfloat16
    onnx.write(replace(model, net=rough), tmp_path / "rough.onnx")
    assert (tmp_path / "rough.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
    assert rough.compute_dtype is torch.bfloat16


@with_onnx
@pytest.mark.parametrize("half", [False, True])
def test_a_damaged_graph_is_refused_and_nothing_is_written(half, tmp_path, monkeypatch):
    from onnx import numpy_helper

    sound = onnx.exported

    def damaged(*arguments):
        made = sound(*arguments)
        bias = next(one for one in made.graph.initializer if one.name.endswith("out.bias"))
        values = numpy_helper.to_array(bias) + 0.1
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        return made

    monkeypatch.setattr(onnx, "exported", damaged)
    with pytest.raises(
        UserError, match=r"not written, its prediction differs from torch's by 0\.1"
    ):
        onnx.write(untrained(*NETWORKS["mlp"]), tmp_path / "net.onnx", half=half)
    assert not list(tmp_path.iterdir())


@with_onnx
def test_weights_too_large_for_halves_are_refused(tmp_path):
    model = untrained(*NETWORKS["mlp"])
    with torch.no_grad():
        model.net.stem.weight.mul_(1e6)
        model.net.stem.bias.add_(1)
    with pytest.raises(UserError, match=r"differs from torch's by inf.*leave --half out"):
        onnx.write(model, tmp_path / "net.onnx", half=True)
    assert not list(tmp_path.iterdir())


@with_onnx
def test_what_onnxruntime_cannot_load_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "halve", lambda graph: graph.ClearField("initializer"))
    with pytest.raises(UserError, match=r"net\.onnx: not written, onnxruntime refuses it"):
        onnx.write(untrained(*NETWORKS["mlp"]), tmp_path / "net.onnx", half=True)
    assert not list(tmp_path.iterdir())


@with_onnx
def test_the_command_says_what_it_wrote_and_overwrites_nothing(models, tmp_path, capsys, caplog):
    def failed(*words):
        with pytest.raises(SystemExit) as ended:
            export.main([*words, "--to", "onnx"])
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    toy, name = str(models / "toy"), str(tmp_path / "toy.v2")
    with caplog.at_level(logging.INFO):
        export.main([toy, name, "--to", "onnx"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{name}.onnx: 0.") and "differs from torch's by at most" in line
    assert [path.name for path in tmp_path.iterdir()] == ["toy.v2.onnx"]
    assert "toy.v2.onnx: exists" in failed(toy, f"{name}.onnx")
    export.main([toy, f"{name}.onnx", "--to", "onnx", "--half", "--overwrite"])
    assert [path.name for path in tmp_path.iterdir()] == ["toy.v2.onnx"]
    assert "nothing: no such file or folder" in failed("nothing", str(tmp_path / "new"))
    assert "-n: --to onnx judges no samples" in failed(toy, str(tmp_path / "new"), "-n", "3")
    assert "there is no folder" in failed("mnist_scd", str(tmp_path / "no" / "new"))
