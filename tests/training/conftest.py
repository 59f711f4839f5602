"""What the tests of training share."""

import pytest
from runs import TINY, trained


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """A diffusion run of two steps for every model, made when first asked for."""
    made = {}

    def teacher(model):
        if model not in made:
            made[model] = tmp_path_factory.mktemp("teachers") / model
            trained(
                made[model],
                *("objective=diffusion", "sampler.heun.steps=2", *TINY[model]),
                *("trainer.budget.steps=2", "trainer.log_every=1"),
            )
        return made[model]

    return teacher
