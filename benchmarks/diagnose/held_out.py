"""Faults that no threshold of src.diagnose was tuned on. Ask of them once, when all is settled.

Those called `so_NUMBER` are programs of questions on Stack Overflow, as DeepLocalize's benchmark keeps them (Wardat, Le
and Rajan, DeepLocalize: Fault Localization for Deep Neural Networks, ICSE 2021), `umlaut_b` is the program of UMLAUT's
user study (Schoop, Huang and Hartmann, UMLAUT: Debugging Deep Learning Programs using Program Structure and Model
Behavior, CHI 2021): architecture, end, optimizer and rate as they are there, on data that is here. Keras's losses are
ours: cross-entropy that takes logits. `example` is a beginner's CNN with a softmax before that loss.
"""

from benchmarks.diagnose.cases import BASES, DATA, Base, Case
from benchmarks.diagnose.faults import BLIND, DISK, HERE, NO_HEAD, NOISE, NOTHING, OTHER_OPTIMIZER, RARE, SCALE, fault

HELD_OUT: list[Case] = []
TOO_SLOW = ("SLOW check data_bound|data_wait|transform|slow_transform",)
# kind: images
HELD_OUT += [
    fault(
        "example",
        "mnist",
        "end of the network",
        {"model.network": f"{HERE}.SoftmaxCNN", "model.optimizer": "torch.optim.Adam", "model.optimizer.lr": 1e-3},
        *NO_HEAD,
    ),
    fault(
        "so_47352366",
        "mnist",
        "end of the network",
        {
            "model.network": f"{HERE}.ReluCNN",
            "model.network.widths": [32, 64],
            "model.network.hidden": 512,
            "model.network.dropout": 0.5,
            "model.optimizer": "torch.optim.Adam",
            "model.optimizer.lr": 1e-3,
            "data.batch_size": 50,
            "trainer.limit_train_batches": 500,
        },
        "BADLY check head_activation|relu_on_logits|activation_before_loss",
    ),
    fault(
        "so_48385830",
        "mnist",
        "rate too high",
        {
            "model.network": f"{HERE}.NormalLinear",
            "model.optimizer": "torch.optim.SGD",
            "model.optimizer.lr": 3.0,
            "data.batch_size": 10,
            "trainer.limit_train_batches": 2000,
        },
        "BADLY model.optimizer.lr < 1",
        "BADLY model.reset = true",
        *OTHER_OPTIMIZER,
    ),
    fault(
        "so_55328966",
        "mnist",
        "scale, end, rate",
        {
            "model.network": f"{HERE}.SigmoidMLP",
            "model.network.widths": [784, 50],
            "data.mean": [0.0],
            "data.std": [0.00392],
            "model.optimizer": "torch.optim.SGD",
            "model.optimizer.lr": 1e-4,
            "data.batch_size": 32,
            "trainer.limit_train_batches": 800,
        },
        "BADLY data.std",
        "BADLY data.mean",
        "BADLY data.normalize",
        "BADLY model.optimizer.lr > 3e-4",
        *NO_HEAD,
        *SCALE,
        *OTHER_OPTIMIZER,
    ),
    fault(
        "so_44164749",
        "mnist",
        "batch",
        {
            "model.network": "benchmarks.diagnose.faulty.PlainMLP",
            "model.network.widths": [1000, 600],
            "model.network.dropout": 0.1,
            "data.batch_size": 2000,
            "model.optimizer": "torch.optim.SGD",
            "model.optimizer.lr": 0.01,
            "model.optimizer.momentum": 0.9,
            "model.optimizer.nesterov": True,
            "trainer.limit_train_batches": 12,
        },
        "BADLY data.batch_size < 700",
        "BADLY model.optimizer.lr > 0.03",
        "BADLY trainer.max_epochs",
        "BADLY trainer.limit_train_batches",
        *OTHER_OPTIMIZER,
    ),
    fault(
        "umlaut_b",
        "cnn",
        "rate too high",
        {
            "model.network": f"{HERE}.LinearMLP",
            "model.network.widths": [128, 128],
            "model.optimizer.lr": 1000.0,
            "model.optimizer.weight_decay": 0.0,
        },
        "BADLY model.optimizer.lr < 300",
    ),
    fault("lstm_lr_x100", "lstm", "rate too high", {"model.optimizer.lr": 0.5}, "BADLY model.optimizer.lr < 0.16"),
    fault(
        "vit_frozen",
        "vit",
        "not trained",
        {"model.freeze": ["blocks.*"]},
        "BADLY model.freeze",
        "BADLY model.unfreeze_epoch",
        "BADLY check untrained_parameters|not_trained|parameters_not_trained|no_gradient",
    ),
    fault("cnn_imbalanced", "cnn", "imbalance", {"data": f"{HERE}.ImbalancedImages", "data.share": 0.02}, *RARE),
    fault("cnn_slow_transform", "cnn", "data", {"data": f"{HERE}.SlowTransform"}, *TOO_SLOW, costs="speed"),
    fault(
        "vit_many_workers",
        "vit",
        "data",
        {"data.num_workers": 6, "trainer.max_epochs": 6},
        "SLOW data.num_workers < 3",
        costs="speed",
    ),
    fault(
        "cnn_softmax_and_rate",
        "cnn",
        "two at once",
        {"model.network": f"{HERE}.SoftmaxCNN", "model.optimizer.lr": 0.1},
        *NO_HEAD,
        "BADLY model.optimizer.lr < 0.03",
    ),
]
# end
# kind: tables
BASES["housing_short"] = Base(
    "housing_mlp",
    {"data.file": f"{DATA}/california_housing.csv", "trainer.max_epochs": 2, "trainer.limit_train_batches": 31},
    trivial=1.0,
)
HELD_OUT += [
    fault(
        "so_59278771",
        "wine",
        "end of the network",
        {
            "model.network": f"{HERE}.SigmoidMLP",
            "model.network.widths": [4],
            "model.optimizer": "torch.optim.Adam",
            "model.optimizer.lr": 1e-3,
            "data.batch_size": 5,
        },
        *NO_HEAD,
        "BADLY model.network.widths",
        "BADLY model.optimizer.lr > 3e-3",
    ),
    fault(
        "so_48934338",
        "diabetes",
        "rate too high",
        {
            "model.network": "benchmarks.diagnose.faulty.PlainMLP",
            "model.network.widths": [50, 30],
            "model.optimizer": "torch.optim.SGD",
            "model.optimizer.lr": 2.0,
        },
        "BADLY model.optimizer.lr < 0.7",
        *OTHER_OPTIMIZER,
    ),
    fault(
        "diabetes_sigmoid",
        "diabetes",
        "end of the network",
        {"model.network": f"{HERE}.SigmoidMLP"},
        "BADLY model.swap",
        "BADLY check head_activation|activation_before_loss|output_range",
    ),
    fault(
        "wine_noisy_labels_40", "wine", "labels", {"data": f"{HERE}.NoisyTable", "data.share": 0.4}, *NOISE, *NOTHING
    ),
    fault("diabetes_blind", "diabetes", "ignores its input", {"model.network": f"{HERE}.BlindMLP"}, *BLIND),
    fault(
        "housing_lr_300th", "housing", "rate too low", {"model.optimizer.lr": 7e-6}, "BADLY model.optimizer.lr > 2e-5"
    ),
    fault(
        "housing_small_batch",
        "housing_short",
        "batch",
        {"data.batch_size": 4, "trainer.limit_train_batches": 1000},
        "SLOW data.batch_size > 8",
        "BADLY data.batch_size > 8",
        costs="speed",
    ),
    fault(
        "wine_slow_storage", "wine", "data", {"data": f"{HERE}.SlowTable", "data.seconds": 0.03}, *DISK, costs="speed"
    ),
]
# end
# kind: text
HELD_OUT += [
    fault(
        "gpt_rate_decays_at_once",
        "gpt",
        "schedule",
        {
            "model.schedule": "torch.optim.lr_scheduler.StepLR",
            "model.schedule.step_size": 10,
            "model.schedule.gamma": 0.3,
        },
        "BADLY model.schedule",
    ),
    fault(
        "gpt_anomalies", "gpt", "tools", {"trainer.detect_anomaly": True}, "SLOW trainer.detect_anomaly", costs="speed"
    ),
]
# end
# kind: series
HELD_OUT += [
    fault("etth1_lr_1000th", "etth1", "rate too low", {"model.optimizer.lr": 5e-6}, "BADLY model.optimizer.lr > 1.5e-5")
]
# end
