"""What is done aside comes back to the loop in order, whatever it raises, and harms nobody else."""

from selectors import DefaultSelector

import pytest

from batchd.supervisor.aside import Aside


def test_work_comes_back_in_order_and_an_error_of_one_call_harms_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[object] = []

    def fail(raised: Exception | None) -> None:
        told.append(type(raised))
        raise KeyError("a bug")

    with DefaultSelector() as selector:
        aside = Aside(selector)
        aside.do(lambda: 1 // 0, fail)
        aside.do(lambda: told.append("done"), told.append)
        while len(told) < 3:
            for key, _ in selector.select(10):
                key.data()
    assert sorted(map(str, told)) == ["<class 'ZeroDivisionError'>", "None", "done"]
    assert "KeyError: 'a bug'" in capsys.readouterr().err
