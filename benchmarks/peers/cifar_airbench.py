# kind: images
"""A plain float32 port to the CPU of the method of airbench94 (Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU,
2024), in words of our own, on a folder of images.

A first layer that whitens 2x2 patches and stays as it is, but for its biases in the first three epochs; three blocks of
two convolutions that begin as the identity, the first of them pooled; SGD with Nesterov's momentum, whose rates are
told apart from momentum and batch size; rates of the norms' biases 64 times higher; label smoothing 0.2; a triangle of
the rate; a slow copy of the weights, which pulls them back every five steps (Lookahead); mirror images in turns of
epochs, shifts by two pixels; and six views of each test image.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

BATCH, EPOCHS, RATE, DECAY, MOMENTUM = 1024, 9.9, 11.5, 0.0153, 0.85
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


class Conv(nn.Conv2d):
    """Its first output channels begin as copies of its input."""

    def __init__(self, channels, width):
        super().__init__(channels, width, 3, padding=1, bias=False)
        nn.init.dirac_(self.weight.data[:channels])


def norm(width):
    layer = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def block(channels, width):
    halving = [Conv(channels, width), nn.MaxPool2d(2), norm(width), nn.GELU()]
    return nn.Sequential(*halving, Conv(width, width), norm(width), nn.GELU())


class Net(nn.Module):
    def __init__(self, images):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.data = torch.cat([kernels, -kernels])
        self.whiten.weight.requires_grad_(False)
        self.body = nn.Sequential(nn.GELU(), block(24, 64), block(64, 256), block(256, 256), nn.MaxPool2d(3))
        self.head = nn.Linear(256, 10, bias=False)

    def forward(self, x):
        return self.head(self.body(self.whiten(x)).flatten(1)) / 9


def read(folder):
    data = ImageFolder(folder)
    x = torch.stack([pil_to_tensor(data.loader(path)) for path, _ in data.samples])
    return (x.float() / 255 - MEAN[:, None, None]) / STD[:, None, None], torch.tensor(data.targets)


def shifted(x, most=2):
    framed = F.pad(x, [most] * 4, mode="reflect")
    out, offsets = torch.empty_like(x), torch.randint(0, 2 * most + 1, (len(x), 2))
    for top in range(2 * most + 1):
        for left in range(2 * most + 1):
            here = (offsets[:, 0] == top) & (offsets[:, 1] == left)
            out[here] = framed[here, :, top : top + 32, left : left + 32]
    return out


def groups(net):
    """SGD's own rate is for a sum over the batch, and grows by momentum: it is told without both."""
    scale = BATCH * (1 + 1 / (1 - MOMENTUM))
    biases = [p for name, p in net.named_parameters() if "body" in name and name.endswith("bias")]
    others = [p for p in net.parameters() if p.requires_grad and not any(p is b for b in biases)]
    decay = DECAY * BATCH / scale
    return [
        {"params": biases, "lr": RATE / scale * 64, "weight_decay": decay / (RATE / scale * 64)},
        {"params": others, "lr": RATE / scale, "weight_decay": decay / (RATE / scale)},
    ]


def factor(step, steps):
    """From 0.2 up to 1 at 23 % of the run, then down to 0.07."""
    peak = int(0.23 * steps)
    return 0.2 + 0.8 * step / max(1, peak) if step < peak else 1 - 0.93 * (step - peak) / max(1, steps - peak)


@torch.no_grad()
def pull(net, slow, share):
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            slow[name].lerp_(value, 1 - share)
            value.copy_(slow[name])


@torch.no_grad()
def accuracy(net, x, y):
    net.eval()
    hits = 0
    for images, targets in zip(x.split(500), y.split(500), strict=True):
        framed = F.pad(images, [1] * 4, mode="reflect")
        views = [(0.5, images), (0.25, framed[..., :32, :32]), (0.25, framed[..., 2:, 2:])]
        logits = sum(share * (net(view) + net(view.flip(-1))) for share, view in views)
        hits += (logits.argmax(1) == targets).sum().item()
    return hits / len(y)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--steps", type=int, default=0, help="at most; all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    x, y = read(f"{args.data_dir}/train")
    net = Net(x[torch.randperm(len(x))[:5000]])
    batch = min(BATCH, len(x))
    whole = int(args.epochs * (len(x) // batch))
    optimizer = torch.optim.SGD(groups(net), momentum=MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, whole))
    slow = {name: value.clone() for name, value in net.state_dict().items()}
    mirrored = torch.rand(len(x)) < 0.5
    steps, t0 = min(whole, args.steps or whole), time.perf_counter()
    for step in range(steps):
        epoch, i = divmod(step, len(x) // batch)
        if i == 0:
            order, mirrored = torch.randperm(len(x)), ~mirrored
            net.whiten.bias.requires_grad_(epoch < 3)
        index = order[i * batch : (i + 1) * batch]
        images = torch.where(mirrored[index][:, None, None, None], x[index].flip(-1), x[index])
        net.train()
        loss = F.cross_entropy(net(shifted(images)), y[index], label_smoothing=0.2, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 5 == 4:
            pull(net, slow, 0.95**5 * (step / whole) ** 3)
    seconds = time.perf_counter() - t0
    print(json.dumps({"us": seconds / (steps * batch) * 1e6, "acc": accuracy(net, *read(f"{args.data_dir}/test"))}))


if __name__ == "__main__":
    main()


# end
