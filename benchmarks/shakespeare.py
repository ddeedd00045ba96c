"""Tinyshakespeare to the validation loss of nanoGPT's recipe for a CPU, whole command against whole command.

    python -m benchmarks.shakespeare --data tinyshakespeare.txt --repeats 3 --steps 2000 --nanogpt CHECKOUT

`nanoGPT` is `train.py` with the flags of its README for a CPU, run in a copy of the checkout that has the text as its
`data/shakespeare_char/input.txt`; its data is prepared before, and not timed. Its checkpoint is then evaluated on the
whole validation text, the last tenth, in windows of 64 characters as ours are: by itself it looks at 20 batches. Its
seed is fixed, and it computes in float32, as it does on a CPU. Ours are `shakespeare_gpt_fast` and
`shakespeare_lstm_fast`, which is another architecture, in float32 and as their configs have it, `trainer.precision:
auto`, each with another seed in each repeat; their time includes preparing the text, a validation and a test. Their
settings were chosen on this very validation text.

Then a step of the network of `shakespeare_gpt` against one of nanoGPT's at the same sizes, both as their commands do
it: batch, loss, gradient, clipping, optimizer; float32, one thread, without compiling.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.side_by_side import conditions, in_turn, picture, seconds_of, spread, table
from src.config.build import keep_freed_memory
from src.data.order import TrainOrder
from src.data.text.module import Windows
from src.data.text.tokens import encode, make_tokenizer
from src.models.factory import parameter_groups
from src.networks.gpt import GPT
from src.run.device import fastest_precision

SEQ_LEN, BATCH = 64, 12
FLAGS = ["--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", f"--block_size={SEQ_LEN}"]
FLAGS += [f"--batch_size={BATCH}", "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0"]
PRECISIONS = {"32-true": "32-true", "auto": fastest_precision("cpu")}  # as given and as taken
OURS = {
    f"{name}, {given}: {taken}" if given != taken else f"{name}, {taken}": (name, given)
    for name in ("shakespeare_gpt_fast", "shakespeare_lstm_fast")
    for given, taken in PRECISIONS.items()
}
NANOGPT = "nanoGPT, 32-true"


def ours(side, args, losses, number):
    name, precision = OURS[side]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data.files", f"[{args.data}]", "--data.cache_dir", f"{folder}/cache", "--run_dir", f"{folder}/run"]
        flags += ["--seed_everything", str(number), "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
        flags += ["--trainer.precision", precision]
        if args.steps < 2000:
            flags += ["--trainer.max_steps", str(args.steps), "--trainer.val_check_interval", str(args.steps)]
        config = ["--config", f"configs/experiment/{name}.yaml"]
        seconds = seconds_of([sys.executable, "-m", "src.train", *config, *flags])
        losses[side].append(json.loads(Path(folder, "run/summary.json").read_text())["test/loss"])
    return seconds


def nanogpt(checkout, args, losses, number):
    """In a prepared copy of its checkout; its last checkpoint is that of its lowest estimated loss."""
    steps = [f"--max_iters={args.steps}", f"--lr_decay_iters={args.steps}", f"--eval_interval={min(250, args.steps)}"]
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *FLAGS, *steps]
    seconds = seconds_of(command, cwd=checkout)
    saved = torch.load(checkout / "out-shakespeare-char/ckpt.pt", weights_only=True)
    network = theirs(checkout, saved["model_args"])
    network.load_state_dict(saved["model"])
    losses[NANOGPT].append(full_loss(lambda x: network(x.contiguous(), x.contiguous())[0], args.data))
    return seconds


def prepared(args, folder):
    """A copy of the checkout with the text in its place."""
    checkout = Path(folder, "nanoGPT")
    shutil.copytree(args.nanogpt, checkout, ignore=shutil.ignore_patterns(".git"))
    shutil.copy(args.data, checkout / "data/shakespeare_char/input.txt")
    seconds_of([sys.executable, "data/shakespeare_char/prepare.py"], cwd=checkout)
    return checkout


def theirs(checkout, sizes):
    sys.path.insert(0, str(checkout))
    module = import_module("model")
    sys.path.remove(str(checkout))
    return module.GPT(module.GPTConfig(**sizes))


def tokens(file):
    """Of the text's first nine tenths and of the rest, as the last character before it begins it."""
    text = Path(file).read_text()
    cut = int(len(text) * 0.9)
    ids = torch.from_numpy(encode(make_tokenizer("characters", text, 0), text).astype(np.uint8))
    return ids[:cut], ids[cut - 1 :]


@torch.no_grad()
def full_loss(network, file):
    """Over the whole validation text."""
    windows, losses = Windows(tokens(file)[1], SEQ_LEN, SEQ_LEN), []
    for index in torch.arange(len(windows)).split(128):
        batch = windows[index]
        logits, targets = network(batch["x"]), batch["targets"]
        losses.append(
            F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")[targets.flatten() >= 0]
        )
    return torch.cat(losses).mean().item()


def step_of(network, optimizer, loss_of, take):
    def step():
        x, targets = take()
        loss_of(x, targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(args):
    train, _ = tokens(args.data)
    windows, network = Windows(train, SEQ_LEN, 1), GPT(dim=128, depth=4, num_heads=4, vocab_size=65, seq_len=SEQ_LEN)
    groups = parameter_groups(network, network, list(network.blocks))
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    order = iter(TrainOrder(len(windows), BATCH, BATCH, 0, lambda: (0, 0)))

    def take():
        batch = windows[next(order)]
        return batch["x"], batch["targets"]

    return step_of(network, optimizer, lambda x, y: F.cross_entropy(network(x).flatten(0, 1), y.flatten()), take)


def their_step(args, checkout):
    """Batches as its train.py takes them: a window at a time from a memory map, put together."""
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": SEQ_LEN, "bias": False}
    network = theirs(checkout, {**sizes, "vocab_size": 65, "dropout": 0.0})
    optimizer = network.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    data = np.memmap(checkout / "data/shakespeare_char/train.bin", dtype=np.uint16, mode="r")

    def take():
        starts = torch.randint(len(data) - SEQ_LEN, (BATCH,))
        rows = [[torch.from_numpy(data[i + k : i + k + SEQ_LEN].astype(np.int64)) for i in starts] for k in (0, 1)]
        return torch.stack(rows[0]), torch.stack(rows[1])

    return step_of(network, optimizer, lambda x, y: network(x, y)[1], take)


def milliseconds(step, steps, number):
    t0 = time.process_time()  # of one thread: other work on the machine hardly changes it
    for _ in range(steps):
        step()
    return (time.process_time() - t0) / steps * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="tinyshakespeare as one file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of nanoGPT; fewer shorten the other side, too")
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT")
    parser.add_argument("--picture", type=Path, help="where to draw it")
    args = parser.parse_args()
    losses = {name: [] for name in (*OURS, NANOGPT)}
    sides = {name: partial(ours, name, args, losses) for name in OURS}
    with tempfile.TemporaryDirectory() as folder:
        if args.nanogpt:
            checkout = prepared(args, folder)
            sides = {NANOGPT: partial(nanogpt, checkout, args, losses), **sides}
        else:
            print("nanoGPT is left out: --nanogpt CHECKOUT says where it is.")
        seconds = in_turn(sides, args.repeats, warm_up=0)
        print(f"\n{table(seconds, next(iter(sides)), 's, whole command', 1)}\n")
        print("\n".join(f"{name}: validation loss {spread(losses[name], 4)}" for name in sides))
        print(conditions(args.repeats), flush=True)
        torch.set_num_threads(1)
        keep_freed_memory()  # as src.train does on a CPU
        steps = {"ours": our_step(args)} | ({"nanoGPT": their_step(args, checkout)} if args.nanogpt else {})
        each = {name: partial(milliseconds, step, min(args.steps, 20)) for name, step in steps.items()}
        times = in_turn(each, max(9, args.repeats))
    print(f"\n{table(times, 'ours', 'ms of processor time a step, one thread', 1)}")
    if args.picture:
        picture(
            seconds, args.picture, "Tinyshakespeare to nanoGPT's validation loss on a CPU", "seconds, whole command"
        )


if __name__ == "__main__":
    main()
