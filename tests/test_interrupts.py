"""The first signal is a wish, the second one ends the process at once."""

import os
import signal

import pytest

from scm.interrupts import SIGNALS, Interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_has_its_default_effect(number, caplog):
    before = [signal.getsignal(other) for other in SIGNALS]
    with Interrupts() as interrupts:
        assert interrupts.signal == 0
        os.kill(os.getpid(), number)
        assert interrupts.signal == number and "again to end at once" in caplog.text
        assert [signal.getsignal(other) for other in SIGNALS] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(other) for other in SIGNALS] == before
