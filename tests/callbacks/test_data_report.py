import json
from types import SimpleNamespace

from src.callbacks.data_report import DataReport


def test_a_report_may_say_what_it_likes(tmp_path):
    data = SimpleNamespace(report={"note": "synthetic", "rows": 3})
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, default_root_dir=str(tmp_path), loggers=[])
    DataReport().on_train_start(trainer, None)
    assert json.loads((tmp_path / "data_report.json").read_text()) == {"note": "synthetic", "rows": 3}


# kind: text
def test_a_tokenizer_is_not_in_the_report_of_a_text(run, tmp_path):
    flags = ["--trainer.max_steps", 1, "--trainer.val_check_interval", 1, "--trainer.limit_val_batches", 1]
    flags += ["--trainer.limit_test_batches", 1, "--data.batch_size", 4, "--data.seq_len", 16]
    flags += ["--model.network.dim", 12, "--model.network.depth", 1, "--pictures.enabled", "false"]
    run(["--config", "configs/experiment/text_gpt.yaml", *flags, "--run_dir", tmp_path / "run"])
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    assert report["vocab_size"] > 2
    assert "tokenizer" not in report


# end
