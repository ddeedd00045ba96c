"""The Trainer does what a plain PyTorch loop does, bit for bit."""

import torch
from conftest import SMALL_CNN
from lightning.pytorch import seed_everything
from torch.nn import functional as F

from src.data.images.augment import Affine, augment
from src.data.images.module import ImageDataModule
from src.data.order import TrainOrder
from src.networks.cnn import CNN
from src.optim.schedules import WarmupCosine


def test_ten_lines_give_the_same_weights(run, tmp_path):
    run([*SMALL_CNN, "--run_dir", tmp_path / "run"])
    trained = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    data = ImageDataModule(batch_size=64, cache_dir=str(tmp_path))
    data.setup("fit")

    seed_everything(0)
    network = CNN((8, 8), hidden=16, padding=1, dropout=0.2, batch_norm=True, **data.facts)
    network.to(memory_format=torch.channels_last)
    matrices, vectors = ([p for p in network.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.05, fused=True)
    schedule = WarmupCosine(optimizer, num_steps=60)
    for epoch in range(3):
        for index in TrainOrder(1293, 64, 64, seed=0, position=lambda e=epoch: (e, 0)):
            batch = data.splits["train"][index]
            x = augment(batch["x"].float() / 255, index, [Affine(10, 0.1, 0.1)], seed=0, epoch=epoch)
            loss = F.cross_entropy(network(data.standardize(x)), batch["targets"], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    weights = network.state_dict()
    assert len(weights) == len(trained) > 10
    assert all(torch.equal(trained[f"network.{name}"], weight) for name, weight in weights.items())
