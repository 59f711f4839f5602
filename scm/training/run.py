"""A run: goes on from its checkpoint, consumes training steps, evaluates, saves and stops."""

import logging
import time
import traceback
from functools import partial
from typing import Any

from scm.config.metrics import Hopeless
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


def run(parts: Assembly, hopeless: Hopeless | None = None) -> dict[str, Any]:
    """Train to the end of the budget, or until interrupted; returns what metrics.json holds.

    `hopeless` is asked after each evaluation but the last whether to stop early. To be called once,
    by all processes of the job together. Any exception is recorded in metrics.json, with its
    traceback, and raised again.
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
            end = _train(parts, recorder, interrupts, hopeless)
            end = end or _finish(parts, recorder, interrupts)
        world.first(lambda: recorder.write(**end))
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


def _train(
    parts: Assembly, recorder: Recorder, interrupts: Interrupts, hopeless: Hopeless | None
) -> dict[str, Any]:
    """Train on and save; returns how it ended where that was before the end of its budget.

    Clocks and signals differ between processes: each asks the others before it decides by one.
    """
    learner, task, save = parts.learner, parts.task, partial(_save, parts, recorder)
    steps = train_steps(learner, task, recorder.used, parts.score)
    pruned = False
    while not (signal := task.world.largest(interrupts.signal)) and not pruned:
        if recorder.used() == 1:
            break
        started = time.perf_counter()
        record = next(steps)
        divergence.check(learner, task, parts.folder.path / "diverged.json", parts.score)
        recorder.step(record, started)
        if recorder.used() < 1 and record.step % task.trainer.evaluate_every == 0:
            task.world.first(lambda: _evaluate(parts, recorder, final=False))
            if hopeless is not None:
                pruned = task.world.share(hopeless(record.step, recorder.evaluated))
        if recorder.used() < 1 and record.step % task.trainer.save_every == 0:
            task.world.first(save)
    task.world.first(save)
    if signal:
        return {"status": Status.stopped, "signal": signal}
    return {"status": Status.pruned, "signal": 0} if pruned else {}


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


def _finish(parts: Assembly, recorder: Recorder, interrupts: Interrupts) -> dict[str, Any]:
    """The last evaluation; returns how it ended.

    The last checkpoint is there already, so that the next run goes on with this.
    """

    def last() -> None:
        with interrupts.raised():
            _evaluate(parts, recorder, final=True)
        recorder.show_end()

    try:
        parts.task.world.first(last)
    except Interrupted as interrupted:
        return {"status": Status.stopped, "signal": int(interrupted.args[0])}
    return {"status": Status.done, "signal": 0}


def _evaluate(parts: Assembly, recorder: Recorder, *, final: bool) -> None:
    """Evaluate the averaged weights, keep them where they are the best so far, show the result."""
    learner = parts.learner
    evaluation = parts.evaluator(learner.ema.net, learner.step, final=final)
    if recorder.is_best({**evaluation.metrics, **evaluation.constants}):
        _save_weights(parts, store.BEST_FILE)
    recorder.show(evaluation)
