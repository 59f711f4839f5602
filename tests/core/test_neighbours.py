"""Who else is on the cores, and what follows from it; nothing is imported or started."""

import os
import sys

import pytest

from scm.core import neighbours


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of two cores, all of them this process's, without torch; ticks pass as told."""
    monkeypatch.setattr(neighbours, "STAT", tmp_path / "stat")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    for name in neighbours.ASKED:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def passes(user, idle):
        def write(user, idle):
            neighbours.STAT.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2\n")

        write(1000, 5000)
        monkeypatch.setattr(neighbours.time, "sleep", lambda s: write(1000 + user, 5000 + idle))

    return passes


@pytest.mark.parametrize(("user", "idle", "cores"), [(0, 20, 2.0), (10, 10, 1.0), (20, 0, 0.0)])
def test_idle_cores_are_counted_by_ticks(machine, user, idle, cores):
    machine(user, idle)
    assert neighbours.idle_cores() == pytest.approx(cores)


def test_threads_yield_beside_a_busy_process_alone(machine):
    machine(user=2, idle=18)
    assert not neighbours.make_threads_yield() and "GOMP_SPINCOUNT" not in os.environ
    machine(user=10, idle=10)
    assert neighbours.make_threads_yield() and os.environ["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize("name", neighbours.ASKED)
def test_a_users_own_choice_stands(machine, monkeypatch, name):
    monkeypatch.setenv(name, "7")
    machine(user=20, idle=0)
    assert not neighbours.make_threads_yield() and os.environ[name] == "7"


def test_it_is_too_late_once_torch_is_there(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    machine(user=20, idle=0)
    assert not neighbours.make_threads_yield()


def test_elsewhere_nothing_is_done(machine):
    assert not neighbours.STAT.exists() and not neighbours.make_threads_yield()
