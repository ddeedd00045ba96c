# kind: images
"""MNIST as somebody trains it who knows PyTorch well: the set is one tensor of bytes, indexed by the batch; fused Adam,
channels innermost, bfloat16 where the processor has it, and no number is asked for before the end."""

import argparse
import json
import time

import torch
from mnist_net import Net
from torch.nn import functional as F
from torchvision.datasets import MNIST


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0, help="images of a split, all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    full, test = MNIST(args.data_dir, train=True), MNIST(args.data_dir, train=False)
    order, most = torch.randperm(60_000), args.limit or None
    parts = {"train": order[:54_000][:most], "val": order[54_000:][:most]}
    images = {name: full.data[index][:, None] for name, index in parts.items()} | {"test": test.data[:most, None]}
    labels = {name: full.targets[index] for name, index in parts.items()} | {"test": test.targets[:most]}

    model = Net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            return model(x.float().div_(255).sub_(0.1307).div_(0.3081)).float()

    @torch.no_grad()
    def evaluate(name):
        x, y = images[name].split(args.batch_size), labels[name].split(args.batch_size)
        return sum((forward(a).argmax(1) == b).sum() for a, b in zip(x, y, strict=True)).item() / len(labels[name])

    seconds = seen = 0
    for _ in range(args.epochs):
        for i, index in enumerate(torch.randperm(len(labels["train"])).split(args.batch_size)):
            loss = F.cross_entropy(forward(images["train"][index]), labels["train"][index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if i == 0:  # the first step warms up
                t0, first = time.perf_counter(), len(index)
        seconds, seen = seconds + time.perf_counter() - t0, seen + len(labels["train"]) - first
        evaluate("val")
    print(json.dumps({"us": seconds / seen * 1e6, "acc": evaluate("test")}))


if __name__ == "__main__":
    main()


# end
