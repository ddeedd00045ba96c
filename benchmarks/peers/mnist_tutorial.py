# kind: images
"""MNIST as tutorials train it: DataLoader, a transform for each image, Adam as it comes, `.item()` at each step."""

import argparse
import json
import time

import torch
from mnist_net import Net
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import datasets, transforms


def evaluate(model, loader):
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += (model(images).argmax(1) == labels).sum().item()
            total += len(labels)
    return correct / total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0, help="images of a split, all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    full = datasets.MNIST(args.data_dir, train=True, transform=transform)
    train_set, val_set = random_split(full, [54_000, 6_000])
    test_set = datasets.MNIST(args.data_dir, train=False, transform=transform)
    if args.limit:
        sets = [(s, range(min(args.limit, len(s)))) for s in (train_set, val_set, test_set)]
        train_set, val_set, test_set = (torch.utils.data.Subset(*part) for part in sets)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    val_loader = DataLoader(val_set, batch_size=args.batch_size)
    test_loader = DataLoader(test_set, batch_size=args.batch_size)

    model = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds = seen = 0
    for _ in range(args.epochs):
        model.train()
        t0, first = 0.0, 0
        running_loss = 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if not first:  # the first step warms up
                t0, first = time.perf_counter(), len(labels)
        seconds, seen = seconds + time.perf_counter() - t0, seen + len(train_set) - first
        evaluate(model, val_loader)
    print(json.dumps({"us": seconds / seen * 1e6, "acc": evaluate(model, test_loader)}))


if __name__ == "__main__":
    main()


# end
