"""Questions to the labels of classes: are they right, named alike in train and val, and is none too rare?"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn import linear_model, metrics
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.diagnosis.finding import BADLY, Finding
from src.diagnosis.losses import NUMBERS

DRAWN, MOST = 3000, 10**6  # samples of a split that are looked at; of which wrong labels are listed
AGREE, NOISE, BETTER, UNLIKE = 0.78, 0.03, 0.04, 0.25  # kappa, share of wrong labels, F1, share of samples
MOST_CLASSES = 30  # that whole numbers may be the names of
EVEN = {"model": {"init_args": {"class_weights": "balanced"}}}


def flat(targets: torch.Tensor) -> np.ndarray:
    """[N], also where each is in a list of its own."""
    return (targets.flatten() if targets.numel() == len(targets) else targets).numpy()


class LabelChecks:
    """What was read: `classes`, `labels` as their indices, inputs `z` of simple `models`, their `guesses`."""

    data: Any
    loss: str
    classes: np.ndarray
    labels: np.ndarray
    y: np.ndarray
    z: np.ndarray
    index: np.ndarray
    val_x: np.ndarray
    val_y: np.ndarray
    guesses: list[np.ndarray]
    models: list[Any]
    reduce: Callable[[np.ndarray], np.ndarray]
    fetch: Any
    guess: Any
    traded = False  # whether classes have traded names

    def right(self) -> float:
        """The share of train's labels that a linear model tells."""
        return float((self.guesses[0].argmax(1) == self.labels).mean())

    def named_otherwise(self, known: np.ndarray) -> Iterator[Finding]:
        """Val's labels are those that train tells, once classes trade names."""
        likely = self.models[0].fit(self.z, self.labels).predict(self.reduce(self.val_x[known]))
        y, right = np.searchsorted(self.classes, self.val_y[known]), self.right()
        table = metrics.confusion_matrix(y, likely, labels=range(len(self.classes)))
        rows, names = linear_sum_assignment(table, maximize=True)
        as_is, traded = np.trace(table) / len(y), table[rows, names].sum() / len(y)
        if right > 0.5 and traded > max(right - 0.15, as_is + 0.3):
            text = f"val's classes are named otherwise: {as_is:.0%} are as train tells, {traded:.0%} by other names"
            found, todo = {"as_is": as_is, "traded": traded}, "number the classes once, for all splits"
            self.traded = True
            yield Finding("labels_differ", BADLY, text, found, 0.9, 0.95, {}, todo, certain=True, source="Kuhn, 1955")

    def names_as_numbers(self) -> Iterator[Finding]:
        """Whole numbers for a loss of numbers, which a linear classifier tells and no line does, name classes."""
        values, codes = np.unique(self.y, return_inverse=True)
        if self.loss not in NUMBERS or not 2 < len(values) <= MOST_CLASSES or (np.diff(values) != 1).any():
            return
        linear = make_pipeline(StandardScaler(), linear_model.LogisticRegression(C=50 / len(self.y)))
        guess = cross_val_predict(linear, self.z, codes, cv=KFold(5, shuffle=True, random_state=0))
        named, numbered = (float((one == self.y).mean()) for one in (values[guess], np.rint(self.guesses[0]).flatten()))
        if named > 0.7 and named > numbered + 0.3:
            text = f"{self.loss} of names of classes: a linear classifier tells {named:.0%}, a line {numbered:.0%}"
            found, todo = {"named": named, "numbered": numbered}, "take cross_entropy, with an output for each class"
            yield Finding("wrong_loss", BADLY, text, found, 0.5, 0.9, {}, todo, certain=True, source="DeepFD, 2022")

    def wrong_labels(self) -> Iterator[Finding]:
        """Two models agree on another label where they are surest; where data is hard but right, they do not agree."""
        lower, (likely, other) = np.minimum(*self.guesses), (guess.argmax(1) for guess in self.guesses)
        agreed = np.flatnonzero(likely == other)
        wrong = (likely != self.labels)[agreed[lower.max(1)[agreed].argsort()[::-1]]]  # the surest first
        n, kappa = len(wrong) // 2, float(metrics.cohen_kappa_score(likely, other))
        share, least = float(wrong[:n].mean()), 2 * wrong[: n // 2].mean()  # noise does not end where they are surest
        if kappa < AGREE or least < share or share - 2 * np.sqrt(share * (1 - share) / n) < NOISE:
            return
        fit, bad = [model.fit(self.z, self.labels) for model in self.models], list[tuple[float, int, int, int]]()
        rest = (([m.predict_proba(self.reduce(x)) for m in fit], y, i) for x, y, i in self.fetch("train", MOST, DRAWN))
        for guesses, y, index in [(self.guesses, self.y, self.index), *rest]:
            likely, sure = guesses[0].argmax(1), np.minimum(*guesses).max(1)
            rows = (likely == guesses[1].argmax(1)) & (self.classes[likely] != y)
            bad += zip(*(a[rows].tolist() for a in (sure, index, y, self.classes[likely])), strict=True)
        bad.sort(reverse=True)
        text = f"about {share:.0%} of train's labels look wrong: two models are sure of another class"
        evidence = {"share": share, "agreement": kappa, "worst": bad[:50], "suspicious": [i for _, i, *_ in bad]}
        how: Any = {"todo": "correct them", "certain": True, "source": "Northcutt, 2021"}
        yield Finding("label_noise", BADLY, text, evidence, share, 0.9, **how)

    def imbalance(self) -> Iterator[Finding]:
        """Classes are rare, and weights help a linear model by the mean of the classes' F1, or val has them as often as
        others."""
        linear = linear_model.LogisticRegression(C=50 / len(self.y), class_weight="balanced")
        guesses = self.guesses[0], self.guess(make_pipeline(StandardScaler(), linear))
        before, after = (float(metrics.f1_score(self.labels, one.argmax(1), average="macro")) for one in guesses)
        shares, val = ([float((y == one).mean()) for one in self.classes] for y in (self.y, self.val_y))
        drawn = getattr(self.data, "ordered", None)  # of a loader
        even = drawn is not None and np.unique(flat(drawn), return_counts=True)[1].min() > 2 * min(shares) * len(drawn)
        apart = float(np.abs(np.subtract(shares, val)).sum() / 2)
        noise = float(np.sqrt(np.multiply(shares, np.subtract(1, shares)) / len(self.val_y)).sum() / 2)
        helped = after - before > BETTER or apart > max(UNLIKE, 2 * noise)
        if (share := min(shares)) * len(self.classes) < 0.4 and helped and not even:
            text = f"rare classes are hardly found: mean F1 of a linear model {before:.2f}, with weights {after:.2f}"
            evidence = {"f1": before, "weighted": after, "rarest": share, "apart_from_val": apart}
            gain = max((after - before) / max(1 - before, 1e-9), apart / 2 * (apart > UNLIKE))
            how: Any = {"todo": "weigh classes in the loss, or draw them evenly"} if self.loss else {"change": EVEN}
            yield Finding("imbalance", BADLY, text, evidence, gain, 0.6, metric="val/f1", source="King, 2001", **how)
