"""Questions to the data before any training: are labels right, is val apart from train, can inputs be learned from?"""

import time
import warnings
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from sklearn import decomposition, dummy, ensemble, feature_selection, linear_model, metrics, neighbors
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from src.diagnosis.finding import BADLY, Finding, Unknown
from src.diagnosis.labels import DRAWN, LabelChecks, flat

HASHED, FEATURES, COMPONENTS = 60_000, 4096, 50  # samples; numbers of an x
POWER, ABOVE_CHANCE = 200, 2.5  # samples, standard deviations
IN_VAL = 0.02  # share of val's samples
DRIFT, DRIFT_IN_TIME = 0.3, 0.9  # 2 * area under the curve - 1, of a random split, and of one in time
ORDERED = 0.3  # of the variance
REPEATED, CONFLICTS, OPEN = 0.1, 0.01, 0.05  # shares of samples; of the variance
TIMES, MONOTONE = 5, 0.97  # as much is left open by others; rank correlation
SCALED = 1.5  # times as large a deviation, or half of it off: no augmentation changes inputs that much
NEW = 0.05  # of val's samples, of classes that train lacks
MOST_TOKENS = 1000  # of which pairs are counted
EXTREME = 30  # times the usual scale, where inputs are wrong whatever is learned from them
OFF = (None, False, "", "none")


class Data(NamedTuple):
    findings: list[Finding]
    unknown: list[Unknown]
    measured: dict[str, float]  # what one answer for all samples, and a simple model, score on val


def is_extreme(mean: float, std: float, columns: Sequence[float] | None = None) -> bool:
    """Whether inputs are far from the usual scale; `columns` are a low and a high standard deviation of them."""
    low, high = columns or (1.0, 1.0)
    scale = max(std, 1e-9)
    return max(mean / scale, std, 1 / scale / EXTREME, high / low / EXTREME if low > 0 else 0.0) > EXTREME


def examine(data: Any, budget_sec: float, loss: str = "") -> Data:
    """Ask a data module that was set up; in one thread, so that this may be a forked process. `loss` is the name of
    torch's function, where that is known."""
    out, until = Data([], [], {}), time.monotonic() + budget_sec
    with threadpool_limits(1), warnings.catch_warnings(action="ignore"):
        for check in DataChecks(data, budget_sec, out.measured, loss).checks():
            try:
                if time.monotonic() > until:
                    raise TimeoutError(f"no time was left of {budget_sec:g} s")
                out.findings.extend(check() or ())
            except Exception as e:  # anyone's code
                out.unknown.append((check.__name__, f"{type(e).__name__}: {e}"))
    return out


class DataChecks(LabelChecks):
    """x float32 [N, F], as a network gets it, y [N, ...], index [N]. `plain`: x is measured, y one number or label."""

    def __init__(self, data: Any, seconds: float, measured: dict[str, Any], loss: str = "") -> None:
        self.data, self.seconds, self.measured, self.loss, self.repeated = data, seconds, measured, loss, False

    def checks(self) -> Iterator[Any]:
        yield self.read
        if hasattr(self, "guesses"):
            yield from [self.val_in_train, self.copies] + [self.input_scale] * (not self.tokens)
            yield from [self.drift] * (not self.tokens and not self.repeated)  # copies are in all spans
            yield from [self.baselines, self.not_shuffled, self.independent, self.target_leak] * self.plain
            counted = self.tokens and self.y.shape == self.x.shape and self.y.dtype.kind in "iu"
            yield from [self.token_baselines] * (counted and not hasattr(self.data, "ordered"))  # modules shift them
            yield from [self.names_as_numbers] * (self.plain and not self.is_class)
            yield from [self.wrong_labels, self.imbalance] * self.is_class

    def batches(self, split: str, most: int, first: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """In random order, without what is left out of train, while there is time."""
        until, arrays = time.monotonic() + self.seconds / 8, self.data.splits[split]
        index = torch.randperm(len(arrays), generator=torch.Generator().manual_seed(0))
        index = index[~torch.isin(index, getattr(self.data, "left_out", index[:0]))] if split == "train" else index
        for start in range(first, min(most, len(index)), 500):
            yield arrays[index[start : start + 500]]
            if time.monotonic() > until:
                return

    def fetch(self, split: str, most: int = DRAWN, first: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        for raw in self.batches(split, most, first):
            x = self.data.on_after_batch_transfer(raw, 0)["x"]
            self.wide, self.tokens, x = x.ndim > 2, not x.is_floating_point(), x.flatten(1)
            self.step = 1 + x.shape[1] // FEATURES
            yield x[:, :: self.step].float().numpy(), flat(raw["targets"]), raw["index"].numpy()

    def read(self) -> Iterator[Finding]:
        train, val = ([np.concatenate(a) for a in zip(*self.fetch(s), strict=True)] for s in ("train", "val"))
        (self.x, self.y, self.index), (self.val_x, self.val_y, self.val_index) = train, val
        if bad := 1 - min(float(np.isfinite(a).mean()) for a in [self.x] + [self.y] * (self.y.ndim == 1)):
            text = f"{bad:.2%} of the numbers of train's inputs or targets are not finite"
            yield Finding("not_finite", BADLY, text, {"share": bad}, 1, 1, {}, "fill in", certain=True, source="UMLAUT")
            return
        self.plain = self.y.ndim == 1 and not self.tokens
        self.is_class = self.plain and self.of_classes(np.unique(self.y))
        self.classes = np.unique(self.y) if self.is_class else self.y[:0]
        if self.plain and (self.y == self.y[0]).all():
            raise ValueError(f"all {len(self.y)} samples read of train have one target: are they sorted by it?")
        self.labels = np.searchsorted(self.classes, self.y) if self.is_class else self.y
        self.target = lambda y: 1.0 * (y[:, None] == self.classes) if self.is_class else y[:, None]
        pca = decomposition.PCA(min(COMPONENTS, *self.x.shape), random_state=0)
        self.pipeline = StandardScaler(with_std=not self.wide), pca
        self.reduce = make_pipeline(*self.pipeline).fit(self.x).transform
        linear: Any = linear_model.LogisticRegression(C=50 / len(self.y)) if self.is_class else linear_model.Ridge(10.0)
        near = neighbors.KNeighborsClassifier(15) if self.is_class else neighbors.KNeighborsRegressor(15)
        self.z, self.models = self.reduce(self.x), [make_pipeline(StandardScaler(), linear), near]
        self.guesses = [self.guess(model) for model in self.models if self.plain]  # by models that err differently

    def of_classes(self, values: np.ndarray) -> bool:
        """By the loss, where that is known: ages are whole numbers, and the targets of a sigmoid are none."""
        is_whole = self.y.dtype.kind in "iu"
        if "entropy" in self.loss or self.loss == "nll_loss":
            return is_whole or bool(np.isin(values, (0, 1)).all())
        return is_whole and not self.loss

    def guess(self, model: Any, z: np.ndarray | None = None) -> np.ndarray:  # by a model that was fitted on others
        how, z = "predict_proba" if self.is_class else "predict", self.z if z is None else z
        return cross_val_predict(model, z, self.labels, cv=KFold(5, shuffle=True, random_state=0), method=how)

    def baselines(self) -> Iterator[Finding]:
        known = np.isin(self.val_y, self.classes) | (not self.is_class)
        if self.is_class and (share := float((~known).mean())) > NEW:
            text = f"{share:.0%} of val's samples are of classes that train has none of"
            todo = "split at random, each class by itself: was it cut from data that are sorted?"
            yield Finding("missing_classes", BADLY, text, {"share": share}, share, 0.95, {}, todo, source="deepchecks")
        if not known.any():
            return
        yield from self.named_otherwise(known) if self.is_class else ()
        z, y, simple = self.reduce(self.val_x[known]), self.val_y[known], (dummy.DummyRegressor, dummy.DummyClassifier)
        for name, model in (("trivial", simple[self.is_class]()), ("linear", self.models[0])):
            self.measured |= {"is_class": self.is_class, "num_classes": len(self.classes)}
            self.measured[f"{name}_score"] = float(model.fit(self.z, self.y).score(z, y))
            answers = model.predict_proba(z) if self.is_class else model.predict(z)
            how = metrics.log_loss if self.is_class else metrics.mean_squared_error
            self.measured[f"{name}_loss"] = float(how(y, answers, **{"labels": self.classes} if self.is_class else {}))

    def token_baselines(self) -> None:
        """Nats a target that train's frequencies leave, and a mean of those and what follows each token there."""
        known = [(x[y >= 0].astype(int), y[y >= 0]) for x, y in ((self.x, self.y), (self.val_x, self.val_y))]
        (x, y), (val_x, val_y) = known
        if min(len(y), len(val_y)) and (size := 1 + max(a.max() for a in (x, y, val_x, val_y))) <= MOST_TOKENS:
            once = (np.bincount(y, minlength=size) + 1) / (len(y) + size)
            pairs = np.bincount(size * x + y, minlength=size * size).reshape(size, size)
            after = (once + (pairs + once) / (pairs.sum(1, keepdims=True) + 1)) / 2
            self.measured["trivial_loss"] = float(-np.log(once[val_y]).mean())
            self.measured["linear_loss"] = float(-np.log(after[val_x, val_y]).mean())

    def input_scale(self) -> Iterator[Finding]:
        mean, std, off = abs(float(self.x.mean())), float(self.x.std()), dict[str, Any]()
        for name, option in (p for c in self.data.__class__.__mro__ for p in signature(c.__init__).parameters.items()):
            on = name.startswith(("normal", "standard", "scal")) and option.default not in (*OFF, option.empty)
            off |= {name: option.default} if on and getattr(self.data, name, True) in OFF else {}
        columns = self.x.std(0)[self.x.std(0) > 0] if not self.wide and std else np.ones(1)
        numbers: dict[str, Any] = {"mean": mean, "std": std, "columns": np.quantile(columns, (0.1, 0.9)).tolist()}
        if std and (off or mean > 5 * std or not 0.1 < std < 10 or is_extreme(**numbers)):
            text = f"inputs are not on the usual scale: mean {mean:.3g}, standard deviation {std:.3g}"
            how: Any = {"change": {"data": {"init_args": off}}} if off else {"todo": "standardize them, by train"}
            sure = is_extreme(**numbers)
            how |= {"gain": 0.5, "confidence": 0.9, "certain": True} if sure else {"gain": 0.3, "confidence": 0.6}
            yield Finding("input_scale", BADLY, text, numbers, source="LeCun, 1998", **how)
        rows = np.array([self.x.mean(1), self.x.std(1) - 1])
        if not self.wide and self.x.shape[1] > 3 and np.abs(rows).max() < 0.1 and (np.abs(self.x.mean(0)) > 1).any():
            text, todo = "each sample is standardized over its own columns", "take mean and deviation of each column"
            found = {"columns": np.abs(self.x.mean(0)).max().item()}
            yield Finding("normalized_rows", BADLY, text, found, 0.3, 0.7, {}, todo, source="LeCun, 1998")

    def hashed(self, split: str) -> np.ndarray:
        """[4, N]: the index of each sample, hashes of its x, of every other number of that, and of its targets."""
        rows: list[tuple[int, ...]] = []
        for batch in self.batches(split, HASHED):
            x, y = batch["x"].flatten(1).numpy(), batch["targets"].numpy()
            hashes = ([hash(one.tobytes()) for one in part] for part in (x, x[:, ::2], y))
            rows += zip(batch["index"].tolist(), *hashes, strict=True)
        return np.array(rows).T

    def val_in_train(self) -> Iterator[Finding]:
        """By exact equality; where train's own samples are equal nearly as often, it is chance."""
        self.train, val = self.hashed("train"), self.hashed("val")[1]
        index, train = self.train[:2]
        share = float(np.isin(val, train).mean())
        chance = 2 - 2 * len(np.unique(train)) / len(train)
        if share > max(IN_VAL, chance + 3 * np.sqrt(chance / len(val))):
            text, todo = f"{share:.1%} of val's samples are in train too", "split so that equal ones stay together"
            evidence = {"share": share, "indices": np.sort(index[np.isin(train, val)]).tolist()}
            yield Finding("val_in_train", BADLY, text, evidence, share, 0.95, {}, todo, source="deepchecks")

    def copies(self) -> Iterator[Finding]:
        """Where half of the numbers tell samples apart nearly as well as all do, equal ones are no chance."""
        index, x, half, y = self.train
        values, first = np.unique(x, return_index=True)
        if self.x.shape[1] < 2 or len(np.unique(half)) < 0.9 * len(values):
            return
        of_class = [x[y == one] for one in np.unique(y)] if self.is_class else [x]  # rare ones may be drawn more often
        if (share := min(1 - len(np.unique(part)) / len(part) for part in of_class)) > REPEATED:
            self.repeated, text = True, f"{share:.0%} of train are copies: the same few are seen again and again"
            found = {"share": share, "different": len(values), "indices": np.sort(np.delete(index, first)).tolist()}
            yield Finding("duplicates", BADLY, text, found, share / 2, 0.8, {}, "get others", source="cleanlab")
        several, count = np.unique(np.unique([x, y], axis=1)[0], return_counts=True)
        rows = np.isin(x, several[count > 1]) & self.is_class
        if (share := float(rows.mean())) > CONFLICTS:
            text, todo = f"{share:.1%} of train's samples have an equal one with another label", "correct them"
            found = {"share": share, "suspicious": np.sort(index[rows]).tolist()}
            yield Finding("conflicting_labels", BADLY, text, found, share, 1, {}, todo, certain=True, source="cleanlab")

    def drift(self) -> Iterator[Finding]:
        """Whether a forest tells train from val in spans that it has not seen; of loaders, one may augment, and not."""
        n, parts = min(len(self.x), len(self.val_x), 1000), []
        both = np.concatenate([self.x[:n], self.val_x[:n]])  # what is fitted on few of train alone tells them apart
        reduce = make_pipeline(*map(clone, self.pipeline)).fit(both).transform
        for x, index in ((self.x[:n], self.index), (self.val_x[:n], self.val_index)):
            parts.append(np.column_stack([reduce(x), x.mean(1), x.std(1)])[index[:n].argsort()])
        of, spans = np.repeat([0, 1], n), np.tile(np.arange(n) * 5 // n, 2)
        forest, how = ensemble.ExtraTreesClassifier(min_samples_leaf=5, random_state=0), {"method": "predict_proba"}
        guess = cross_val_predict(forest, np.concatenate(parts), of, groups=spans, cv=GroupKFold(5), **how)
        auc, error = metrics.roc_auc_score(of, guess[:, 1]), np.sqrt((2 * n + 1) / (12 * n * n))
        one, other = float(self.x.std()), float(self.val_x.std())
        apart = max(one / max(other, 1e-9), other / max(one, 1e-9), 2 * abs(self.x.mean() - self.val_x.mean()) / one)
        least = DRIFT if self.plain and (self.data.epoch_order or apart > SCALED) else DRIFT_IN_TIME
        if (drift := 2 * (auc - 3 * error) - 1) > least and (self.data.epoch_order or apart > SCALED):
            text = f"val's inputs are unlike train's: a classifier tells them apart, area under the curve {auc:.2f}"
            evidence, todo = {"auc": auc, "drift": drift}, "prepare them alike, and split at random or by groups"
            yield Finding("drift", BADLY, text, evidence, drift / 2, 0.7, {}, todo, source="deepchecks")

    def not_shuffled(self) -> Iterator[Finding]:
        arrays, order = self.data.splits["train"], self.data.epoch_order or (lambda *_: torch.arange)
        ordered = getattr(self.data, "ordered", None)  # of loaders
        y = arrays[order(len(arrays), 0, 0)(0, min(len(arrays), 2000))]["targets"] if ordered is None else ordered
        y = flat(y)
        lag = max(min(32, len(y) // 16), 1)  # some draw a few of each class in a row
        apart = ((self.target(y[lag:]) - self.target(y[:-lag])) ** 2).mean(0).sum() / 2
        alike = float(1 - apart / self.target(self.y).var(0).sum())
        if alike > max(ORDERED, 5 / np.sqrt(len(y))):
            text = "training gets samples in the order of their targets"
            yield Finding("not_shuffled", BADLY, text, {"alike": alike}, 0.7, 0.9, {}, "shuffle", source="Bengio, 2012")

    def independent(self) -> Iterator[Finding]:
        """No model's answers go with the targets more than with permuted ones."""
        target, rng, best = self.target(self.y), np.random.default_rng(0), 0.0
        for answers in (guess.reshape(target.shape) for guess in self.guesses):
            chance = [(rng.permutation(target) * answers).sum() for _ in range(50)]
            best = max(best, float(((target * answers).sum() - np.mean(chance)) / max(np.std(chance), 1e-12)))
        text, todo = "the targets do not depend on the inputs", "see how they come together: is one shuffled alone?"
        if self.is_class and "linear_score" in self.measured and not self.traded:
            right, there = self.right(), self.measured["linear_score"]
            error = np.sqrt(right * (1 - right) * (1 / len(self.y) + 1 / len(self.val_y)))
            if right - there > 3 * error and there <= self.measured["trivial_score"]:
                text = f"what tells {right:.0%} of train's targets tells {there:.0%} of val's, as one answer would"
                best = 0.0
        if best < ABOVE_CHANCE and len(self.y) >= POWER:
            yield Finding("labels_independent", BADLY, text, {"best": best}, 1.0, 0.7, {}, todo, source="Ojala, 2010")

    def target_leak(self) -> Iterator[Finding]:
        """One number of x tells the target nearly alone, and models of all others leave several times as much open."""
        test = feature_selection.f_classif if self.is_class else feature_selection.f_regression
        best, x, target = int(np.nan_to_num(test(self.x, self.y)[0]).argmax()), self.x.copy(), self.target(self.y)
        left = lambda *of: float(((target - self.guess(*of).reshape(target.shape)) ** 2).mean() / target.var(0).mean())  # noqa: E731
        alone = left(self.models[1], x[:, [best]])
        x[:, best] = x[:, best].mean()
        rest = min(left(m, self.reduce(x)) for m in self.models) if alone < OPEN and len(x) > x.shape[1] > 1 else 0
        rises = self.is_class or abs(stats.spearmanr(self.x[:, best], self.y).statistic) > MONOTONE
        if rest > TIMES * alone and rises:
            name, options = getattr(self.data, "without_number", lambda n: (f"number {n}", {}))(best * self.step)
            text = f"{name} of x all but tells the target, all else does not: is it known when a prediction is made?"
            found = {"column": best * self.step, "name": name, "alone": 1 - alone, "others": 1 - rest}
            how: Any = {"change": {"data": {"init_args": options}}} if options else {"todo": "if not, leave it out"}
            yield Finding("target_leak", BADLY, text, found, 0.6, 0.8, source="Kaufman, 2012", **how)
