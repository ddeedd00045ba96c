"""How right `python -m src.plan` is: each config of a grid is planned, then trained for some steps and measured.

python -m benchmarks.plan
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

DIGITS = "--config configs/experiment/digits_cnn.yaml --data.augment []"
FOLDER = f"{DIGITS} --data.dataset folder --data.data_dir {{images}} --data.test_frac 0.1 --data.val_frac 0.1"
TEXT = "--config configs/experiment/text_gpt.yaml"
SERIES = "--config configs/experiment/seasons_linear.yaml"
SGD = "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.01 --model.optimizer.momentum 0.9"
ADAMW = "--model.optimizer torch.optim.AdamW --model.optimizer.lr 0.001"
MUON = "--model.optimizer src.optim.muon.Muon"
BF16 = "--trainer.precision bf16-mixed"


def torchvision(name: str, size: int, batch: int, more: str = "") -> str:
    return (
        f"{FOLDER} --data.image_size [{size},{size}] --data.batch_size {batch} "
        f"--model.network torchvision.models.{name} {more}"
    )


GRID = {
    "CNN, digits": DIGITS,
    "CNN, digits, batch 512": f"{DIGITS} --data.batch_size 512",
    "CNN, 64 px": f"{FOLDER} --data.image_size [64,64] --data.batch_size 32",
    "CNN, 64 px, bf16": f"{FOLDER} --data.image_size [64,64] --data.batch_size 32 {BF16}",
    "CNN, 64 px, micro 8": f"{FOLDER} --data.image_size [64,64] --data.batch_size 32 --data.micro_batch_size 8",
    "MLP, digits": "--config configs/experiment/digits_mlp.yaml",
    "MLP 4096": "--config configs/experiment/digits_mlp.yaml --model.network.widths [4096,4096]",
    "MLP 4096, bf16": f"--config configs/experiment/digits_mlp.yaml --model.network.widths [4096,4096] {BF16}",
    "LSTM, images": "--config configs/experiment/digits_lstm.yaml",
    "LSTM 256, images, batch 256": "--config configs/experiment/digits_lstm.yaml --model.network.dim 256 --data.batch_size 256",
    "ViT, digits": "--config configs/experiment/digits_vit.yaml",
    "ViT 192x6, 64 px": f"{FOLDER} --data.image_size [64,64] --data.batch_size 16 --model.network src.networks.vit.ViT --model.network.dim 192 --model.network.depth 4 --model.network.num_heads 4 --model.network.num_heads 3 --model.network.patch_size 8",
    "resnet18, 64 px": torchvision("resnet18", 64, 32),
    "resnet18, 64 px, SGD": torchvision("resnet18", 64, 32, SGD),
    "resnet18, 64 px, bf16": torchvision("resnet18", 64, 32, BF16),
    "resnet18, 64 px, frozen": torchvision(
        "resnet18", 64, 32, "--model.freeze ['conv1.*','bn1.*','layer1.**','layer2.**']"
    ),
    "resnet50, 96 px": torchvision("resnet50", 96, 8),
    "resnet50, 96 px, EMA": torchvision("resnet50", 96, 8, "--ema.decay 0.99"),
    "mobilenet_v2, 96 px": torchvision("mobilenet_v2", 96, 16),
    "mobilenet_v2, 96 px, bf16": torchvision("mobilenet_v2", 96, 16, BF16),
    "vit_b_16, 224 px": torchvision("vit_b_16", 224, 2, "--model.network.image_size 224"),
    "ResNet, 32 px": f"--config configs/experiment/cifar10_resnet.yaml {FOLDER.partition(' ')[2].partition(' ')[2]} --data.image_size [32,32] --data.batch_size 64",
    "GPT 128x4": TEXT,
    "GPT 256x6": f"{TEXT} --model.network.dim 256 --model.network.depth 4 --model.network.num_heads 4 --data.seq_len 256 --data.batch_size 8",
    "GPT 256x6, bf16": f"{TEXT} --model.network.dim 256 --model.network.depth 4 --model.network.num_heads 4 --data.seq_len 256 --data.batch_size 8 {BF16}",
    "GPT 256x6, micro 2": f"{TEXT} --model.network.dim 256 --model.network.depth 4 --model.network.num_heads 4 --data.seq_len 256 --data.batch_size 8 --data.micro_batch_size 2",
    "GPT 256x4, Muon": f"{TEXT} --model.network.dim 256 --model.network.depth 4 --model.network.num_heads 4 --data.seq_len 256 --data.batch_size 4 {MUON}",
    "GPT 256x4, AdamW": f"{TEXT} --model.network.dim 256 --model.network.depth 4 --model.network.num_heads 4 --data.seq_len 256 --data.batch_size 4 {ADAMW}",
    "GPT 256x4, bpe 4096": f"{TEXT} --model.network.dim 256 --model.network.depth 4 --model.network.num_heads 4 --data.seq_len 256 --data.batch_size 4 --data.tokenizer bpe --data.vocab_size 4096",
    "GPT 512x4": f"{TEXT} --model.network.dim 512 --model.network.depth 4 --model.network.num_heads 8 --data.seq_len 128 --data.batch_size 2",
    "LSTM, text": "--config configs/experiment/shakespeare_lstm.yaml --data.files null",
    "LSTM 512x2, text": "--config configs/experiment/shakespeare_lstm.yaml --data.files null --model.network.dim 512 --model.network.depth 2 --data.batch_size 8",
    "LSTM, text, bf16": f"--config configs/experiment/shakespeare_lstm.yaml --data.files null {BF16}",
    "LSTM, series, bf16": f"{SERIES} --model.network src.networks.series_rnn.SeriesRNN {BF16}",
    "LSTM, digits, batch 512": "--config configs/experiment/digits_lstm.yaml --data.batch_size 512",
    "DLinear": SERIES,
    "LSTM, series": f"{SERIES} --model.network src.networks.series_rnn.SeriesRNN",
    "GRU, series": f"{SERIES} --model.network src.networks.series_rnn.SeriesRNN --model.network.kind gru",
    "PatchTransformer": f"{SERIES} --model.network src.networks.patch_transformer.PatchTransformer",
    "MLP, table": "--config configs/experiment/breast_cancer_mlp.yaml",
    "MLP 2048, table": "--config configs/experiment/breast_cancer_mlp.yaml --model.network.dim 2048",
}


def make_images(folder: Path) -> None:
    from PIL import Image

    draws = np.random.default_rng(0)
    for i in range(200):
        path = folder / str(i % 2) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)


def experiment(args: list[str]) -> Any:
    from src.config.build import Experiment
    from src.config.request import command_parser, read_request

    return Experiment(read_request(command_parser("plan", None), args))


def plan(args: list[str]) -> dict[str, Any]:
    from src.callbacks.expected import expected

    planned = experiment(args)
    planned.on_meta()
    t0 = time.perf_counter()
    usage = expected(planned.trainer, planned.model)
    parts = usage.parts()
    states = sum(parts.get(part, 0) for part in ("weights", "gradients", "optimizer"))
    return {
        "peak": sum(parts.values()),
        "flops": usage.flops,
        "unknown": usage.unknown,
        "parts": parts,
        "states": states,
        "sec": time.perf_counter() - t0,
    }


def train(args: list[str]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    more = (
        "--trainer.max_steps 4 --trainer.max_epochs -1 --trainer.num_sanity_val_steps 0 --trainer.limit_val_batches 0"
    )
    trained = experiment([*args, *more.split(), "--trainer.log_every_n_steps", "2"])
    trained.build(logger=False)
    kept = ("Gradients", "EMA")
    trained.trainer.callbacks = [c for c in trained.trainer.callbacks if type(c).__name__ in kept]
    trained.datamodule.prepare_data()
    trained.datamodule.setup("fit")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trained.trainer.fit(trained.model, datamodule=trained.datamodule)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return {"peak": int(total.max())}


def in_child(task: Callable[[list[str]], dict[str, Any]], args: list[str]) -> dict[str, Any]:
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            text = json.dumps(task(args))
        except BaseException:
            text = json.dumps({"error": traceback.format_exc()[-800:]})
        os.write(sink, text.encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as f:
        found = json.loads(f.read() or '{"error": "died"}')
    os.waitpid(pid, 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import src.config.build  # noqa: F401  loaded once, before the forks

    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        for name, flags in GRID.items():
            if not any(part in name for part in args.only.split("|")):
                continue
            line = flags.format(images=folder).split()
            planned, real = in_child(plan, line), in_child(train, line)
            if bad := planned.get("unknown") or planned.get("error") or real.get("error"):
                print(name, "FAILED", bad[-500:], flush=True)
                continue
            parts = {part: round(size / 2**20, 2) for part, size in planned["parts"].items()}
            print(
                f"{name:<28} real {real['peak'] / 2**20:8.2f} plan {planned['peak'] / 2**20:8.2f} ratio {planned['peak'] / real['peak']:.3f} {planned['sec']:.1f} s {parts}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
