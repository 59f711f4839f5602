"""The first signal is a wish, the second one ends the process at once."""

import os
import signal

import pytest

from scm.core.interrupts import SIGNALS, Interrupted, Interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_has_its_default_effect(number, caplog):
    before = [signal.getsignal(other) for other in SIGNALS]
    with Interrupts() as interrupts:
        assert interrupts.signal == 0
        os.kill(os.getpid(), number)
        assert interrupts.signal == number and "again to end at once" in caplog.text
        assert [signal.getsignal(other) for other in SIGNALS] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(other) for other in SIGNALS] == before


def test_in_work_without_steps_it_is_raised_also_where_it_was_noted_before():
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted, match=str(int(signal.SIGTERM))), interrupts.raised():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("nothing was raised")
        assert interrupts.signal == signal.SIGTERM
        with pytest.raises(Interrupted), interrupts.raised():
            pytest.fail("nothing was raised")
