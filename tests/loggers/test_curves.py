import numpy as np

from src.loggers.curves import curves, whole_rows
from src.loggers.metrics_csv import MetricsCSV


def test_curves_have_a_panel_for_each_kind_and_a_line_for_each_group():
    steps = np.arange(5)
    runs = [{"train/loss": (steps, steps * 1.0), "val/acc": (steps, steps + k)} for k in (0, 2)]
    loss, acc = curves({"A": runs, "B": runs[:1]}).axes
    assert [axes.get_title() for axes in (loss, acc)] == ["loss", "acc"]
    assert [line.get_label() for line in acc.lines] == ["A val", "B val"]
    assert acc.lines[0].get_ydata().tolist() == (steps + 1.0).tolist()  # the mean of two seeds
    assert len(acc.collections) == 1  # and their range


def test_what_a_run_has_taken_that_began_without_these_columns(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss\n4,0,1.0\n9,0,0.5\n")
    log = MetricsCSV(tmp_path, 10)
    log.begin(batch_size=4, flops_per_sample=2)
    log.log_metrics({"train/loss": 0.25}, 19)
    last = whole_rows(tmp_path / "metrics.csv")[-1]
    assert (float(last["perf/samples"]), float(last["perf/flops"])) == (20 * 4, 20 * 4 * 3 * 2)
