"""Loss: how far a quantized network's outputs are from float's on the same samples. It needs no labels.

A classifier, whose first output is (N, classes), loses the Kullback-Leibler divergence of its classes: the mean over
samples of sum p (log p - log q), where p is float's distribution and q the quantized one, in nats. Outputs that are
distributions already (rows of no negative number that sum to 1) are taken as they are, others are logits. A language
model, whose first output is (..., words) for its words (``hwq.graph.words_of``), is a classifier of each token: what
its logits of unlikely words are off by is no loss. Whatever else is put out loses its noise-to-signal ratio, sum |y -
y0|^2 / sum |y0|^2, which -10 log10 turns into the SQNR in dB.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
KINDS = ("logits", "probabilities", "values")

# float32 softmax: what rows of so many classes may miss 1 by, and the least probability that is not rounding.
_WHOLE = 1e-3
_LEAST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What is summed over samples: divergence of ``rows`` classifications, noise and signal of the other outputs.

    class_noise and class_signal are those of the classes' output, which are no part of the loss.
    """

    divergence: float = 0.0
    rows: int = 0
    noise: float = 0.0
    signal: float = 0.0
    class_noise: float = 0.0
    class_signal: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            divergence=self.divergence + other.divergence,
            rows=self.rows + other.rows,
            noise=self.noise + other.noise,
            signal=self.signal + other.signal,
            class_noise=self.class_noise + other.class_noise,
            class_signal=self.class_signal + other.class_signal,
        )

    @property
    def loss(self) -> float:
        """The mean divergence and the noise-to-signal ratio, of which a network as a rule has only one."""
        return self.divergence / max(self.rows, 1) + _ratio(self.noise, self.signal)

    @property
    def noise_ratio(self) -> float:
        """The noise-to-signal ratio of all outputs."""
        return _ratio(self.noise + self.class_noise, self.signal + self.class_signal)


def _ratio(noise: float, signal: float) -> float:
    return noise / max(signal, float(np.finfo(np.float64).tiny))


def noise_per_loss(found: Iterable[Sums]) -> float:
    """What to multiply a loss with for the noise-to-signal ratio that goes with it: the median of what it was; 1 where
    nothing was lost."""
    parts = [one.noise_ratio / one.loss for one in found if one.loss > 0]
    return statistics.median(parts) if parts else 1.0


def kind_of(outputs: Sequence[Array], samples: int, words: int = 0) -> str:
    """What the network's first output is, by what float gives on a batch of ``samples``: one of KINDS. words: those
    of a language model (``hwq.graph.words_of``), else 0.
    """
    first = outputs[0]
    if first.dtype.kind != "f" or first.ndim < 2 or first.shape[-1] < 2:
        return "values"
    if first.shape[-1] != words and first.shape[:-1] != (samples,):
        return "values"
    whole = first.min() >= 0.0 and bool(np.all(np.abs(first.sum(axis=-1, dtype=np.float64) - 1.0) <= _WHOLE))
    return "probabilities" if whole else "logits"


def compare(outputs: Sequence[Array], clean: Sequence[Array], kind: str) -> Sums:
    """The sums of one batch; ``clean`` are float's outputs."""
    classes = 0 if kind == "values" else 1
    divergence, rows = 0.0, 0
    if classes:
        log_p, log_q = _log_probabilities(clean[0], kind), _log_probabilities(outputs[0], kind)
        divergence, rows = float((np.exp(log_p) * (log_p - log_q)).sum()), len(log_p)
    noises, signals = [], []
    for mine, good in zip(outputs, clean, strict=True):
        exact = good.astype(np.float64)
        noises.append(float(np.square(mine - exact).sum()))
        signals.append(float(np.square(exact).sum()))
    return Sums(
        divergence=max(divergence, 0.0),  # of equals rounding may leave less than nothing
        rows=rows,
        noise=sum(noises[classes:]),
        signal=sum(signals[classes:]),
        class_noise=sum(noises[:classes]),
        class_signal=sum(signals[:classes]),
    )


def _log_probabilities(values: Array, kind: str) -> Array:
    """The logarithms of (..., classes) distributions as (N, classes), float64."""
    exact = values.reshape(-1, values.shape[-1]).astype(np.float64)
    if kind == "probabilities":
        exact = np.maximum(exact, _LEAST)
        return np.asarray(np.log(exact / exact.sum(axis=1, keepdims=True)))
    exact = exact - exact.max(axis=1, keepdims=True)
    return np.asarray(exact - np.log(np.exp(exact).sum(axis=1, keepdims=True)))
