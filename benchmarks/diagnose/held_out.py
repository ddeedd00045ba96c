"""Faults that no threshold of src.diagnose was tuned on, until they were asked first (docs/results.md); since then
they are seeded faults like others.

They are not all of another kind: most share their classes or keys with the seeded families of faults.py, on another
base or with another dose. PROGRAMS are those that do not come from there, but from studies: `so_NUMBER` are questions
on Stack Overflow, as DeepLocalize's benchmark keeps them (Wardat, Le and Rajan, DeepLocalize: Fault Localization for
Deep Neural Networks, ICSE 2021), `umlaut_b` is the program of UMLAUT's user study (Schoop, Huang and Hartmann, UMLAUT:
Debugging Deep Learning Programs using Program Structure and Model Behavior, CHI 2021). Architecture, end, optimizer and
rate are as they are there, on data that is here; the ends of so_47352366, so_55328966, so_59278771 and `example` are of
classes that are seeded, too. Keras's losses are ours, cross-entropy that takes logits: what is wrong with a loss is
left out here, and asked in slips.py. `example` is a beginner's CNN with a softmax before that loss.
"""

from benchmarks.diagnose.cases import BASES, DATA, Base, Case, rows

HELD_OUT: list[Case] = []
# kind: images
HELD_OUT += rows("""
example | mnist | end of the network | net=SoftmaxCNN opt=Adam lr=1e-3 | NO_HEAD
so_47352366 | mnist | end of the network | net=ReluCNN net.widths=[32,64] net.hidden=512 net.dropout=0.5 opt=Adam \
lr=1e-3 \
data.batch_size=50 trainer.limit_train_batches=500 | check head_activation
so_48385830 | mnist | rate too high | net=NormalLinear opt=SGD lr=3.0 data.batch_size=10 \
trainer.limit_train_batches=2000 \
| lr < 1; model.reset = true | OPTIMIZERS
so_55328966 | mnist | scale, end, rate | net=SigmoidMLP net.widths=[784,50] data.mean=[0.0] data.std=[0.00392] opt=SGD \
lr=1e-4 data.batch_size=32 trainer.limit_train_batches=800 | SCALE; lr > 3e-4; NO_HEAD | OPTIMIZERS
so_44164749 | mnist | batch | net=PlainMLP net.widths=[1000,600] net.dropout=0.1 data.batch_size=2000 opt=SGD lr=0.01 \
opt.momentum=0.9 opt.nesterov=true trainer.limit_train_batches=12 | data.batch_size < 700; \
trainer.max_epochs > 2; trainer.limit_train_batches > 24 | lr > 0.03; OPTIMIZERS
umlaut_b | cnn | rate too high | net=LinearMLP net.widths=[128,128] lr=1000.0 opt.weight_decay=0.0 | lr < 10 | lr < 300
lstm_lr_x100 | lstm | rate too high | lr=0.5 | lr in 5e-5 0.05 | lr < 0.16
vit_frozen | vit | not trained | model.freeze=["blocks.*"] | FREEZE | model.unfreeze_epoch
cnn_imbalanced | cnn | imbalance | data=ImbalancedImages data.share=0.02 | RARE
cnn_slow_transform | cnn | data | data=SlowTransform | TOO_SLOW
vit_many_workers | vit | data | data.num_workers=6 trainer.max_epochs=6 | SLOW data.num_workers < 3
cnn_softmax_and_rate | cnn | two at once | net=SoftmaxCNN lr=0.1 | NO_HEAD; lr < 0.03
""")
# end
# kind: tables
BASES["housing_short"] = Base(
    "housing_mlp",
    {"data.file": f"{DATA}/california_housing.csv", "trainer.max_epochs": 2, "trainer.limit_train_batches": 31},
    trivial=1.0,
)
HELD_OUT += rows("""
so_59278771 | wine | end of the network | net=SigmoidMLP net.widths=[4] opt=Adam lr=1e-3 data.batch_size=5 \
| NO_HEAD; net.widths | lr > 3e-3
so_48934338 | diabetes | rate too high | net=PlainMLP net.widths=[50,30] opt=SGD lr=2.0 | lr < 0.2 | lr < 0.7; \
OPTIMIZERS
diabetes_sigmoid | diabetes | end of the network | net=SigmoidMLP | HEAD
wine_noisy_labels_40 | wine | labels | data=NoisyTable data.share=0.4 | NOISE | NOTHING; model.label_smoothing
diabetes_blind | diabetes | ignores its input | net=BlindMLP | check ignores_input
housing_lr_300th | housing | rate too low | lr=7e-6 | lr in 1.2e-4 0.6 | lr > 2e-5
housing_small_batch | housing_short | batch | data.batch_size=4 trainer.limit_train_batches=1000 | SLOW \
data.batch_size > 8 \
| data.batch_size > 8
wine_slow_storage | wine | data | data=SlowTable data.seconds=0.03 | DISK
""")
# end
# kind: text
HELD_OUT += rows("""
gpt_rate_decays_at_once | gpt | schedule | model.schedule=torch.optim.lr_scheduler.StepLR model.schedule.step_size=10 \
model.schedule.gamma=0.3 | model.schedule
gpt_anomalies | gpt | tools | trainer.detect_anomaly=true | SLOW trainer.detect_anomaly
""")
# end
# kind: series
HELD_OUT += rows("etth1_lr_1000th | etth1 | rate too low | lr=5e-6 | lr in 1.6e-4 5 | lr > 1.5e-5")
# end
PROGRAMS = {case.name for case in HELD_OUT if case.name.startswith(("so_", "umlaut_"))} | {"example"}
