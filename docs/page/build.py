"""Write the files of this page that are built: `make page`.

The two networks as ONNX with weights in half precision, out of pretrained/, and ONNX Runtime Web's
two files out of its npm package, checked by their SHA-256. Its LICENSE and ThirdPartyNotices.txt,
which that package lacks, are those of the Python package of the same version. The same versions of
torch, onnx and onnxscript write the same bytes.
"""

import argparse
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import scm
from scm.core.cli import Parser, check_file, command
from scm.core.errors import UserError
from scm.core.files import write_atomic
from scm.export import onnx

PAGE = Path(__file__).resolve().parent
NETWORKS = ("mnist_dmd", "mnist_teacher")  # of pretrained/
PACKAGE = "onnxruntime-web@1.30.0"
MODULE = "ort.wasm.bundle.min.mjs"
BINARY = "ort-wasm-simd-threaded.wasm"
RUNTIME = {  # a file of the package's dist/ -> its SHA-256
    MODULE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def main(argv: list[str] | None = None) -> None:
    """Write all four; a user's mistake is one line and exit code 2."""
    p = Parser(prog="python docs/page/build.py", description=__doc__)
    p.add_argument("--overwrite", action="store_true", help="files that are there")
    command(p, build, argv)


def build(arguments: argparse.Namespace) -> None:
    """Everything is checked, and the package fetched, before anything is written."""
    networks = {name: PAGE / f"{name}.onnx" for name in NETWORKS}
    for file in (*networks.values(), *(PAGE / "runtime" / name for name in RUNTIME)):
        check_file(file, overwrite=arguments.overwrite)
    onnx.check_installed()
    for name, data in fetched().items():
        write_atomic(PAGE / "runtime" / name, data)
    for name, file in networks.items():
        onnx.write(scm.load(name, device="cpu", precision="fp32"), file, half=True)


def fetched() -> dict[str, bytes]:
    """ONNX Runtime Web's files. UserError where npm does not bring them, or brings others."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm: not installed, and it brings onnxruntime-web; install Node.js")
    with tempfile.TemporaryDirectory() as folder:
        packed = [npm, "pack", PACKAGE, "--silent", "--pack-destination", folder]
        run = subprocess.run(packed, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or not archives:
            said = next(iter(run.stderr.splitlines()), f"exit code {run.returncode}")
            raise UserError(f"npm pack {PACKAGE}: {said}; look at the network and npm's settings")
        with tarfile.open(archives[0]) as archive:
            return {name: verified(archive, name) for name in RUNTIME}


def verified(archive: tarfile.TarFile, name: str) -> bytes:
    """One file of the package."""
    file = archive.extractfile(f"package/dist/{name}")
    data = file.read() if file else b""
    if (found := hashlib.sha256(data).hexdigest()) != RUNTIME[name]:
        raise UserError(
            f"{PACKAGE}: {name} has SHA-256 {found}, not {RUNTIME[name]}; do not use this package"
        )
    return data


if __name__ == "__main__":
    main()
