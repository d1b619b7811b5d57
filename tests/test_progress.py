"""Bars are shown unless someone says no: the caller or the environment, in a notebook as well."""

import datasets
import pytest

from manu_utils.progress import bar, no_dataset_bars


@pytest.mark.parametrize(
    ("variable", "shown", "drawn"), [("", True, True), ("0", True, True), ("1", True, False), ("", False, False)]
)
def test_bar_listens_to_caller_and_environment(monkeypatch, capsys, variable, shown, drawn):
    monkeypatch.setenv("TQDM_DISABLE", variable)
    assert list(bar(range(3), shown=shown, desc="work")) == [0, 1, 2]
    assert ("work" in "".join(capsys.readouterr())) is drawn


def test_dataset_bars_come_back_even_after_an_error():
    before = datasets.are_progress_bars_disabled()
    with pytest.raises(ZeroDivisionError), no_dataset_bars():
        assert datasets.are_progress_bars_disabled()
        raise ZeroDivisionError
    assert datasets.are_progress_bars_disabled() is before
