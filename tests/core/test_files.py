"""What is wrong with a file is one line that names it."""

import errno
import json

import pytest

from scm.core.errors import UserError
from scm.core.files import reading


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("first\nsecond"), "not a list (first)"),
        (KeyError("config"), "not a list (it has no 'config')"),
        (RecursionError(), "not a list (RecursionError)"),
        (MemoryError(), "not a list (MemoryError)"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; change its perm"),
        (UserError("data: missing"), "b: data: missing"),
    ],
)
def test_whatever_fails_is_one_line(error, said, tmp_path):
    with pytest.raises(UserError) as refused, reading(tmp_path / "b", "a list", "mend it"):
        raise error
    message = str(refused.value)
    assert said in message and "b: " in message and "\n" not in message
    assert message.endswith("; mend it") == message.startswith(f"{tmp_path / 'b'}: not a list")


def test_a_file_is_named_once(tmp_path):
    with pytest.raises(UserError) as refused, reading(tmp_path / "b", "a list"):
        raise UserError(f"{tmp_path / 'b'}: damaged")
    assert str(refused.value).count(str(tmp_path)) == 1


def test_a_stop_is_no_fault_of_the_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), reading(tmp_path / "b", "a list"):
        raise KeyboardInterrupt


def test_only_a_file_is_read(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(UserError, match=r"not a list \(not a file\)"), reading(path, "a list"):
            pytest.fail("was read")
    (tmp_path / "b").write_text("[1]")
    with reading(tmp_path / "b", "a list"):
        assert json.loads((tmp_path / "b").read_text()) == [1]
