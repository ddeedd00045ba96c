import json
from types import SimpleNamespace

from src.callbacks.data_report import DataReport


def test_a_report_may_say_what_it_likes(tmp_path):
    data = SimpleNamespace(report={"note": "synthetic", "tokenizer": "bytes"})
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, default_root_dir=str(tmp_path), loggers=[])
    DataReport().on_train_start(trainer, None)
    assert json.loads((tmp_path / "data_report.json").read_text()) == {"note": "synthetic"}
