import json

from conftest import SMALL


def test_the_report_of_the_data_is_in_the_run_folder(run, tmp_path):
    def reports() -> None:
        from src.data.waves import WavesDataModule

        setup = WavesDataModule.setup

        def reporting(self, stage):
            setup(self, stage)
            self.report = {"note": "synthetic", "rows": 3}

        WavesDataModule.setup = reporting

    run([*SMALL, "--run_dir", tmp_path / "run"], first=reports)
    assert json.loads((tmp_path / "run/data_report.json").read_text()) == {"note": "synthetic", "rows": 3}


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
