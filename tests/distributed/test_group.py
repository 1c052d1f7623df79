import pytest

from tests.distributed import cases
from tests.distributed.group import CaseFailed, Group


def test_many_cases_run_in_the_same_processes(group):
    first, second = group(2).run(cases.total, 1), group(2).run(cases.total, 10)
    assert [value for _, value in first] == [3, 3]
    assert [value for _, value in second] == [30, 30]
    assert [pid for pid, _ in first] == [pid for pid, _ in second]


def test_each_case_has_a_store_of_its_own(group):
    assert group(2).run(cases.publish, "one") == ["one", "one"]
    assert group(2).run(cases.publish, "two") == ["two", "two"]


def test_a_failure_shows_the_rank_its_traceback_and_its_output_and_the_next_case_runs():
    two = Group(2)
    try:
        with pytest.raises(CaseFailed, match="rank 1 of 2: failed") as caught:
            two.run(cases.fail_on, 1)
        assert "ValueError: a broken case" in str(caught.value)
        assert "something the rank said before" in str(caught.value)
        with pytest.raises(CaseFailed, match="hang_on"):
            two.run(cases.hang_on, 0, timeout=8.0)
        with pytest.raises(CaseFailed, match="rank 0 of 2: died\nexit code 3"):
            two.run(cases.die_on, 0)
        assert [value for _, value in two.run(cases.total, 1)] == [3, 3]
    finally:
        two.close()
