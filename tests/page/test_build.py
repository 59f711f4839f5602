"""What `make page` writes: what is committed is what it would be, and nothing else is accepted."""

import hashlib
import io
import json
import tarfile
from importlib.metadata import PackageNotFoundError, version

import pytest

import scm
from docs.page import build
from scm.core.files import REPOSITORY

PINNED = dict(
    line.split("==")
    for line in (REPOSITORY / "constraints.txt").read_text().split("\n")
    if "==" in line
)
WRITERS = ("torch", "onnx", "onnxscript", "onnx-ir")  # whose versions decide the bytes


def is_pinned(package):
    try:
        return version(package).partition("+")[0] == PINNED[package]
    except PackageNotFoundError:
        return False


def facts(file):
    """An ONNX file's metadata."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'scm[onnx]'")
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "runtime").mkdir()
    monkeypatch.setattr(build, "PAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", build.RUNTIME)
def test_the_runtime_is_the_package_s(name):
    data = (build.PAGE / "runtime" / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == build.RUNTIME[name]


def test_the_runtime_has_its_licence_and_its_version():
    text = (build.PAGE / "runtime" / "LICENSE").read_text()
    assert "MIT License" in text and "Microsoft Corporation" in text
    number = build.PACKAGE.rpartition("@")[2]
    script = (build.PAGE / "runtime" / build.MODULE).read_text()
    assert f"ONNX Runtime Web v{number}" in script
    assert number in (build.PAGE / "index.html").read_text()


@pytest.mark.parametrize("name", build.NETWORKS)
def test_the_networks_are_the_shipped_ones(name):
    found = facts(build.PAGE / f"{name}.onnx")
    assert found["weights_sha256"] == scm.load(name, device="cpu").sha256
    assert json.loads(found["sigma_data"]) == 0.5


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(is_pinned, WRITERS)), reason="other versions than constraints.txt names"
)
def test_it_writes_the_same_bytes_again(elsewhere, monkeypatch):
    committed = REPOSITORY / "docs" / "page"
    runtime = {name: (committed / "runtime" / name).read_bytes() for name in build.RUNTIME}
    monkeypatch.setattr(build, "fetched", lambda: runtime)
    build.main([])
    written = [file for file in elsewhere.rglob("*") if file.is_file()]
    assert len(written) == 4
    for file in written:
        assert file.read_bytes() == (committed / file.relative_to(elsewhere)).read_bytes(), file


def test_another_package_is_refused():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo(f"package/dist/{build.MODULE}")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"other"))
    data.seek(0)
    with tarfile.open(fileobj=data) as archive, pytest.raises(scm.UserError, match="do not use"):
        build.verified(archive, build.MODULE)


@pytest.mark.parametrize(
    ("npm", "said"),
    [(None, "install Node.js"), ("#!/bin/sh\necho refused >&2; exit 1\n", "refused; look at")],
)
def test_what_npm_refuses_is_one_line(elsewhere, monkeypatch, capsys, npm, said):
    monkeypatch.setenv("PATH", str(elsewhere))
    if npm:
        (elsewhere / "npm").write_text(npm)
        (elsewhere / "npm").chmod(0o755)
    monkeypatch.setattr(build.onnx, "check_installed", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        build.main([])
    assert said in capsys.readouterr().err
    assert not list(elsewhere.glob("*.onnx"))


def test_nothing_is_overwritten_unasked(capsys):
    with pytest.raises(SystemExit, match="2"):
        build.main([])
    assert "add --overwrite" in capsys.readouterr().err
