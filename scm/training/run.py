"""A run: goes on from its checkpoint, consumes training steps, evaluates, saves and stops."""

import logging
import time
import traceback
from functools import partial
from typing import Any

from scm.config.read import identity, plain
from scm.core import machine
from scm.core.interrupts import Interrupted, Interrupts
from scm.storage import store
from scm.storage.folder import Status
from scm.training import divergence
from scm.training.assemble import Assembly
from scm.training.loop import train_steps
from scm.training.recorder import Recorder

log = logging.getLogger(__name__)


def run(parts: Assembly) -> dict[str, Any]:
    """Train to the end of the budget, or until interrupted; returns what metrics.json holds.

    To be called once, by all processes of the job together. Any exception is recorded in
    metrics.json, with its traceback, and raised again.
    """
    world, wanted = parts.task.world, parts.task.trainer.deterministic
    recorder = Recorder(parts)
    machine.reset_peak_memory(parts.device)
    try:
        _resume(parts, recorder)
        with (
            recorder.opened(),
            machine.deterministic(wanted, parts.device),
            Interrupts() as interrupts,
        ):
            signal = _train(parts, recorder, interrupts) or _finish(parts, recorder, interrupts)
        status = Status.stopped if signal else Status.done
        world.first(lambda: recorder.write(status=status, signal=signal))
    except Exception:
        if world.is_first:
            recorder.fail(traceback.format_exc())
        raise
    return world.share(parts.folder.metrics())


def _resume(parts: Assembly, recorder: Recorder) -> None:
    """Go on from the newest whole checkpoint, where there is one; all processes do."""
    saved = store.newest(parts.folder.checkpoints, identity(plain(parts.config)))
    if saved is not None:
        parts.learner.load_state_dict(saved)
        if parts.score is not None:
            parts.score.load_state_dict(saved["score"])
        recorder.load_state_dict(saved)
        log.info("going on at step %d: %s", parts.learner.step, parts.folder.path)


def _train(parts: Assembly, recorder: Recorder, interrupts: Interrupts) -> int:
    """Train on and save; returns the signal that ended it, 0 for none.

    Clocks and signals differ between processes: each asks the others before it decides by one.
    """
    learner, task, save = parts.learner, parts.task, partial(_save, parts, recorder)
    steps = train_steps(learner, task, recorder.used, parts.score)
    while not (signal := task.world.largest(interrupts.signal)) and recorder.used() < 1:
        started = time.perf_counter()
        record = next(steps)
        divergence.check(learner, task, parts.folder.path / "diverged.json", parts.score)
        recorder.step(record, started)
        if recorder.used() < 1 and record.step % task.trainer.evaluate_every == 0:
            task.world.first(lambda: _evaluate(parts, recorder, final=False))
        if recorder.used() < 1 and record.step % task.trainer.save_every == 0:
            task.world.first(save)
    task.world.first(save)
    return signal


def _save(parts: Assembly, recorder: Recorder) -> None:
    """Write a checkpoint, the averaged weights by themselves, and metrics.json."""
    state = {
        "config": identity(plain(parts.config)),
        **parts.learner.state_dict(),
        **({} if parts.score is None else {"score": parts.score.state_dict()}),
        **recorder.state_dict(),
    }
    keep = parts.task.trainer.keep_checkpoints
    store.save(parts.folder.checkpoints, state, step=parts.learner.step, keep=keep)
    _save_weights(parts, store.EMA_FILE)
    recorder.write()


def _save_weights(parts: Assembly, name: str) -> None:
    weights = dict(parts.learner.ema.net.state_dict())
    store.save_weights(parts.folder.checkpoints / name, weights, identity(plain(parts.config)))


def _finish(parts: Assembly, recorder: Recorder, interrupts: Interrupts) -> int:
    """The last evaluation; returns the signal that ended it, 0 for none.

    The last checkpoint is there already, so that the next run goes on with this.
    """

    def last() -> None:
        with interrupts.raised():
            _evaluate(parts, recorder, final=True)
        recorder.show_end()

    try:
        parts.task.world.first(last)
    except Interrupted as interrupted:
        return int(interrupted.args[0])
    return 0


def _evaluate(parts: Assembly, recorder: Recorder, *, final: bool) -> None:
    """Evaluate the averaged weights, keep them where they are the best so far, show the result."""
    learner = parts.learner
    evaluation = parts.evaluator(learner.ema.net, learner.step, final=final)
    if recorder.is_best({**evaluation.metrics, **evaluation.constants}):
        _save_weights(parts, store.BEST_FILE)
    recorder.show(evaluation)
