"""diffusers: the folder is whole, and the pipeline's images are `Model.sample`'s."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from runs import TINY, untrained

import scm
from scm.commands import export
from scm.core.errors import UserError
from scm.export import diffusers

REPOSITORY = Path(__file__).resolve().parents[2]
with_diffusers = pytest.mark.skipif(find_spec("diffusers") is None, reason="needs .[diffusers]")

MORE = """
from scm.export.pipeline import Pipeline
import torch

def made(pipe, n, **more):
    generator = torch.Generator().manual_seed(3)
    return pipe(4, n, generator=generator, output_type="pt", **more).images

pipe.save_pretrained("again")
labelled, again = Pipeline.from_pretrained("labelled"), Pipeline.from_pretrained("again")
found = {
    **{n: made(pipe, n) for n in (1, 2, 3)},
    "turn": made(labelled, 2),
    "seven": made(labelled, 2, label=7),
    "again": made(again, 2),
    "rough": made(Pipeline.from_pretrained("again", torch_dtype=torch.bfloat16), 1),
}
torch.save({"found": found, "sizes": [image.size for image in images]}, "found.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped sCD for diffusers, by the command and by its name."""
    made = tmp_path_factory.mktemp("diffusers") / "digits"
    export.main(["mnist_scd", str(made), "--to", "diffusers"])
    return made


def expected(model, n, label=None):
    """What the model's own sampler makes of the noise that diffusers draws."""
    generator = torch.Generator().manual_seed(3)
    drawn = [0.5 * torch.randn(4, *model.image_shape, generator=generator) for _ in range(n)]
    with torch.no_grad():
        x = model.sampler_with(n)(model.net, lambda k: drawn[k], model.labels(4, label))
    return (x + 0.5).clamp(0, 1)


def test_the_folder_is_the_hubs_and_diffusers(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("model.safetensors", "config.json", "README.md", "model_index.json"),
        "scheduler/scheduler_config.json",
    }
    shipped, loaded = (scm.load(name, device="cpu") for name in ("mnist_scd", folder))
    assert loaded.sha256 == shipped.sha256 and loaded.config == shipped.config
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == {"_class_name": "SCMScheduler", "sigma_data": 0.5}
    text = (folder / "README.md").read_text()
    assert shipped.sha256 in text and 'from_pretrained("digits")' in text and "{" not in text
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert block in (REPOSITORY / "docs" / "python.md").read_text()


def failure(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main([str(one) for one in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_the_scheduler_does_not_suit_is_refused(folder, tmp_path, capsys):
    to = ("--to", "diffusers")
    said = failure(["mnist_teacher", tmp_path / "teacher", *to], capsys)
    assert "learns velocity, and diffusers' SCMScheduler takes networks that learn consi" in said
    assert "digits: exists; name another folder" in failure(["mnist_scd", folder, *to], capsys)
    assert "--half: stores" in failure(["mnist_scd", tmp_path / "x", *to, "--half"], capsys)
    assert "there is no folder" in failure(["mnist_scd", tmp_path / "no" / "x", *to], capsys)
    assert not list(tmp_path.iterdir())


def test_a_flow_map_is_refused(tmp_path):
    model = untrained(*TINY["mlp"], "data=bimodal", "objective=meanflow")
    with pytest.raises(UserError, match=r"learns flow_map.*use --to onnx"):
        diffusers.write(model, tmp_path / "map")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@with_diffusers
def test_its_images_are_the_samplers_in_a_fresh_process(folder):
    """The lines of the folder's own README, then more; the noise is what diffusers draws."""
    place = folder.parent
    conditional = untrained(*TINY["unet_small"], "model.num_classes=10")
    diffusers.write(conditional, place / "labelled")
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", block + MORE]
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
    made = torch.load(place / "found.pt", weights_only=True)
    assert made["sizes"] == [(28, 28)] * 16
    found, student = made["found"], scm.load("mnist_scd", device="cpu", precision="fp32")
    for name, model, n, label in (
        *((n, student, n, None) for n in (1, 2, 3)),
        ("again", student, 2, None),
        ("turn", conditional, 2, None),
        ("seven", conditional, 2, 7),
    ):
        torch.testing.assert_close(found[name], expected(model, n, label), rtol=0, atol=1e-5)
    assert (found["turn"] - found["seven"]).abs().max() > 1e-2
    assert 1e-4 < (found["rough"] - found[1]).abs().max() < 0.2
