from functools import partial

import pytest
import torch
from conftest import (
    BF16_TRUE,
    SMALL,
    SMALL_CNN,  # kind: images
)
from lightning.pytorch import Trainer, seed_everything
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from torch.nn import functional as F

from src.data.module import Arrays
from src.data.waves import WavesDataModule
from src.models.classification import Classification, loss_weights
from src.networks.mlp import MLP
from src.run.errors import ConfigError, DataError


@pytest.fixture
def trained(tmp_path):
    """trained(data class, epochs, data arguments, **arguments of the model) -> trainer, model, data."""

    def trained(kind=WavesDataModule, epochs=8, data=None, **how):
        seed_everything(0, verbose=False)
        data = kind(batch_size=50, cache_dir=str(tmp_path), **(data or {}))  # 144 and 360 samples leave padding
        model = Classification(network=partial(MLP, (64,)), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3), **how)
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=5,
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
        return trainer, model, data

    return trained


def measure(trainer, model, data) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Metrics of the test, and what they are of: targets and probabilities of the samples."""
    metrics = trainer.test(model, datamodule=data, verbose=False)[0]
    batches = trainer.predict(model, datamodule=data)
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    real = joined["index"] >= 0
    assert real.sum() == 360 < len(real)
    return metrics, joined["targets"][real], joined["probabilities"][real]


def test_metrics_of_one_label_are_scikit_learns(trained):
    metrics, targets, p = measure(*trained())
    assert metrics["test/acc"] > 0.9
    assert metrics["test/acc"] == pytest.approx((p.argmax(1) == targets).float().mean().item())
    assert metrics["test/loss"] == pytest.approx(log_loss(targets, p), rel=1e-4)
    assert metrics["test/f1"] == pytest.approx(f1_score(targets, p.argmax(1), average="macro"), rel=1e-5)
    assert metrics["test/auroc"] == pytest.approx(roc_auc_score(targets, p, multi_class="ovr"), abs=1e-4)


class WithoutSevens(WavesDataModule):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        val = self.splits["val"]
        self.splits["val"] = Arrays(val.x[val.targets != 7], val.targets[val.targets != 7])


def test_a_class_that_val_lacks_is_said_once_and_left_out(trained, capsys):
    trainer, _, _ = trained(WithoutSevens, 8)
    assert capsys.readouterr().out.count("val has only, or no, samples of class 7: val/auroc is without it\n") == 1
    assert 0.9 < trainer.callback_metrics["val/auroc"] <= 1
    assert 0.8 < trainer.callback_metrics["val/f1"] <= 1


def test_mixed_batches_train_against_both_labels(trained):
    _, model, data = trained(epochs=1, label_smoothing=0.1, class_weights="balanced")
    batch = data.splits["train"][torch.arange(50)]
    hot = F.one_hot(batch["targets"], 10).float()
    batch["soft_targets"] = 0.7 * hot + 0.3 * hot.roll(1, 0)
    log_p = model(batch["x"]).log_softmax(1)
    soft = batch["soft_targets"] * 0.9 + 0.01
    assert model.training_step(batch, 0).item() == pytest.approx(-(soft * log_p * model.weights).sum(1).mean().item())


def test_weighted_losses_do_not_depend_on_how_a_batch_is_divided(trained):
    _, model, data = trained(epochs=1, class_weights=[5.0, *[1.0] * 9])
    batch = data.on_after_batch_transfer(data.splits["train"][torch.arange(50)], 0)
    parts = [{name: value[i::2] for name, value in batch.items()} for i in range(2)]
    halves = sum(model.training_step(part, 0) for part in parts) / 2
    assert model.training_step(batch, 0).item() == pytest.approx(halves.item())
    by_class = F.cross_entropy(model(batch["x"]), batch["targets"], reduction="none")
    assert halves.item() == pytest.approx((by_class * torch.where(batch["targets"] == 0, 5, 1)).mean().item())


def test_weights_of_classes():
    targets = torch.tensor([0, 0, 0, 2])
    assert loss_weights("balanced", targets, 3).tolist() == pytest.approx([4 / 9, 4 / 3, 4 / 3])
    assert loss_weights([1.0, 2.0, 0.0], targets, 3).tolist() == [1, 2, 0]
    for wrong in ([1.0, 2.0], [1.0, 2.0, -1.0], []):
        with pytest.raises(ConfigError, match=r"model.class_weights: .* give 3 numbers"):
            loss_weights(wrong, targets, 3)


def test_a_class_that_is_not_there_has_no_f1(trained):
    trainer, model, data = trained(WithoutSevens, 1)
    model.network.head.bias.data[7] = -100  # is not predicted, either
    f1 = trainer.validate(model, datamodule=data, verbose=False)[0]["val/f1"]
    val = data.splits["val"][torch.arange(len(data.splits["val"].targets))]
    predicted = model(data.on_after_batch_transfer(val, 0)["x"]).argmax(1)
    assert f1 == pytest.approx(f1_score(val["targets"], predicted, average="macro"), rel=1e-5)


class SeveralLabels(WavesDataModule):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.splits = {name: Arrays(a.x, F.one_hot(a.targets, 10)) for name, a in self.splits.items()}


def test_several_labels_for_a_sample_are_refused(trained):
    with pytest.raises(DataError, match=r"SeveralLabels.setup: labels are torch.int64 \[\d+, 10\] -> make them int64"):
        trained(SeveralLabels, 1)


def test_label_smoothing_is_a_share():
    with pytest.raises(ConfigError, match=r"model.label_smoothing: 1.5 is not from 0 to 1"):
        Classification(label_smoothing=1.5, network=MLP, optimizer=torch.optim.AdamW)


@pytest.mark.parametrize("precision", [BF16_TRUE, "64-true"])
def test_weights_of_any_precision_train(run, tmp_path, precision):
    flags = ["--model.class_weights", "balanced", "--ema.decay", 0.9, "--trainer.precision", precision]
    out = run([*SMALL, *flags, "--trainer.max_epochs", 1, "--pictures.enabled", "true", "--run_dir", tmp_path / "run"])
    assert "test      loss" in out
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert saved["network.head.weight"].dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]


# kind: images
@pytest.mark.parametrize("precision", [BF16_TRUE, "64-true"])
def test_weights_of_any_precision_train_on_mixed_images(run, tmp_path, precision):
    mixed = ["--data.mix", "torchvision.transforms.v2.MixUp", "--model.class_weights", "balanced", "--ema.decay", 0.9]
    short = ["--trainer.precision", precision, "--trainer.max_epochs", 1, "--pictures.enabled", "true"]
    out = run([*SMALL_CNN, *mixed, *short, "--run_dir", tmp_path / "run"])
    assert "test      loss" in out
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert saved["network.head.1.weight"].dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]


# end


def test_a_run_without_end_needs_no_schedule_that_knows_it(run, tmp_path):
    endless = [*SMALL, "--trainer.max_epochs", -1, "--trainer.max_time", "00:00:00:01"]
    out = run([*endless, "--run_dir", tmp_path / "run"], code=2)
    assert "model.schedule: training has no end -> set trainer.max_steps" in out
    constant = ["--model.schedule", "torch.optim.lr_scheduler.ConstantLR"]
    run([*endless, *constant, "--checkpoints.monitor", "val/loss", "--run_dir", tmp_path / "other"])


class Mirrored(WavesDataModule):
    def views(self, x):
        return [x, x.flip(-1)]


def test_the_logits_of_all_views_are_averaged(trained):
    trainer, model, data = trained(Mirrored, 1)
    metrics, targets, p = measure(trainer, model, data)
    x = data.on_after_batch_transfer(data.splits["test"][torch.arange(360)], 0)["x"]
    with torch.no_grad():
        logits = (model(x) + model(x.flip(-1))) / 2
        assert not torch.allclose(model(x).softmax(1), p, atol=1e-3)
    assert torch.allclose(p, logits.softmax(1), atol=1e-6)
    assert metrics["test/loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)


def test_a_network_of_another_output_is_refused(run, tmp_path):
    network = ["--model.network", "torch.nn.Linear", "--model.network.in_features", 64]
    network += ["--model.network.out_features", 7]
    out = run([*SMALL, *network, "--run_dir", tmp_path / "run"], code=2)
    assert "Linear gives [2, 7] for x [2, 64], where logits [2, 10] are wanted -> " in out


def test_a_device_that_is_not_there_is_one_line(run, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    out = run([*SMALL, "--trainer.accelerator", "gpu", "--run_dir", tmp_path / "run"], code=2)
    assert "trainer.accelerator: no gpu is here that torch can use -> take cpu or auto" in out
    assert "Traceback" not in out
