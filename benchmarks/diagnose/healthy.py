"""Healthy runs, each of which must train well: a finding on one of them is a false alarm."""

from itertools import count
from typing import Any

from benchmarks.diagnose.cases import Case

# What a healthy run must reach on the test split, by base: no more of an error, no less of a score.
BARS: dict[str, tuple[str, float]] = {"waves": ("test/acc", 0.9)}
HEALTHY: list[Case] = []


def controls(base: str, *variants: dict[str, Any]) -> list[Case]:
    """Each with a seed of its own."""
    seeds = count(1)
    return [Case(f"healthy_{base}_{i}", base, {"seed_everything": next(seeds)} | v) for i, v in enumerate(variants)]


def optimizer(name: str, lr: float, **more: Any) -> dict[str, Any]:
    given = {f"model.optimizer.{key}": value for key, value in more.items()}
    return {"model.optimizer": f"torch.optim.{name}", "model.optimizer.lr": lr, **given}


STABLE = {"model.schedule": "src.optim.schedules.WarmupStableDecay"}
HEALTHY += controls(
    "waves", {}, {"model.optimizer.lr": 6e-3}, {"data.batch_size": 32}, optimizer("SGD", 0.1, momentum=0.9)
)
# kind: images
BARS |= {"cnn": ("test/acc", 0.97), "mlp": ("test/acc", 0.95), "lstm": ("test/acc", 0.95), "vit": ("test/acc", 0.9)}
BARS |= {"mnist": ("test/acc", 0.95)}
HEALTHY += controls(
    "cnn",
    {},
    {"trainer.max_epochs": 60},
    {"model.optimizer.lr": 1e-3},
    {"model.optimizer.lr": 9e-3},
    {"data.batch_size": 16, "model.optimizer.lr": 1.5e-3},
    {"data.batch_size": 32},
    {"data.batch_size": 128, "trainer.max_epochs": 30},
    {"data.augment": []},
    {"model.network.dropout": 0.0},
    {"model.network.dropout": 0.5, "trainer.max_epochs": 30},
    {"model.network.batch_norm": False},
    {"model.optimizer.weight_decay": 0.3},
    {"model.label_smoothing": 0.0},
    {"model.network.widths": [16, 32], "model.network.hidden": 64, "trainer.max_epochs": 30},
    {"trainer.gradient_clip_val": 1.0},
    {"ema.decay": 0.98},
    optimizer("SGD", 0.05, momentum=0.9),
    optimizer("RMSprop", 1e-3),
    optimizer("Adam", 2e-3),
    STABLE,
)
HEALTHY += controls(
    "mlp",
    {"trainer.max_epochs": 60},
    {"trainer.max_epochs": 120},
    {"model.optimizer.lr": 1.5e-3, "trainer.max_epochs": 60},
    {"data.batch_size": 32},
    {"data.batch_size": 128, "trainer.max_epochs": 90},
    {"model.network": "benchmarks.diagnose.faulty.LogSoftmaxMLP", "trainer.max_epochs": 60},
    {"model.network.widths": [512, 512], "trainer.max_epochs": 60},
    {"model.network.widths": [128], "trainer.max_epochs": 90},
    {"model.network.dropout": 0.4, "trainer.max_epochs": 90},
    {"data.augment": [], "model.network.dropout": 0.3},
    optimizer("SGD", 0.1, momentum=0.9) | {"trainer.max_epochs": 60},
    optimizer("Adagrad", 0.02) | {"trainer.max_epochs": 60},
    STABLE | {"trainer.max_epochs": 60},
)
HEALTHY += controls("lstm", {}, {"model.optimizer.lr": 3e-3, "trainer.max_epochs": 40})
HEALTHY += controls("vit", {"trainer.max_epochs": 60}, {"model.optimizer.lr": 2e-3, "trainer.max_epochs": 80})
WHOLE = {"trainer.limit_train_batches": 1.0, "trainer.max_epochs": 3}
HEALTHY += controls("mnist", WHOLE, WHOLE | {"model.network.widths": [16, 32, 32]})
# end
# kind: tables
BARS |= {"wine": ("test/acc", 0.9), "cancer": ("test/acc", 0.93), "diabetes": ("test/r2", 0.35)}
BARS |= {"housing": ("test/r2", 0.7)}
HEALTHY += controls(
    "wine",
    {},
    {"model.optimizer.lr": 5e-3},
    {"model.network.dim": 128},
    {"data.batch_size": 16},
    {"model.network.dropout": 0.1},
)
HEALTHY += controls(
    "cancer",
    {},
    {"model.optimizer.lr": 1e-3},
    {"model.optimizer.lr": 5e-3, "trainer.max_epochs": 20},
    {"data.batch_size": 64},
    {"model.network.dropout": 0.5},
    {"data.scale": "quantile"},
    optimizer("SGD", 0.03, momentum=0.9),
    {"model.network.depth": 3},
)
HEALTHY += controls(
    "diabetes",
    {},
    {"model.optimizer.lr": 1.5e-3},
    {"model.network.dim": 32},
    {"data.batch_size": 64},
    {"model.loss": "huber"},
    {"model.network.dropout": 0.5},
    optimizer("SGD", 0.01, momentum=0.9),
)
HEALTHY += controls("housing", {"trainer.max_epochs": 10}, {"trainer.max_epochs": 10, "data.batch_size": 256})
# end
# kind: text
BARS |= {"gpt": ("test/loss", 2.2)}
HEALTHY += controls(
    "gpt",
    {"trainer.max_steps": 800},
    {"trainer.max_steps": 800, "model.optimizer.lr": 6e-3},
    {"trainer.max_steps": 800, "data.batch_size": 32},
    {"trainer.max_steps": 800, "model.network.dim": 96},
)
# end
# kind: series
BARS |= {"seasons": ("test/mse", 0.16), "etth1": ("test/mse", 0.42)}
HEALTHY += controls(
    "seasons",
    {"trainer.max_epochs": 10},
    {"trainer.max_epochs": 10, "data.batch_size": 128},
    {"trainer.max_epochs": 10, "model.optimizer.lr": 2e-3},
    {"model.loss": "mae", "trainer.max_epochs": 10},
)
HEALTHY += controls("etth1", {"trainer.max_epochs": 10})
# end
