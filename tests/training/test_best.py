"""The weights of the best evaluation, over a stop."""

import pytest
from runs import TINY, trained
from signals import signal_at

from scm.evaluation.evaluator import Evaluation, Evaluator
from scm.storage import store


@pytest.mark.slow
def test_the_best_evaluations_weights_are_kept(tmp_path, monkeypatch):
    """Losses 3, 1, 2 at steps 2, 4, 6: the weights of step 4, also after a stop at step 5."""

    def evaluated(self, net, step, *, final):
        seen[step] = store.digest(dict(sorted(net.state_dict().items())))
        return Evaluation(metrics={"eval/loss": {2: 3.0, 4: 1.0, 6: 2.0}[step]})

    seen = {}
    monkeypatch.setattr(Evaluator, "__call__", evaluated)
    run = (*TINY["unet_small"], "trainer.budget.steps=6", "trainer.evaluate_every=2")
    with monkeypatch.context() as context:
        signal_at(4, context)
        trained(tmp_path / "run", *run)
    metrics = trained(tmp_path / "run", *run)
    assert metrics["best"] == {"step": 4, "metric": "eval/loss", "value": 1.0}
    weights, _ = store.read_weights(tmp_path / "run" / "checkpoints" / store.BEST_FILE)
    assert store.digest(dict(sorted(weights.items()))) == seen[4] != seen[6]
