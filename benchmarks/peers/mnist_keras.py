# kind: images
"""MNIST by the example's layers in Keras, `model.fit`, for the interpreter that has it."""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers


def read(folder, name):
    """A file of MNIST: a header, then bytes."""
    with open(os.path.join(folder, "MNIST", "raw", name), "rb") as f:
        data = f.read()
    if "labels" in name:
        return np.frombuffer(data, np.uint8, offset=8)
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28, 1)


class Stopwatch(keras.callbacks.Callback):
    """Seconds of training from the end of each epoch's first step on; it warms up, and compiles."""

    def __init__(self):
        super().__init__()
        self.seconds, self.steps = 0.0, 0

    def on_train_batch_end(self, batch, logs=None):
        self.now = time.perf_counter()
        if batch == 0:
            self.t0 = self.now
        self.batch = batch

    def on_test_begin(self, logs=None):  # the validation, which is within the epoch
        self.seconds, self.steps = self.seconds + self.now - self.t0, self.steps + self.batch


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0, help="images of a split, all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    x_train, y_train = read(args.data_dir, "train-images-idx3-ubyte"), read(args.data_dir, "train-labels-idx1-ubyte")
    x_test, y_test = read(args.data_dir, "t10k-images-idx3-ubyte"), read(args.data_dir, "t10k-labels-idx1-ubyte")
    x_train, x_test = x_train.astype("float32") / 255, x_test.astype("float32") / 255
    order = np.random.permutation(60_000)
    x_train, y_train = x_train[order], y_train[order]
    x_val, y_val = x_train[54_000:], y_train[54_000:]
    x_train, y_train = x_train[: args.limit or 54_000], y_train[: args.limit or 54_000]
    x_val, y_val, x_test, y_test = (a[: args.limit or None] for a in (x_val, y_val, x_test, y_test))

    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    watch = Stopwatch()
    how = {"batch_size": args.batch_size, "epochs": args.epochs, "verbose": 2, "callbacks": [watch]}
    history = model.fit(x_train, y_train, validation_data=(x_val, y_val), **how).history
    _, acc = model.evaluate(x_test, y_test, batch_size=args.batch_size, verbose=0)
    us = watch.seconds / (watch.steps * args.batch_size) * 1e6
    print(json.dumps({"us": us, "acc": float(acc), "val_acc": [float(a) for a in history["val_accuracy"]]}))


if __name__ == "__main__":
    main()


# end
