"""Seeded faults: a small change of a healthy base, and what is right to answer, fixed before src.diagnose is asked.
Doses go from what costs just enough to what nobody overlooks."""

from benchmarks.diagnose.cases import BASES, Base, Case, rate, rows

FAULTS: list[Case] = []


def rates(base: str, lr: float, *factors: float) -> list[Case]:
    return [rate(base, lr, factor) for factor in factors]


# kind: images
BASES["wide"] = Base(
    "digits_mlp", {"model.network.widths": [1024, 1024], "trainer.max_epochs": 6, "trainer.log_every_n_steps": 10}
)
BASES["few"] = Base(
    "digits_mlp",
    {"data.val_frac": 0.85, "data.batch_size": 32, "trainer.max_epochs": 60, "trainer.log_every_n_steps": 10},
)  # 215 samples to train on
CLIP, DECAYS = "trainer.gradient_clip_val", "model.schedule=torch.optim.lr_scheduler.ExponentialLR"
AUGMENT = '[{"class_path":"src.data.images.augment.Affine","init_args":{"degrees":%s,"scale":%s,"translate":%s}}]'
CALLBACK = '[{"class_path":"benchmarks.diagnose.faulty.SlowCallback","init_args":{"seconds":%s}}]'
FAULTS += rates("cnn", 3e-3, 10, 100, 1 / 30) + rates("mlp", 3e-3, 10, 30, 1 / 10, 1 / 100)
FAULTS += rows(f"""
mlp_tiny_sgd | mlp | rate too low | opt=SGD lr=1e-3 | lr > 1e-2; opt = AdamW | lr > 3e-3; opt.momentum; OPTIMIZERS
mlp_softmax | mlp | end of the network | net=SoftmaxMLP | NO_HEAD
cnn_softmax_in_forward | cnn | end of the network | net=SoftmaxCNN net.padding=1 net.batch_norm=true | NO_HEAD
mlp_sigmoid | mlp | end of the network | net=SigmoidMLP seed=1 | NO_HEAD
mlp_relu | mlp | end of the network | net=ReluMLP | HEAD
cnn_relu_in_forward | cnn | end of the network | net=ReluCNN net.padding=1 | check head_activation
mlp_zero_weights | mlp | weights at the start | net=ZeroMLP | RESET
mlp_large_weights_x5 | mlp | weights at the start | net=LargeMLP net.factor=5 | RESET
cnn_constant_weights | cnn | weights at the start | net=ConstantCNN net.padding=1 | RESET
mlp_dead_units | mlp | weights at the start | net=DeadMLP | RESET | model.swap
tanh_saturated | mlp | weights at the start | net=SaturatedTanh | RESET | model.swap
deep_sigmoid_5 | mlp | vanishing gradients | net=DeepSigmoid net.depth=5 \
| model.swap; net.depth < 4; check vanishing_gradients
mlp_blind | mlp | ignores its input | net=BlindMLP | check ignores_input
mlp_frozen | mlp | not trained | model.freeze=["blocks.*"] | FREEZE | model.unfreeze_epoch
mlp_detached | mlp | not trained | net=DetachedMLP | UNTRAINED
cnn_detached | cnn | not trained | net=DetachedCNN net.padding=1 | UNTRAINED
mlp_train_in_forward | mlp | mode | net=AlwaysTraining net.dropout=0.5 | check wrong_mode
mlp_gradients_kept | mlp | gradients not reset | model=KeepsGradients | check gradients_not_reset
mlp_dropout_70 | mlp | regularization | net.dropout=0.7 | net.dropout < 0.5 | net.dropout < 0.7
mlp_dropout_80 | mlp | regularization | net.dropout=0.8 | net.dropout < 0.6 | net.dropout < 0.75
cnn_dropout_80 | cnn | regularization | net.dropout=0.8 | net.dropout < 0.6 | net.dropout < 0.75
mlp_weight_decay_1 | mlp | regularization | opt.weight_decay=1 | opt.weight_decay < 0.3 | opt = Adam
mlp_weight_decay_5 | mlp | regularization | opt.weight_decay=5 | opt.weight_decay < 1 | opt = Adam; opt.weight_decay < 2
mlp_label_smoothing_50 | mlp | regularization | model.label_smoothing=0.5 | model.label_smoothing < 0.3
mlp_clipped_50th | mlp | clipping | opt=SGD lr=0.05 opt.momentum=0.9 {CLIP}=0.02 | CLIP | lr > 0.15; OPTIMIZERS
mlp_rate_decays_early | mlp | schedule | {DECAYS} model.schedule.gamma=0.97 | model.schedule
cnn_augmented_a_lot | cnn | augmentation | data.augment={AUGMENT % (90.0, 0.5, 0.3)} | data.augment
mlp_narrow_4 | mlp | capacity | net.widths=[4,4] | net.widths
mlp_four_epochs | mlp | too short | trainer.max_epochs=4 | trainer.max_epochs > 6; trainer.max_steps
mlp_whole_batch | mlp | batch | data.batch_size=1280 | data.batch_size < 430 \
| trainer.max_epochs > 30; trainer.max_steps; lr > 9e-3
mlp_noisy_labels_10 | mlp | labels | data=NoisyImages data.share=0.1 | NOISE | model.label_smoothing
mlp_noisy_labels_20 | mlp | labels | data=NoisyImages data.share=0.2 | NOISE | model.label_smoothing
cnn_noisy_labels_40 | cnn | labels | data=NoisyImages data.share=0.4 seed=1 | NOISE | model.label_smoothing
mlp_shuffled_labels | mlp | labels | data=ShuffledImages | NOTHING | NOISE
cnn_shifted_labels | cnn | labels | data=ShiftedImages | NOTHING | NOISE
mlp_copies | mlp | copies | data=CopiedImages | check duplicates
mlp_val_in_train | mlp | leak | data=LeakyImages data.batch_size=32 data.val_frac=0.3 costs=trust | check val_in_train
cnn_other_val | cnn | shift | data=OtherValImages costs=trust | check drift
mlp_imbalanced_10 | mlp | imbalance | data=ImbalancedImages data.share=0.1 | RARE
mlp_in_order | mlp | order | data=ImagesInOrder | check not_shuffled
few_overfit | few | overfitting | net.dropout=0.0 net.widths=[1024,1024] data.augment=[] opt.weight_decay=0.0 \
model.label_smoothing=0.0 | REGULARIZE | trainer.max_epochs < 60; trainer.callbacks
mlp_wrong_std_100th | mlp | scale | data.mean=[0.5] data.std=[0.002] | SCALE
mlp_wrong_std_30 | mlp | scale | data.mean=[0.5] data.std=[10.0] | SCALE
mlp_slow_storage_2 | mlp | data | data=SlowImages data.seconds=0.002 | DISK
cnn_slow_storage_10 | cnn | data | data=SlowImages data.seconds=0.01 | DISK
mlp_many_workers | mlp | data | data.num_workers=8 | SLOW data.num_workers < 4
cnn_double | cnn | precision | trainer.precision=64-true | SLOW trainer.precision
mlp_micro_batch_8 | mlp | batch | data.micro_batch_size=8 trainer.max_epochs=4 | SLOW data.micro_batch_size
mlp_batch_2 | mlp | batch | data.batch_size=2 trainer.max_epochs=4 | SLOW data.batch_size > 4 | data.batch_size > 4
cnn_validates_often_5 | cnn | validation | trainer.val_check_interval=5 | VALIDATES | SLOW trainer.limit_val_batches
wide_checkpoints_often | wide | checkpoints | checkpoints.every_n_steps=5 | SLOW checkpoints.every_n_steps
wide_logs_often | wide | logging | trainer.log_every_n_steps=1 | SLOW trainer.log_every_n_steps > 3
cnn_16_threads | cnn | threads | threads=16 trainer.max_epochs=4 | SLOW threads < 8; SLOW threads = null
mlp_anomalies | mlp | tools | trainer.detect_anomaly=true | SLOW trainer.detect_anomaly
mlp_profiled | mlp | tools | trainer.profiler=advanced | SLOW trainer.profiler
mlp_slow_callback_2 | mlp | tools | trainer.callbacks={CALLBACK % 0.002} \
| SLOW trainer.callbacks; SLOW check slow_callback
""")
# end
# kind: tables
FAULTS += rates("diabetes", 3e-3, 10, 30, 1 / 30) + rates("wine", 2e-3, 300, 1 / 30)
FAULTS += rates("cancer", 2e-3, 30, 1 / 10, 1 / 30)
FAULTS += rows("""
diabetes_tiny_sgd | diabetes | rate too low | opt=SGD lr=1e-4 | lr > 1e-3; opt = AdamW \
| lr > 3e-4; opt.momentum; OPTIMIZERS
wine_softmax | wine | end of the network | net=SoftmaxMLP | NO_HEAD
cancer_sigmoid | cancer | end of the network | net=SigmoidMLP | NO_HEAD
diabetes_relu | diabetes | end of the network | net=ReluMLP | HEAD
diabetes_tanh | diabetes | end of the network | net=TanhMLP | HEAD
diabetes_broadcast | diabetes | shapes | model=Broadcasts | check shape_broadcast
cancer_blind | cancer | ignores its input | net=BlindMLP | check ignores_input
diabetes_large_weights_x3 | diabetes | weights at the start | net=LargeMLP net.factor=3 | RESET
diabetes_large_weights_x10 | diabetes | weights at the start | net=LargeMLP net.factor=10 | RESET
wine_zero_weights | wine | weights at the start | net=ZeroMLP | RESET
diabetes_dropout_80 | diabetes | regularization | net.dropout=0.8 | net.dropout < 0.6 | net.dropout < 0.75
cancer_narrow | cancer | capacity | net.dim=1 | net.dim
wine_one_epoch | wine | too short | trainer.max_epochs=1 | trainer.max_epochs > 2; trainer.max_steps
cancer_noisy_labels_10 | cancer | labels | data=NoisyTable data.share=0.1 | NOISE
cancer_shuffled_labels | cancer | labels | data=ShuffledTable | NOTHING | NOISE
cancer_target_in_features | cancer | leak | data=TargetTable | check target_leak
diabetes_target_in_features | diabetes | leak | data=TargetTable | check target_leak
cancer_badly_scaled | cancer | scale | data=BadlyScaledTable | check input_scale
wine_in_order | wine | order | data=TableInOrder | check not_shuffled
wine_other_val | wine | shift | data=OtherValTable costs=trust | check drift
cancer_slow_storage_5 | cancer | data | data=SlowTable data.seconds=0.005 | DISK
""")
# end
# kind: text
FAULTS += rates("gpt", 3e-3, 10, 30, 1 / 10, 1 / 30)
FAULTS += rows("""
gpt_dropout_70 | gpt | regularization | net.dropout=0.7 | net.dropout < 0.5 | net.dropout < 0.6
gpt_narrow | gpt | capacity | net.dim=8 net.num_heads=2 | net.dim > 12
gpt_clipped_50th | gpt | clipping | opt=SGD lr=0.3 opt.momentum=0.9 trainer.gradient_clip_val=0.02 | CLIP \
| lr > 0.9; OPTIMIZERS
gpt_frozen | gpt | not trained | model.freeze=["blocks.*","embedding.*"] | FREEZE | model.unfreeze_epoch
gpt_40_steps | gpt | too short | trainer.max_steps=40 trainer.val_check_interval=20 | trainer.max_steps > 80 \
| trainer.max_epochs
gpt_recomputes | gpt | levers | model.activation_checkpointing=true | SLOW model.activation_checkpointing = false
gpt_validates_often | gpt | validation | trainer.val_check_interval=10 | VALIDATES | SLOW trainer.limit_val_batches
gpt_single_samples | gpt | batch | data.micro_batch_size=1 trainer.max_steps=100 trainer.val_check_interval=1600 \
| SLOW data.micro_batch_size
gpt_7b | gpt | memory | net.dim=4096 net.depth=32 net.num_heads=32 | SPACE check out_of_memory | MEMORY
gpt_large_batch | gpt | memory | net.dim=768 net.depth=12 net.num_heads=12 data.seq_len=512 data.batch_size=512 \
| SPACE data.micro_batch_size; SPACE data.batch_size; SPACE check out_of_memory | MEMORY
""")
# end
# kind: series
FAULTS += rates("seasons", 1e-3, 1 / 30, 1 / 100)
FAULTS += rows("""
seasons_tanh | seasons | end of the network | net=TanhDLinear | check head_activation
seasons_blind | seasons | ignores its input | net=BlindDLinear | check ignores_input
seasons_weight_decay | seasons | regularization | opt.weight_decay=30 | opt.weight_decay < 10 | opt = Adam
seasons_validates_often | seasons | validation | trainer.val_check_interval=4 | VALIDATES \
| SLOW trainer.limit_val_batches
""")
# end
