"""Tables of rows (gather) through the stages: which widths they may have, what they weigh, what their kernels read."""

from __future__ import annotations

import numpy as np
import pytest

from hwq import cost
from hwq.cache import default_cache_dir
from hwq.correct import correct
from hwq.execute import bind, compile_kernels, packed_constants, run, to_device
from hwq.graph import Graph, Layer
from hwq.group_scales import dequantize_weight
from hwq.lower import layer_workload, legal_schemes, lower
from hwq.measure import home_of_weights
from hwq.pricing import constant_bytes, footprints_of
from hwq.quantize import quantize_weights
from hwq.scheme import SCHEMES
from hwq.target import HOST_TIERS, Target
from hwq.workload import Workload

ROWS, COLUMNS = 90, 321
WIDTHS = ("f32", "w8a8_dyn", "w4a16_g128")


def table_layer(rng: np.random.Generator, rows: int = ROWS) -> Layer:
    return Layer(
        name="words",
        op="gather",
        inputs=("ids",),
        output="words",
        input_shapes=((2, 5),),
        output_shape=(2, 5, COLUMNS),
        attrs={"ids": "int64", "rows": rows},
        weight=rng.standard_normal((rows, COLUMNS)).astype(np.float32),
    )


def graph_of(layer: Layer) -> Graph:
    return Graph(
        inputs=("ids",),
        outputs=("words",),
        shapes={"ids": layer.input_shapes[0], "words": layer.output_shape},
        dtypes={"ids": "int64", "words": "float32"},
        layers=(layer,),
    )


def _workload(layer: Layer, scheme: str) -> Workload:
    found = layer_workload(layer, scheme, "float32", 1)
    assert found is not None
    return found


@pytest.mark.parametrize("name", [*HOST_TIERS, "arm-cortex-a72", "arm-cortex-a76", "arm-neoverse-n2", "arm-apple-m2"])
@pytest.mark.parametrize(
    ("allowed", "legal"),
    [
        (tuple(SCHEMES), WIDTHS),
        (("f32",), ("f32",)),
        (("bf16",), ("f32",)),
        (("w8a8",), ("w8a8_dyn",)),
        (("w8a8_dyn",), ("w8a8_dyn",)),
        (("w4a8_g64",), ("w4a16_g128",)),
        (("f32", "w4a8"), ("f32", "w4a16_g128")),
        (("w8a8", "w4a16_g128"), ("w8a8_dyn", "w4a16_g128")),
    ],
)
def test_a_table_is_as_wide_as_other_weights_may_be(
    name: str, allowed: tuple[str, ...], legal: tuple[str, ...], rng: np.random.Generator
) -> None:
    layer = table_layer(rng)
    found = legal_schemes(graph_of(layer), layer, Target.load(name), [SCHEMES[one] for one in allowed])
    assert found == legal


@pytest.mark.parametrize(("scheme", "row"), [("f32", 4 * 321), ("w8a8_dyn", 321 + 4), ("w4a16_g128", 161 + 3 * 4)])
def test_the_artifact_holds_the_packed_table_alone(scheme: str, row: int, rng: np.random.Generator) -> None:
    """And the kernel gives the rows that the integers stand for, bit for bit; a row of 321 has three groups."""
    layer = table_layer(rng)
    graph = graph_of(layer)
    weights = quantize_weights(graph, {"words": WIDTHS}, {}, {})
    target = Target.load("host")
    program = lower(graph, {"words": scheme}, {}, weights, target, 1)
    kernels = compile_kernels([program], target, default_cache_dir())
    ids = rng.integers(-ROWS, ROWS, (2, 5))
    result = run(bind(program, kernels), to_device({"ids": ids}))["words"].numpy()
    table = layer.weight if scheme == "f32" else weights["words", scheme].real()
    assert table is not None
    np.testing.assert_array_equal(result, table[ids])
    packed = packed_constants(program.steps[0], kernels)
    assert sum(array.nbytes for array in packed) == ROWS * row
    assert cost.weight_bytes(_workload(layer, scheme)) == ROWS * row
    assert cost.moved_bytes(_workload(layer, scheme)) == 10 * (8 + row + 4 * 321)


def test_narrower_tables_are_nearer(rng: np.random.Generator) -> None:
    """Half a step at most in int8; in int4 the search is no worse than the plain scale of each group."""
    layer = table_layer(rng)
    assert layer.weight is not None
    weights = quantize_weights(graph_of(layer), {"words": WIDTHS}, {}, {})
    eight, four = (weights["words", scheme] for scheme in WIDTHS[1:])
    steps = np.abs(layer.weight).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(eight.real() - layer.weight) <= 0.5001 * steps)
    groups = [layer.weight[:, at : at + 128] for at in range(0, COLUMNS, 128)]
    plain = np.stack([np.abs(group).max(axis=1) / 7 for group in groups], axis=1).astype(np.float32)
    wide = np.repeat(plain, 128, axis=1)[:, :COLUMNS]
    nearest = dequantize_weight(np.clip(np.rint(layer.weight / wide), -8, 7).astype(np.int8), plain, 128)
    assert np.square(four.real() - layer.weight).sum() <= np.square(nearest - layer.weight).sum()


def test_roundings_are_for_products_only(rng: np.random.Generator) -> None:
    """A table sums nothing, so there is no output error to correct; its own nearest integers are best."""

    def never(*_: object) -> None:
        raise AssertionError("nothing is to be gathered for")

    graph = graph_of(table_layer(rng))
    assert correct(graph, {"words": WIDTHS}, {}, never, never) == {}  # type: ignore[arg-type]


def test_rows_that_are_read_count_for_where_weights_are(rng: np.random.Generator) -> None:
    """A large table, of which ten rows are read, does not drive other weights out of a cache."""
    layer = table_layer(rng, rows=20_000)
    target = Target.load("host")
    program = lower(graph_of(layer), {}, {}, {}, target, 1)
    kernels = compile_kernels([program], target, default_cache_dir())
    stored, resident = constant_bytes([program], kernels)
    assert stored[_workload(layer, "f32")] == 4 * 20_000 * COLUMNS
    footprint = footprints_of([program], resident)["f32"]
    assert footprint == cost.moved_bytes(_workload(layer, "f32"))
    assert home_of_weights(footprint, target) == "l2"
