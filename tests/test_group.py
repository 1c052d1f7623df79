import pytest

from tests.support import failing_ranks
from tests.support.group import CaseFailed


def test_each_case_has_processes_and_a_store_of_its_own(group):
    first, second = group(2).run(failing_ranks.total, 1), group(2).run(failing_ranks.total, 10)
    assert [value for _, value in first] == [3, 3]
    assert [value for _, value in second] == [30, 30]
    assert not {pid for pid, _ in first} & {pid for pid, _ in second}
    assert group(2).run(failing_ranks.publish, "one") == ["one", "one"]
    assert group(2).run(failing_ranks.publish, "two") == ["two", "two"]


def test_a_failure_shows_the_rank_its_traceback_and_its_output(group):
    two = group(2)
    with pytest.raises(CaseFailed, match="rank 1 of 2: failed") as caught:
        two.run(failing_ranks.fail_on, 1)
    assert "ValueError: a broken case" in str(caught.value)
    assert "something the rank said before" in str(caught.value)
    with pytest.raises(CaseFailed, match="hang_on"):
        two.run(failing_ranks.hang_on, 0, timeout=8.0)
    with pytest.raises(CaseFailed, match="rank 0 of 2: died\nexit code 3"):
        two.run(failing_ranks.die_on, 0)
