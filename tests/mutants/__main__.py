"""Deliberate faults against the fast tests: `make mutants`, or some: `make mutants NAMES="..."`.

Each fault of faults.yaml is put into a copy of the project, where the tests that should notice it
run first, and then all fast tests. What was found stands in outputs/mutants.json, under a hash of
the sources, so the command goes on where it was stopped. It ends with 1 where a fault survived that
SURVIVORS does not name.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import yaml
from tqdm import tqdm

from scm.core.files import REPOSITORY, write_json

FAULTS = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text())
SURVIVORS: dict[str, str] = {}  # faults that no test can or need see -> why
FOUND = REPOSITORY / "outputs" / "mutants.json"
FAST = ["-m", "not slow", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
SECONDS = 900  # of one run of the tests; a fault that makes them hang counts as noticed


def tracked() -> list[str]:
    """The project's files, those not yet committed among them."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.check_output(listed, cwd=REPOSITORY, text=True).splitlines()


def copied(to: Path, files: list[str]) -> Path:
    """A copy of the project in `to`."""
    for name in files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, to / name)
    return to


def noticed_by(copy: Path, name: str) -> str | None:
    """The first test that fails with this fault in `copy`, which is mended afterwards."""
    fault = FAULTS[name]
    file = copy / fault["file"]
    sound = file.read_text()
    if sound.count(fault["old"]) != 1:
        raise SystemExit(f"{name}: its text does not stand once in {fault['file']}; mend the fault")
    file.write_text(sound.replace(fault["old"], fault["new"]))
    try:
        return failed(copy, fault["near"]) or failed(copy)
    finally:
        file.write_text(sound)


def failed(copy: Path, *tests: str) -> str | None:
    """The first failing test's name; None where all pass."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *FAST, *tests]
    try:
        run = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return "(time is up)"
    if run.returncode in (0, 5):  # 5: none of them is a fast one
        return None
    lines = [line for line in run.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split()[1] if lines else f"(exit {run.returncode})"


def main(names: list[str]) -> int:
    """Try the faults that have no answer yet, as many at a time as there are cores."""
    if unknown := [name for name in names if name not in FAULTS]:
        raise SystemExit(f"{unknown[0]}: no such fault; faults.yaml names them all")
    files = tracked()
    sha = hashlib.sha256()
    for path in files:
        if path.startswith(("scm/", "conf/", "tests/", "docs/page/")):
            sha.update(path.encode() + (REPOSITORY / path).read_bytes())
    key, known = sha.hexdigest()[:16], json.loads(FOUND.read_text()) if FOUND.exists() else {}
    found: dict[str, str | None] = known.get(key, {})
    todo = [name for name in names or FAULTS if name not in found]
    with tempfile.TemporaryDirectory() as temporary, tqdm(total=len(todo), unit="fault") as bar:
        copies: SimpleQueue[Path] = SimpleQueue()
        workers = os.cpu_count() or 1
        for k in range(workers):
            copies.put(copied(Path(temporary) / str(k), files))

        if todo and (broken := failed(Path(temporary) / "0")):
            raise SystemExit(f"{broken} fails without any fault; mend that first")

        def tried(name: str) -> None:
            copy = copies.get()
            try:
                found[name] = noticed_by(copy, name)
            finally:
                copies.put(copy)
            bar.update()
            bar.write(f"{name:40} {found[name] or 'SURVIVED'}")
            FOUND.parent.mkdir(exist_ok=True)
            write_json(FOUND, {key: dict(found)})

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(tried, todo))
    survived = sorted(name for name, test in found.items() if test is None)
    killed = len(found) - len(survived)
    print(f"{killed} of {len(found)} faults noticed ({killed / len(found):.0%}); survived:")
    print("\n".join(f"  {name}: {SURVIVORS.get(name, 'NOT EXPECTED')}" for name in survived))
    return int(any(name not in SURVIVORS for name in survived))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
