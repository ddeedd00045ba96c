"""Seeded faults: a small change of a healthy base, and what is right to answer, fixed before src.diagnose is asked."""

from typing import Any

from benchmarks.diagnose.cases import BASES, Base, Case

HERE = "benchmarks.diagnose.faulty"
# Answers that several faults have in common.
OTHER_OPTIMIZER = tuple(f"BADLY model.optimizer = torch.optim.{name}" for name in ("AdamW", "Adam", "NAdam", "RMSprop"))
NO_HEAD = ("BADLY model.outputs = probabilities", "BADLY model.swap")
RESET = ("BADLY model.reset = true",)
FEWER = ("BADLY trainer.max_epochs", "BADLY trainer.max_steps", "BADLY trainer.callbacks")
NOISE = ("BADLY check label_noise|noisy_labels|conflicting_labels", "BADLY data.without", "BADLY model.label_smoothing")
NOTHING = ("BADLY check label_noise|noisy_labels|labels_independent|nothing_to_learn|beats_nothing|no_signal",)
ORDER = ("BADLY check not_shuffled|sorted_order|order",)
LEAK = ("BADLY check leakage|val_in_train|train_in_val|leak|duplicates_across_splits",)
SHIFT = ("BADLY check drift|shift|val_shift|distribution_shift",)
RARE = ("BADLY model.class_weights", "BADLY check imbalance|class_imbalance")
SCALE = ("BADLY check input_scale|badly_scaled_inputs|feature_scale|scale",)
UNTRAINED = ("BADLY check untrained_parameters|not_trained|parameters_not_trained|no_gradient",)
MODE = ("BADLY check wrong_mode|mode",)
BLIND = ("BADLY check ignores_input|input_independent",)
DUPLICATES = ("BADLY check duplicates|duplicates_in_train|few_samples",)
DISK = ("SLOW data.num_workers > 0", "SLOW check data_bound|data_wait")
OVERFIT = (
    "BADLY model.network.dropout",
    "BADLY model.optimizer.weight_decay",
    "BADLY data.augment",
    "BADLY data.mix",
    "BADLY model.label_smoothing",
    "BADLY model.network.widths",
    "BADLY model.network.dim",
    "BADLY check overfits|overfitting|overfit|few_samples",
    *FEWER,
)
MEMORY_KEYS = ("data.micro_batch_size", "data.batch_size", "model.activation_checkpointing", "model.loss_chunks")
MEMORY_KEYS += ("trainer.precision", "model.network", "model.optimizer")
MEMORY = (*(f"SPACE {key}" for key in MEMORY_KEYS), "SPACE check memory|does_not_fit|out_of_memory")


def fault(
    name: str, base: str, family: str, flags: dict[str, Any], *truth: str, costs: str = "metric", seed: int = 0
) -> Case:
    return Case(name, base, flags | ({"seed_everything": seed} if seed else {}), family, truth, costs)


def rate(name: str, base: str, lr: float, factor: float, seed: int = 0) -> Case:
    """A base whose learning rate `lr` is multiplied by a factor. Right is any change to a third of the way, or more."""
    faulty = lr * factor
    less = f"BADLY model.optimizer.lr {'<' if factor > 1 else '>'} {faulty / 3 if factor > 1 else faulty * 3:.3g}"
    family = "rate too high" if factor > 1 else "rate too low"
    return fault(name, base, family, {"model.optimizer.lr": faulty}, less, seed=seed)


FAULTS: list[Case] = []
# kind: images
BASES["wide"] = Base(
    "digits_mlp", {"model.network.widths": [1024, 1024], "trainer.max_epochs": 6, "trainer.log_every_n_steps": 10}
)
BASES["few"] = Base(
    "digits_mlp",
    {"data.val_frac": 0.85, "data.batch_size": 32, "trainer.max_epochs": 60, "trainer.log_every_n_steps": 10},
)  # 215 samples to train on
AUGMENT = "src.data.images.augment.Affine"
FAULTS += [
    rate("cnn_lr_x100", "cnn", 3e-3, 100),
    rate("mlp_lr_x30", "mlp", 3e-3, 30, seed=1),
    rate("mlp_lr_x100", "mlp", 3e-3, 100),
    rate("cnn_lr_100th", "cnn", 3e-3, 0.01),
    rate("mlp_lr_1000th", "mlp", 3e-3, 0.001, seed=2),
    fault(
        "mlp_tiny_sgd",
        "mlp",
        "rate too low",
        {"model.optimizer": "torch.optim.SGD", "model.optimizer.lr": 1e-4},
        "BADLY model.optimizer.lr > 3e-4",
        "BADLY model.optimizer.momentum",
        *OTHER_OPTIMIZER,
    ),
    fault("mlp_softmax", "mlp", "end of the network", {"model.network": f"{HERE}.SoftmaxMLP"}, *NO_HEAD),
    fault(
        "cnn_softmax_in_forward",
        "cnn",
        "end of the network",
        {"model.network": f"{HERE}.SoftmaxCNN", "model.network.padding": 1, "model.network.batch_norm": True},
        *NO_HEAD,
    ),
    fault("mlp_sigmoid", "mlp", "end of the network", {"model.network": f"{HERE}.SigmoidMLP"}, *NO_HEAD, seed=1),
    fault(
        "mlp_relu",
        "mlp",
        "end of the network",
        {"model.network": f"{HERE}.ReluMLP"},
        "BADLY model.swap",
        "BADLY check head_activation|relu_on_logits|activation_before_loss",
    ),
    fault(
        "cnn_relu_in_forward",
        "cnn",
        "end of the network",
        {"model.network": f"{HERE}.ReluCNN", "model.network.padding": 1},
        "BADLY check head_activation|relu_on_logits|activation_before_loss",
    ),
    fault("mlp_zero_weights", "mlp", "weights at the start", {"model.network": f"{HERE}.ZeroMLP"}, *RESET),
    fault("mlp_large_weights", "mlp", "weights at the start", {"model.network": f"{HERE}.LargeMLP"}, *RESET),
    fault(
        "cnn_constant_weights",
        "cnn",
        "weights at the start",
        {"model.network": f"{HERE}.ConstantCNN", "model.network.padding": 1},
        *RESET,
    ),
    fault(
        "mlp_dead_units",
        "mlp",
        "weights at the start",
        {"model.network": f"{HERE}.DeadMLP"},
        *RESET,
        "BADLY model.swap",
    ),
    fault(
        "tanh_saturated",
        "mlp",
        "weights at the start",
        {"model.network": f"{HERE}.SaturatedTanh"},
        *RESET,
        "BADLY model.swap",
    ),
    fault(
        "deep_sigmoid",
        "mlp",
        "vanishing gradients",
        {"model.network": f"{HERE}.DeepSigmoid"},
        "BADLY model.swap",
        "BADLY model.network.depth < 6",
    ),
    fault("mlp_blind", "mlp", "ignores its input", {"model.network": f"{HERE}.BlindMLP"}, *BLIND),
    fault(
        "mlp_frozen",
        "mlp",
        "not trained",
        {"model.freeze": ["blocks.*"]},
        "BADLY model.freeze",
        "BADLY model.unfreeze_epoch",
        *UNTRAINED,
    ),
    fault("mlp_detached", "mlp", "not trained", {"model.network": f"{HERE}.DetachedMLP"}, *UNTRAINED),
    fault(
        "cnn_detached",
        "cnn",
        "not trained",
        {"model.network": f"{HERE}.DetachedCNN", "model.network.padding": 1},
        *UNTRAINED,
    ),
    fault(
        "mlp_train_in_forward",
        "mlp",
        "mode",
        {"model.network": f"{HERE}.AlwaysTraining", "model.network.dropout": 0.5},
        *MODE,
    ),
    fault(
        "mlp_gradients_kept",
        "mlp",
        "gradients not reset",
        {"model": f"{HERE}.KeepsGradients"},
        "BADLY check gradients_not_reset|gradients_kept",
    ),
    fault("mlp_dropout", "mlp", "regularization", {"model.network.dropout": 0.95}, "BADLY model.network.dropout < 0.9"),
    fault("cnn_dropout", "cnn", "regularization", {"model.network.dropout": 0.95}, "BADLY model.network.dropout < 0.9"),
    fault(
        "mlp_weight_decay",
        "mlp",
        "regularization",
        {"model.optimizer.weight_decay": 30.0},
        "BADLY model.optimizer.weight_decay < 10",
        "BADLY model.optimizer = torch.optim.Adam",
    ),
    fault(
        "mlp_label_smoothing",
        "mlp",
        "regularization",
        {"model.label_smoothing": 0.9},
        "BADLY model.label_smoothing < 0.6",
    ),
    fault(
        "mlp_clipped",
        "mlp",
        "clipping",
        {
            "model.optimizer": "torch.optim.SGD",
            "model.optimizer.lr": 0.05,
            "model.optimizer.momentum": 0.9,
            "trainer.gradient_clip_val": 1e-3,
        },
        "BADLY trainer.gradient_clip_val",
        "BADLY model.optimizer.lr > 0.15",
        *OTHER_OPTIMIZER,
    ),
    fault(
        "mlp_rate_decays_at_once",
        "mlp",
        "schedule",
        {"model.schedule": "torch.optim.lr_scheduler.ExponentialLR", "model.schedule.gamma": 0.8},
        "BADLY model.schedule",
        seed=1,
    ),
    fault(
        "cnn_augmented_away",
        "cnn",
        "augmentation",
        {"data.augment": [{"class_path": AUGMENT, "init_args": {"degrees": 180.0, "scale": 0.9, "translate": 0.6}}]},
        "BADLY data.augment",
    ),
    fault("mlp_narrow", "mlp", "capacity", {"model.network.widths": [2, 2]}, "BADLY model.network.widths"),
    fault(
        "mlp_one_epoch",
        "mlp",
        "too short",
        {"trainer.max_epochs": 1},
        "BADLY trainer.max_epochs > 2",
        "BADLY trainer.max_steps",
    ),
    fault(
        "mlp_whole_batch",
        "mlp",
        "batch",
        {"data.batch_size": 1280},
        "BADLY data.batch_size < 430",
        "BADLY trainer.max_epochs > 30",
        "BADLY trainer.max_steps",
        "BADLY model.optimizer.lr > 9e-3",
    ),
    fault("mlp_noisy_labels_20", "mlp", "labels", {"data": f"{HERE}.NoisyImages", "data.share": 0.2}, *NOISE),
    fault("cnn_noisy_labels_40", "cnn", "labels", {"data": f"{HERE}.NoisyImages", "data.share": 0.4}, *NOISE, seed=1),
    fault("mlp_shuffled_labels", "mlp", "labels", {"data": f"{HERE}.ShuffledImages"}, *NOTHING),
    fault("cnn_shifted_labels", "cnn", "labels", {"data": f"{HERE}.ShiftedImages"}, *NOTHING),
    fault("mlp_copies", "mlp", "copies", {"data": f"{HERE}.CopiedImages"}, *DUPLICATES),
    fault(
        "mlp_val_in_train",
        "mlp",
        "leak",
        {"data": f"{HERE}.LeakyImages", "data.batch_size": 32, "data.val_frac": 0.3},
        *LEAK,
        costs="trust",
    ),
    fault("cnn_other_val", "cnn", "shift", {"data": f"{HERE}.OtherValImages"}, *SHIFT, costs="trust"),
    fault("mlp_imbalanced", "mlp", "imbalance", {"data": f"{HERE}.ImbalancedImages"}, *RARE),
    fault("mlp_in_order", "mlp", "order", {"data": f"{HERE}.ImagesInOrder"}, *ORDER),
    fault(
        "few_overfit",
        "few",
        "overfitting",
        {
            "model.network.dropout": 0.0,
            "model.network.widths": [1024, 1024],
            "data.augment": [],
            "model.optimizer.weight_decay": 0.0,
            "model.label_smoothing": 0.0,
        },
        *OVERFIT,
    ),
    fault(
        "mlp_wrong_std",
        "mlp",
        "scale",
        {"data.mean": [0.5], "data.std": [0.002]},
        "BADLY data.std",
        "BADLY data.normalize",
        "BADLY data.mean",
        *SCALE,
    ),
]
# Slow ones
FAULTS += [
    fault(
        "mlp_slow_storage", "mlp", "data", {"data": f"{HERE}.SlowImages", "data.seconds": 0.01}, *DISK, costs="speed"
    ),
    fault(
        "cnn_slow_storage", "cnn", "data", {"data": f"{HERE}.SlowImages", "data.seconds": 0.03}, *DISK, costs="speed"
    ),
    fault("mlp_many_workers", "mlp", "data", {"data.num_workers": 8}, "SLOW data.num_workers < 4", costs="speed"),
    fault("cnn_double", "cnn", "precision", {"trainer.precision": "64-true"}, "SLOW trainer.precision", costs="speed"),
    fault(
        "mlp_single_samples",
        "mlp",
        "batch",
        {"data.micro_batch_size": 1, "trainer.max_epochs": 4},
        "SLOW data.micro_batch_size",
        costs="speed",
    ),
    fault(
        "mlp_batch_2",
        "mlp",
        "batch",
        {"data.batch_size": 2, "trainer.max_epochs": 4},
        "SLOW data.batch_size > 4",
        "BADLY data.batch_size > 4",
        costs="speed",
    ),
    fault(
        "cnn_validates_often",
        "cnn",
        "validation",
        {"trainer.val_check_interval": 2},
        "SLOW trainer.val_check_interval",
        "SLOW trainer.check_val_every_n_epoch",
        "SLOW trainer.limit_val_batches",
        costs="speed",
    ),
    fault(
        "wide_checkpoints_often",
        "wide",
        "checkpoints",
        {"checkpoints.every_n_steps": 5},
        "SLOW checkpoints.every_n_steps",
        costs="speed",
    ),
    fault(
        "wide_logs_often",
        "wide",
        "logging",
        {"trainer.log_every_n_steps": 1},
        "SLOW trainer.log_every_n_steps > 3",
        costs="speed",
    ),
    fault(
        "cnn_16_threads",
        "cnn",
        "threads",
        {"threads": 16, "trainer.max_epochs": 4},
        "SLOW threads < 8",
        "SLOW threads = null",
        costs="speed",
    ),
    fault(
        "mlp_anomalies", "mlp", "tools", {"trainer.detect_anomaly": True}, "SLOW trainer.detect_anomaly", costs="speed"
    ),
    fault("mlp_profiled", "mlp", "tools", {"trainer.profiler": "advanced"}, "SLOW trainer.profiler", costs="speed"),
    fault(
        "mlp_slow_callback",
        "mlp",
        "tools",
        {"trainer.callbacks": [{"class_path": f"{HERE}.SlowCallback"}]},
        "SLOW trainer.callbacks",
        "SLOW check slow_callback|callbacks",
        costs="speed",
    ),
]
# end
# kind: tables
FAULTS += [
    rate("diabetes_lr_x100", "diabetes", 3e-3, 100),
    rate("wine_lr_x300", "wine", 2e-3, 300, seed=1),
    rate("cancer_lr_100th", "cancer", 2e-3, 0.01),
    rate("diabetes_lr_1000th", "diabetes", 3e-3, 0.001, seed=2),
    fault(
        "diabetes_tiny_sgd",
        "diabetes",
        "rate too low",
        {"model.optimizer": "torch.optim.SGD", "model.optimizer.lr": 3e-5},
        "BADLY model.optimizer.lr > 9e-5",
        "BADLY model.optimizer.momentum",
        *OTHER_OPTIMIZER,
    ),
    fault("wine_softmax", "wine", "end of the network", {"model.network": f"{HERE}.SoftmaxMLP"}, *NO_HEAD),
    fault("cancer_sigmoid", "cancer", "end of the network", {"model.network": f"{HERE}.SigmoidMLP"}, *NO_HEAD),
    fault(
        "diabetes_relu",
        "diabetes",
        "end of the network",
        {"model.network": f"{HERE}.ReluMLP"},
        "BADLY model.swap",
        "BADLY check head_activation|activation_before_loss|output_range",
    ),
    fault(
        "diabetes_tanh",
        "diabetes",
        "end of the network",
        {"model.network": f"{HERE}.TanhMLP"},
        "BADLY model.swap",
        "BADLY check head_activation|activation_before_loss|output_range",
    ),
    fault(
        "diabetes_broadcast",
        "diabetes",
        "shapes",
        {"model": f"{HERE}.Broadcasts"},
        "BADLY check shape_broadcast|broadcast",
    ),
    fault("cancer_blind", "cancer", "ignores its input", {"model.network": f"{HERE}.BlindMLP"}, *BLIND),
    fault(
        "diabetes_large_weights",
        "diabetes",
        "weights at the start",
        {"model.network": f"{HERE}.LargeMLP", "model.network.factor": 10.0},
        *RESET,
    ),
    fault("wine_zero_weights", "wine", "weights at the start", {"model.network": f"{HERE}.ZeroMLP"}, *RESET),
    fault(
        "diabetes_dropout",
        "diabetes",
        "regularization",
        {"model.network.dropout": 0.97},
        "BADLY model.network.dropout < 0.9",
    ),
    fault("cancer_narrow", "cancer", "capacity", {"model.network.dim": 1}, "BADLY model.network.dim"),
    fault(
        "wine_one_epoch",
        "wine",
        "too short",
        {"trainer.max_epochs": 1},
        "BADLY trainer.max_epochs > 2",
        "BADLY trainer.max_steps",
    ),
    fault(
        "cancer_noisy_labels_30",
        "cancer",
        "labels",
        {"data": f"{HERE}.NoisyTable", "data.dataset": "breast_cancer", "data.scale": "standard"},
        *NOISE,
    ),
    fault("cancer_shuffled_labels", "cancer", "labels", {"data": f"{HERE}.ShuffledTable"}, *NOTHING),
    fault(
        "cancer_target_in_features",
        "cancer",
        "leak",
        {"data": f"{HERE}.TargetTable"},
        "BADLY check target_leak|target_in_features|feature_tells_target|leak",
    ),
    fault(
        "diabetes_target_in_features",
        "diabetes",
        "leak",
        {"data": f"{HERE}.TargetTable"},
        "BADLY check target_leak|target_in_features|feature_tells_target|leak",
    ),
    fault("cancer_badly_scaled", "cancer", "scale", {"data": f"{HERE}.BadlyScaledTable"}, *SCALE),
    fault("wine_in_order", "wine", "order", {"data": f"{HERE}.TableInOrder"}, *ORDER),
    fault("wine_other_val", "wine", "shift", {"data": f"{HERE}.OtherValTable"}, *SHIFT, costs="trust"),
    fault(
        "cancer_slow_storage",
        "cancer",
        "data",
        {"data": f"{HERE}.SlowTable", "data.seconds": 0.02},
        *DISK,
        costs="speed",
    ),
]
# end
# kind: text
FAULTS += [
    rate("gpt_lr_x100", "gpt", 3e-3, 100),
    rate("gpt_lr_100th", "gpt", 3e-3, 0.01),
    fault("gpt_dropout", "gpt", "regularization", {"model.network.dropout": 0.9}, "BADLY model.network.dropout < 0.8"),
    fault(
        "gpt_narrow",
        "gpt",
        "capacity",
        {"model.network.dim": 8, "model.network.num_heads": 2},
        "BADLY model.network.dim > 12",
    ),
    fault(
        "gpt_clipped",
        "gpt",
        "clipping",
        {
            "model.optimizer": "torch.optim.SGD",
            "model.optimizer.lr": 0.3,
            "model.optimizer.momentum": 0.9,
            "trainer.gradient_clip_val": 1e-3,
        },
        "BADLY trainer.gradient_clip_val",
        "BADLY model.optimizer.lr > 0.9",
        *OTHER_OPTIMIZER,
    ),
    fault(
        "gpt_frozen",
        "gpt",
        "not trained",
        {"model.freeze": ["blocks.*", "embedding.*"]},
        "BADLY model.freeze",
        "BADLY model.unfreeze_epoch",
        *UNTRAINED,
    ),
    fault(
        "gpt_40_steps",
        "gpt",
        "too short",
        {"trainer.max_steps": 40, "trainer.val_check_interval": 20},
        "BADLY trainer.max_steps > 80",
        "BADLY trainer.max_epochs",
    ),
    fault(
        "gpt_recomputes",
        "gpt",
        "levers",
        {"model.activation_checkpointing": True},
        "SLOW model.activation_checkpointing = false",
        costs="speed",
    ),
    fault(
        "gpt_validates_often",
        "gpt",
        "validation",
        {"trainer.val_check_interval": 10},
        "SLOW trainer.val_check_interval",
        "SLOW trainer.check_val_every_n_epoch",
        "SLOW trainer.limit_val_batches",
        costs="speed",
    ),
    fault(
        "gpt_single_samples",
        "gpt",
        "batch",
        {"data.micro_batch_size": 1, "trainer.max_steps": 100, "trainer.val_check_interval": 1600},
        "SLOW data.micro_batch_size",
        costs="speed",
    ),
    fault(
        "gpt_7b",
        "gpt",
        "memory",
        {"model.network.dim": 4096, "model.network.depth": 32, "model.network.num_heads": 32},
        *MEMORY,
        costs="memory",
    ),
    fault(
        "gpt_large_batch",
        "gpt",
        "memory",
        {
            "model.network.dim": 768,
            "model.network.depth": 12,
            "model.network.num_heads": 12,
            "data.seq_len": 512,
            "data.batch_size": 512,
        },
        *MEMORY,
        costs="memory",
    ),
]
# end
# kind: series
FAULTS += [
    rate("seasons_lr_1000th", "seasons", 1e-3, 0.001),
    fault(
        "seasons_tanh",
        "seasons",
        "end of the network",
        {"model.network": f"{HERE}.TanhDLinear"},
        "BADLY check head_activation|activation_before_loss|output_range",
    ),
    fault("seasons_blind", "seasons", "ignores its input", {"model.network": f"{HERE}.BlindDLinear"}, *BLIND),
    fault(
        "seasons_weight_decay",
        "seasons",
        "regularization",
        {"model.optimizer.weight_decay": 100.0},
        "BADLY model.optimizer.weight_decay < 30",
        "BADLY model.optimizer = torch.optim.Adam",
    ),
    fault(
        "seasons_validates_often",
        "seasons",
        "validation",
        {"trainer.val_check_interval": 4},
        "SLOW trainer.val_check_interval",
        "SLOW trainer.check_val_every_n_epoch",
        "SLOW trainer.limit_val_batches",
        costs="speed",
    ),
]
# end
