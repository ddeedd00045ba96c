import numpy as np

from src.loggers.curves import curves


def test_curves_have_a_panel_for_each_kind_and_a_line_for_each_group():
    steps = np.arange(5)
    runs = [{"train/loss": (steps, steps * 1.0), "val/acc": (steps, steps + k)} for k in (0, 2)]
    loss, acc = curves({"A": runs, "B": runs[:1]}).axes
    assert [axes.get_title() for axes in (loss, acc)] == ["loss", "acc"]
    assert [line.get_label() for line in acc.lines] == ["A val", "B val"]
    assert acc.lines[0].get_ydata().tolist() == (steps + 1.0).tolist()  # the mean of two seeds
    assert len(acc.collections) == 1  # and their range
