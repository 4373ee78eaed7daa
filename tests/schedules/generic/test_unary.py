"""Tables are looked up exactly; every activation of floats is as good as float32 allows."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runs import CHANNELS, STORAGES, assert_vectorized, check, machine, make, numbers, run

from hwq.graph import Activation
from hwq.schedules.generic import unary
from hwq.target import Target

ACTIVATIONS = (
    Activation(),
    Activation(kind="relu"),
    Activation(kind="clip", lo=0.0, hi=6.0),
    Activation(kind="leaky_relu", alpha=0.1),
    Activation(kind="hard_swish"),
    Activation(kind="hard_sigmoid", alpha=0.2, beta=0.5),
    Activation(kind="sigmoid"),
    Activation(kind="silu"),
    Activation(kind="tanh"),
    Activation(kind="gelu"),
    Activation(kind="gelu_tanh"),
)


@pytest.mark.parametrize("storage", STORAGES)
def test_table(storage: str, rng: np.random.Generator) -> None:
    table = rng.permutation(256).astype(np.uint8)
    for shape in [(3, 5, 3, channels) for channels in CHANNELS] + [(4, 64)]:
        check(make("unary", "w8a8", [shape], shape), machine(storage), [numbers(rng, shape, storage), table])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: str(activation.kind))
def test_activation(activation: Activation, rng: np.random.Generator) -> None:
    """From -100 to 100 and densely around 0, against float64. The bound is that of ``float_math``: 3e-7 absolute in
    erf and 5e-7 relative elsewhere, and two roundings (2 * 6e-8) behind it; gelu and silu multiply by x up to 100."""
    x = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-1, 1, 2002), rng.standard_normal(96) * 8])
    x = x.astype(np.float32).reshape(1, -1)
    scale = 100 if activation.kind == "gelu" else 1
    workload = make("unary", "f32", [x.shape], x.shape, activation=activation)
    check(workload, machine(), [x], tolerance=1e-6 * scale if activation.kind != "gelu" else 5e-6)


def test_gelu_far_from_zero_is_zero_or_its_argument() -> None:
    x = np.array([[-1e6, -100.0, -8.0, 8.0, 100.0, 1e6]], np.float32)
    for name in ("x86-avx2", "x86-generic"):
        workload = make("unary", "f32", [x.shape], x.shape, activation=Activation(kind="gelu"))
        kernel = unary.apply(workload, Target.load(name))
        assert kernel is not None
        found = run(kernel, Target.load(name), [x], x.shape, "float32")
        np.testing.assert_array_equal(found, np.where(x > 0, x, 0))


def test_large_tensors_are_split_over_threads(rng: np.random.Generator) -> None:
    shape = (1, 64, 64, 64)
    workload = make("unary", "w8a8", [shape], shape, parallel=2)
    kernel = unary.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, machine(), [numbers(rng, shape, "uint8"), rng.permutation(256).astype(np.uint8)], kernel=kernel)


def test_float_activations_are_vectorized() -> None:
    shape = (1, 14, 14, 64)
    for activation in ACTIVATIONS[1:]:
        assert_vectorized(make("unary", "f32", [shape], shape, activation=activation), "v(mul|max|sub)ps")
