"""Files whole or not at all."""

import pytest

from common.files import write_atomically


def test_a_text_that_cannot_be_encoded_leaves_the_old_file_whole(tmp_path):
    write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.txt", "new" * 100_000 + "\ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
