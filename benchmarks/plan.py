"""How right `python -m src.plan` is: each config of a grid is planned, then trained for some steps and measured.

    python -m benchmarks.plan                        # all: 8 minutes of one core's time
    python -m benchmarks.plan --limit 3 --seconds 1  # the first three

Memory is the peak of torch's allocator in a run of four steps: on a CPU by its profiler, which sees each allocation, on
a GPU as torch.cuda counts. Time is the median of later steps of another run against a probe of 20, as `plan` does it.
A verdict is whether the peak is below a limit, for 20 limits drawn from 0.7 to 1.4 times the measured peak. Beside
it stand the rules of `accelerate estimate-memory` (four times the weights, for Adam) and of DeepSpeed (ZeRO's model
states), where these packages are installed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

Found = dict[str, Any]
CONFIGS = "--config configs/experiment"
SGD = "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.01 --model.optimizer.momentum 0.9"
ADAMW = "--model.optimizer torch.optim.AdamW --model.optimizer.lr 0.001"
ADAMW8 = "--model.optimizer torchao.optim.AdamW8bit --model.optimizer.lr 0.001"
AGAIN = "--model.activation_checkpointing true"
BF16 = "--trainer.precision bf16-mixed"
GRID: dict[str, str] = {}
# kind: images
DIGITS = f"{CONFIGS}/digits_cnn.yaml --data.augment []"


def images(size: int, batch: int, network: str = "") -> str:
    more = f"--data.data_dir {{images}} --data.test_frac 0.1 --data.image_size [{size},{size}]"
    name = f"--model.network torchvision.models.{network}" if network.islower() else network
    return f"{DIGITS} --data.dataset folder {more} --data.batch_size {batch} {name}"


VIT = "--model.network src.networks.vit.ViT --model.network.dim 192 --model.network.depth 6"
VIT += " --model.network.num_heads 3 --model.network.patch_size 8"
RESNET = "--model.network src.networks.resnet.ResNet --model.network.widths [32,64,256,256]"
RESNET += " --model.network.depths [0,1,1,1] --model.network.pool true"
GRID |= {
    "CNN, 8 px": DIGITS,
    "LSTM, images": f"{CONFIGS}/digits_lstm.yaml",
    "CNN, 8 px, batch 512": f"{DIGITS} --data.batch_size 512",
    "CNN, 64 px": images(64, 32),
    "CNN, 64 px, bf16": f"{images(64, 32)} {BF16}",
    "CNN, 64 px, micro 8": f"{images(64, 32)} --data.micro_batch_size 8",
    "MLP": f"{CONFIGS}/digits_mlp.yaml",
    "MLP 4096": f"{CONFIGS}/digits_mlp.yaml --model.network.widths [4096,4096]",
    "MLP 4096, bf16": f"{CONFIGS}/digits_mlp.yaml --model.network.widths [4096,4096] {BF16}",
    "LSTM 256, images, batch 256": f"{CONFIGS}/digits_lstm.yaml --model.network.dim 256 --data.batch_size 256",
    "ViT, 8 px": f"{CONFIGS}/digits_vit.yaml",
    "ViT 192x6, 64 px": f"{images(64, 16, VIT)}",
    "ViT 192x6, 64 px, bf16, micro 4": f"{images(64, 16, VIT)} {BF16} --data.micro_batch_size 4",
    "ResNet, 32 px": f"{images(32, 64, RESNET)}",
    "resnet18, 64 px": images(64, 32, "resnet18"),
    "resnet18, 64 px, SGD, clip": f"{images(64, 32, 'resnet18')} {SGD} --trainer.gradient_clip_val 1",
    "resnet18, 64 px, bf16": f"{images(64, 32, 'resnet18')} {BF16}",
    "resnet18, 64 px, half frozen": f"{images(64, 32, 'resnet18')} --model.freeze [conv1.*,bn1.*,layer1.*,layer2.*]",
    "resnet18, 64 px, again": f"{images(64, 32, 'resnet18')} --model.blocks [layer*.*] {AGAIN}",
    "resnet50, 96 px": images(96, 8, "resnet50"),
    "resnet50, 96 px, EMA": f"{images(96, 8, 'resnet50')} --ema.decay 0.99",
    "mobilenet_v2, 96 px": images(96, 16, "mobilenet_v2"),
    "mobilenet_v2, 96 px, bf16": f"{images(96, 16, 'mobilenet_v2')} {BF16}",
    "efficientnet_b0, 96 px, bf16": f"{images(96, 16, 'efficientnet_b0')} {BF16}",
    "mnasnet1_0, 96 px": images(96, 16, "mnasnet1_0"),
    "vit_b_16, 64 px": f"{images(64, 4, 'vit_b_16')} --model.network.image_size 64",
}  # fmt: skip
# end
# kind: text
BPE = "--data.tokenizer bpe --data.vocab_size 4096"
TEXT_LSTM = f"{CONFIGS}/shakespeare_lstm.yaml --data.files null"


def gpt(dim: int, depth: int, seq_len: int, batch: int) -> str:
    network = f"--model.network.dim {dim} --model.network.depth {depth} --model.network.num_heads {dim // 64}"
    return f"{CONFIGS}/text_gpt.yaml {network} --data.seq_len {seq_len} --data.batch_size {batch}"


GRID |= {
    "GPT 128x4": gpt(128, 4, 128, 16),
    "GPT 256x4": gpt(256, 4, 256, 8),
    "GPT 256x4, bf16": f"{gpt(256, 4, 256, 8)} {BF16}",
    "GPT 256x4, micro 2": f"{gpt(256, 4, 256, 8)} --data.micro_batch_size 2",
    "GPT 256x4, again": f"{gpt(256, 4, 256, 8)} {AGAIN}",
    "GPT 256x4, 4,096 tokens, chunks": f"{gpt(256, 4, 256, 4)} {BPE} --model.loss_chunks 8",
    "GPT 256x4, 8-bit": f"{gpt(256, 4, 256, 4)} {ADAMW8}",
    "GPT 256x4, Muon": f"{gpt(256, 4, 256, 4)} --model.optimizer src.optim.muon.Muon",
    "GPT 256x4, AdamW not fused": f"{gpt(256, 4, 256, 4)} {ADAMW}",
    "GPT 256x4, dropout": f"{gpt(256, 4, 256, 4)} --model.network.dropout 0.1",
    "GPT 256x4, 4,096 tokens": f"{gpt(256, 4, 256, 4)} {BPE}",
    "GPT 512x4": gpt(512, 4, 128, 2),
    "LSTM, text": TEXT_LSTM,
    "LSTM 512x2, text": f"{TEXT_LSTM} --model.network.dim 512 --model.network.depth 2 --data.batch_size 8",
    "LSTM, text, bf16": f"{TEXT_LSTM} {BF16}",
}  # fmt: skip
# end
# kind: series
SERIES = f"{CONFIGS}/seasons_linear.yaml"
RNN = f"{SERIES} --model.network src.networks.series_rnn.SeriesRNN"
GRID |= {
    "DLinear": SERIES,
    "LSTM, series": RNN,
    "LSTM, series, bf16": f"{RNN} {BF16}",
    "GRU, series": f"{RNN} --model.network.kind gru",
    "PatchTransformer": f"{SERIES} --model.network src.networks.patch_transformer.PatchTransformer",
}  # fmt: skip
# end
# kind: tables
GRID |= {
    "MLP, table": f"{CONFIGS}/breast_cancer_mlp.yaml",
    "MLP 2048, table": f"{CONFIGS}/breast_cancer_mlp.yaml --model.network.dim 2048",
}  # fmt: skip
# end


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


def plan(args: list[str], _: float) -> Found:
    """Peak, operations of a step, and the estimates of others, of the model states alone."""
    from src.callbacks.expected import expected

    planned = experiment(args)
    planned.on_meta()
    model, k = planned.model, planned.trainer.accumulate_grad_batches
    usage = expected(planned.trainer, model, "cuda" if torch.cuda.is_available() else "cpu")
    found = {"peak": sum(usage.parts().values()), "parts": usage.parts(), "unknown": usage.unknown}
    found["flops"] = usage.flops * k + usage.update_flops
    try:
        from accelerate.utils import calculate_maximum_sizes

        found["accelerate"] = 4 * calculate_maximum_sizes(model.network)[0]
    except ImportError:
        pass
    try:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        weights = sum(p.numel() for p in model.parameters())
        found["deepspeed"] = estimate_zero2_model_states_mem_needs(weights, 1, 1, cpu_offload=False)[1]
    except ImportError:
        pass
    return found


def run_of(args: list[str], steps: int) -> Any:
    more = f"--trainer.max_steps {steps} --trainer.max_epochs -1 --trainer.limit_val_batches 0"
    built = experiment([*args, *f"{more} --trainer.num_sanity_val_steps 0 --trainer.log_every_n_steps 2".split()])
    built.build(logger=False)
    built.datamodule.prepare_data()
    built.datamodule.setup("fit")
    built.datamodule.setup = lambda stage: None  # the memory of the data set is none of a step's
    return built


def train(args: list[str], _: float) -> Found:
    """The peak of the allocator, and operations as FlopCounterMode counts them in a real step."""
    from torch.profiler import ProfilerActivity, profile

    from src.callbacks.ema import EMA
    from src.callbacks.gradients import Gradients

    trained = run_of(args, 4)
    trainer = trained.trainer
    trainer.callbacks = [c for c in trainer.callbacks if isinstance(c, (Gradients, EMA))]
    if torch.cuda.is_available():
        trainer.fit(trained.model, datamodule=trained.datamodule)
        return {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.fit(trained.model, datamodule=trained.datamodule)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return {"peak": int(total.max())}


def time_probe(args: list[str], seconds: float) -> Found:
    from src.callbacks import probe

    probe.MOST_SEC, probe.clock = seconds, time.process_time
    return {"sec": probe.probe(run_of(args, 10**6), 20)[0]}


def time_later(args: list[str], seconds: float) -> Found:
    """The median of steps after those of a probe."""
    from src.callbacks import probe

    probe.MOST_SEC, probe.WARM, probe.clock = 2 * seconds, 10, time.process_time
    return {"sec": probe.probe(run_of(args, 10**6), 60)[0]}


def in_child(task: Callable[[list[str], float], Found], args: list[str], seconds: float) -> Found:
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            text = json.dumps(task(args, seconds))
        except BaseException:
            text = json.dumps({"error": traceback.format_exc()[-500:]})
        os.write(sink, text.encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as f:
        found = json.loads(f.read() or '{"error": "died"}')
    os.waitpid(pid, 0)
    return found


def verdicts(planned: float, real: float, draws: np.random.Generator) -> list[bool]:
    limits = real * np.exp(draws.uniform(np.log(0.7), np.log(1.4), 20))
    return [bool((planned <= limit) == (real <= limit)) for limit in limits]


def summary(rows: dict[str, Found]) -> None:
    draws = np.random.default_rng(0)
    ratios = np.array([row["plan"]["peak"] / row["real"]["peak"] for row in rows.values()])
    right = [v for row in rows.values() for v in verdicts(row["plan"]["peak"], row["real"]["peak"], draws)]
    times = np.array([row["probe"]["sec"] / row["later"]["sec"] for row in rows.values()])
    print(
        f"\nmemory: {np.mean(abs(ratios - 1) <= 0.1):.0%} of {len(rows)} within 10 %, median {np.median(ratios):.3f},"
    )
    print(f"  lowest {ratios.min():.3f}, highest {ratios.max():.3f}; verdicts right: {np.mean(right):.1%}")
    print(f"time: {np.mean(abs(times - 1) <= 0.25):.0%} within 25 %, {times.min():.2f} to {times.max():.2f}")
    for tool in ("accelerate", "deepspeed"):
        others = [row["plan"][tool] / row["real"]["peak"] for row in rows.values() if tool in row["plan"]]
        if not others:
            print(f"{tool}: is not installed")
            continue
        close = np.mean(abs(np.array(others) - 1) <= 0.1)
        print(
            f"{tool}: {close:.0%} within 10 %, {min(others):.3f} to {max(others):.3f}, median {np.median(others):.3f}"
        )


def draw(rows: dict[str, Found], path: Path) -> None:
    from src.run.figures import figure, save

    fig = figure(7, 6)
    axes = fig.subplots()
    real = np.array([row["real"]["peak"] for row in rows.values()]) / 2**20
    for tool, marker in (("peak", "o"), ("accelerate", "x"), ("deepspeed", "+")):
        known = [row["plan"].get(tool, np.nan) / 2**20 for row in rows.values()]
        axes.scatter(real, known, marker=marker, label="plan" if tool == "peak" else tool, s=24)
    axes.plot(axes.get_xlim(), axes.get_xlim(), color="grey", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="measured peak, MiB", ylabel="predicted, MiB")
    axes.legend()
    save(fig, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=len(GRID), help="so many of the grid")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a probe; twice as long for later steps")
    parser.add_argument("--only", default="", help="configs with this in their name")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("src.config.build", "accelerate.utils", "deepspeed.runtime.zero.stage_1_and_2"):
        with suppress(ImportError):
            import_module(name)  # once, before the forks

    rows: dict[str, Found] = {}
    failed = 0
    print(f"{'config':<32} {'measured':>9} {'plan':>9}  ratio    step, ms  probe")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        for name, flags in [item for item in GRID.items() if args.only in item[0]][: args.limit]:
            line = flags.format(images=folder).split()
            tasks = {"plan": plan, "real": train, "probe": time_probe, "later": time_later}
            row = {key: in_child(task, line, args.seconds) for key, task in tasks.items()}
            bad = row["plan"].get("unknown") or next((found["error"] for found in row.values() if "error" in found), "")
            if bad:
                failed += 1
                print(f"{name:<32} FAILED: {bad}", flush=True)
                continue
            rows[name] = row
            real, mine = row["real"]["peak"], row["plan"]["peak"]
            speed = f"{1000 * row['later']['sec']:9.1f}  {row['probe']['sec'] / row['later']['sec']:.2f}"
            print(f"{name:<32} {real / 2**20:9.2f} {mine / 2**20:9.2f}  {mine / real:.3f} {speed}", flush=True)
    summary(rows)
    if args.picture:
        draw(rows, args.picture)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
