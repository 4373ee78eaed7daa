"""PyTorch modules to Relax: torch's numbers, the modules' names, and the same as through their ONNX export."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
from reference import run_graph

from hwq.compiler import build, plan
from hwq.errors import HwqError
from hwq.model import Model, load
from hwq.padding import find_padding
from hwq.scores import FAR
from hwq.target import Target

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hwq[torch]'")
torch_nets = pytest.importorskip("torch_nets")
F = torch.nn.functional

Array = np.ndarray[Any, Any]
SCHEMES = ("f32", "w8a8")
NETS = ("residual", "encoder", "transformer", "decoder", "paired", "perceptron")


@functools.cache
def loaded(name: str) -> Model:
    net, inputs = torch_nets.module(name)
    return load(net, inputs)


@functools.cache
def loaded_from_onnx(name: str) -> Model:
    pytest.importorskip("onnxscript", reason="torch.onnx's exporter needs onnxscript")
    net, inputs = torch_nets.module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, (), kwargs=inputs, dynamo=True, verbose=False)
    return load(program.model_proto)


def run(model: Model, inputs: dict[str, Any]) -> list[Array]:
    feeds = {
        name: np.asarray(inputs[spec.name], spec.dtype)
        for name, spec in zip(model.graph.inputs, model.inputs, strict=True)
    }
    found = run_graph(model.graph, feeds)
    return [found[name] for name in model.graph.outputs]


def expected(net: Any, inputs: dict[str, Any]) -> list[Array]:
    with torch.no_grad():
        out = net(**inputs)
    out = list(out.values()) if isinstance(out, dict) else out if isinstance(out, tuple | list) else [out]
    return [item.float().numpy() if item.is_floating_point() else item.numpy() for item in out]


def same_as_torch(net: Any, inputs: dict[str, Any], model: Model | None = None, tolerance: float = 2e-5) -> Model:
    """tolerance is relative to the largest output: sums of up to some hundred float32 products in another order."""
    model = load(net, inputs) if model is None else model
    for got, want, spec in zip(run(model, inputs), expected(net, inputs), model.outputs, strict=True):
        assert (got.shape, str(got.dtype)) == (want.shape, str(want.dtype)) == (spec.shape, spec.dtype)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(float(np.abs(want).max(initial=0)), 1e-3))
    return model


@pytest.mark.parametrize("name", NETS)
def test_the_float_program_computes_what_torch_computes(name: str) -> None:
    net, inputs = torch_nets.module(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    model = same_as_torch(net, inputs, loaded(name))
    assert [spec.name for spec in model.inputs] == list(inputs)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not net.training


def test_layers_bear_their_modules_names() -> None:
    names = {layer.name for layer in loaded("residual").graph.layers}
    assert names >= {"stem", "pool", "layer1.0.conv1", "layer1.0.down.0", "layer1.0.conv2", "avg", "fc"}
    names = {layer.name for layer in loaded("decoder").graph.layers if layer.op in ("dense", "gather")}
    assert names == {"embed", "gate", "up", "down", "head", *(f"attn.{key}_proj" for key in "qkvo")}


def test_attention_and_positions_are_one_layer_each() -> None:
    kinds = [layer.op for layer in loaded("paired").graph.layers if layer.op != "reshape"]
    assert sorted(kinds) == ["attention", *["dense"] * 4, "rms_norm", "rope", "rope"]


@pytest.mark.parametrize("name", NETS)
def test_an_onnx_export_has_the_same_layers_and_numbers(name: str) -> None:
    here, there = loaded(name), loaded_from_onnx(name)
    ours, theirs = ([(layer.name, layer.op) for layer in model.graph.layers] for model in (here, there))
    assert ours == theirs
    _, inputs = torch_nets.module(name)
    for got, want in zip(run(here, inputs), run(there, inputs), strict=True):
        # The exporter folds batch norms in float32, hwq in float64: some float32 roundings a layer.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * float(np.abs(want).max()))


@pytest.mark.parametrize("name", ["residual", "decoder", pytest.param("encoder", marks=pytest.mark.slow)])
def test_an_onnx_export_gets_the_same_plan_and_the_same_artifact(name: str) -> None:
    here, there = loaded(name), loaded_from_onnx(name)
    rng = np.random.default_rng(0)
    samples = [{spec.name: sample(rng, spec) for spec in here.inputs} for _ in range(4)]
    target = Target.load("x86-avx2")
    ours, theirs = (
        plan(model, target, calibration=samples, schemes=SCHEMES, measure=False, threads=1) for model in (here, there)
    )
    assert dict(ours.schemes) == dict(theirs.schemes)
    assert len(set(ours.schemes.values())) > 1
    if target.missing_flags():
        pytest.skip(f"this CPU cannot run the artifact: it lacks {', '.join(target.missing_flags())}")
    outputs = [build(model, one)(samples[0]) for model, one in ((here, ours), (there, theirs))]
    if name == "residual":  # batch norms, see above
        np.testing.assert_allclose(*outputs, rtol=0, atol=1e-6 * float(np.abs(outputs[1]).max()))
    else:
        np.testing.assert_array_equal(*outputs)


def sample(rng: np.random.Generator, spec: Any) -> Array:
    if spec.name == "attention_mask":
        return (np.arange(spec.shape[-1]) < rng.integers(4, spec.shape[-1])).astype(spec.dtype)[None]
    if spec.dtype == "int64":
        return rng.integers(0, 50, spec.shape)
    return rng.standard_normal(spec.shape).astype(spec.dtype)


def test_names_of_outputs() -> None:
    assert [spec.name for spec in loaded("decoder").outputs] == ["logits"]
    assert [spec.name for spec in loaded("perceptron").outputs] == ["output_0", "output_1"]
    assert [spec.name for spec in loaded("residual").outputs] == ["output"]


def both_ways(net: Any, inputs: tuple[Any, ...]) -> list[Model]:
    """A module, and its ONNX export; their layers have the same names."""
    pytest.importorskip("onnxscript", reason="torch.onnx's exporter needs onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net.eval(), inputs, dynamo=True, verbose=False)
    return [load(net, inputs), load(program.model_proto)]


class Padded(torch.nn.Module):
    """torch's own encoder: True hides a key."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, ids: Any, mask: Any) -> Any:
        return self.layer(self.words(ids), src_key_padding_mask=mask == 0)


class LeftPadded(torch.nn.Module):
    """Two layers of causal attention with a bool mask, whose queries of padding at the start see no key at all."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 16)
        self.into = torch.nn.ModuleList(torch.nn.Linear(16, 48) for _ in range(2))

    def forward(self, ids: Any, mask: Any) -> Any:
        x, size = self.words(ids), ids.shape[1]
        seen = torch.ones(size, size, dtype=torch.bool).tril() & mask[:, None, None, :].bool()
        for linear in self.into:
            q, k, v = linear(x).view(1, size, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            x = x + y.transpose(1, 2).reshape(1, size, 16)
        return x


@pytest.mark.parametrize(("kind", "shown"), [(Padded, slice(0, 5)), (LeftPadded, slice(3, 8))])
def test_bool_masks_that_hide_tokens_are_finite_and_found_as_padding(kind: Any, shown: slice) -> None:
    torch.manual_seed(0)
    net, ids, mask = kind(), torch.randint(0, 50, (1, 8)), torch.zeros(1, 8, dtype=torch.int64)
    mask[:, shown] = 1
    models, feeds = both_ways(net, (ids, mask)), {"ids": ids.numpy(), "mask": mask.numpy()}
    for model in models:
        tensor = next(layer.inputs[0] for layer in model.graph.layers if layer.op == "dense")
        (hider,) = find_padding(model.graph).masks[tensor]
        found = run_graph(model.graph, dict(zip(model.graph.inputs, feeds.values(), strict=True)))
        hidden = (found[hider].max(axis=(1, 2)) <= FAR).reshape(-1)
        np.testing.assert_array_equal(hidden, mask.numpy().reshape(-1) == 0)
        assert all(np.isfinite(value).all() for value in found.values() if value.dtype == np.float32)
    model = models[0]
    artifact = build(model, plan(model, "host", calibration=[feeds] * 2, schemes=["w8a8"], measure=False, threads=1))
    wanted = expected(net, {"ids": ids, "mask": mask})[0]
    np.testing.assert_allclose(artifact(feeds)[:, shown], wanted[:, shown], atol=0.1 * np.abs(wanted).max())


class Typed(torch.nn.Module):
    """Of two tables, the second read at the same row for every token, as BERT's types are by default."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = torch.nn.Embedding(50, 16), torch.nn.Embedding(2, 16)
        self.out = torch.nn.Linear(16, 8)

    def forward(self, ids: Any) -> Any:
        return self.out(self.words(ids) + self.types(torch.zeros_like(ids)))


def test_what_has_only_the_shape_of_an_input_is_constant() -> None:
    torch.manual_seed(0)
    net, ids = Typed().eval(), torch.randint(0, 50, (1, 8))
    here, there = both_ways(net, (ids,))
    same_as_torch(net, {"ids": ids}, here)
    assert [(layer.name, layer.op) for layer in here.graph.layers] == [(one.name, one.op) for one in there.graph.layers]
    assert [layer.op for layer in here.graph.layers].count("gather") == 1
    np.testing.assert_array_equal(*(run(model, {"ids": ids.numpy()})[0] for model in (here, there)))
    free = load(net, (ids,), dynamic={"ids": {1: (1, 8)}})
    fixed = load(net, (ids[:, :5],))
    outputs = [
        build(model, plan(model, "host", schemes=["w8a8_dyn"], measure=False, threads=1))(ids[:, :5].numpy())
        for model in (free, fixed)
    ]
    np.testing.assert_array_equal(*outputs)


class Odd(torch.nn.Module):
    """Operators that neither hwq nor TVM imports."""

    def forward(self, x: Any) -> Any:
        y = torch.special.i0(x) + torch.special.i0(x + 1)
        return torch.linalg.matrix_exp(y[:, :3]) + x[:, :3]


def test_operators_that_cannot_be_imported_are_listed_with_counts() -> None:
    with pytest.raises(HwqError, match=r"i0.*\(2, first") as caught:
        load(Odd().eval(), (torch.rand(3, 3),))
    assert caught.value.code == "model-unsupported"
    assert "matrix_exp" in str(caught.value)


class Turned(torch.nn.Module):
    """Positions as complex numbers, which TVM has none of."""

    def forward(self, x: Any) -> Any:
        return torch.view_as_real(torch.view_as_complex(x) * torch.polar(torch.ones(4), torch.ones(4)))


class Spectrum(torch.nn.Module):
    """A Fourier transform."""

    def forward(self, x: Any) -> Any:
        return torch.fft.rfft(x).abs()


@pytest.mark.parametrize(
    ("net", "shape", "name"), [(Turned(), (1, 4, 2), "view_as_complex"), (Spectrum(), (8,), "fft")]
)
def test_operators_of_complex_numbers_are_named(net: Any, shape: tuple[int, ...], name: str) -> None:
    with pytest.raises(HwqError, match=f"{name}.*accepted: those of TVM's importer") as caught:
        load(net.eval(), (torch.ones(shape),))
    assert caught.value.code == "model-unsupported"


class Applied(torch.nn.Module):
    """A function as a module in the network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: x + torch.randn_like(x), "randn_like"),
        (lambda x: x + torch.rand(4), "rand"),
        (lambda x: F.dropout2d(x, training=True), "bernoulli"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "scaled_dot_product_attention"),
    ],
)
def test_random_numbers_are_refused(function: Any, operator: str) -> None:
    """Frozen in the artifact, they would be the same numbers at each call."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), Applied(function)).eval()
    with pytest.raises(HwqError, match=rf"{operator}\S* at '1' draws random numbers.*accepted") as caught:
        load(net, (torch.ones(1, 2, 3, 4),))
    assert caught.value.code == "model-kind"


def test_what_nothing_reads_is_passed_over() -> None:
    """Random numbers, and operators that cannot be imported."""
    net = Applied(lambda x: (x + 1, torch.rand(4), torch.matrix_exp(x), torch.fft.rfft(x).abs())[0]).eval()
    same_as_torch(net, {"x": torch.linspace(-1, 1, 9).reshape(3, 3)})


def test_dropout_that_is_off_draws_nothing() -> None:
    parts = (
        torch.nn.Dropout(),
        torch.nn.Dropout1d(),
        torch.nn.AlphaDropout(),
        torch.nn.TransformerEncoderLayer(8, 2, 8),
    )
    whole = torch.nn.Sequential(*parts, Applied(lambda x: F.scaled_dot_product_attention(x, x, x))).eval()
    same_as_torch(whole, {"input": torch.linspace(-1, 1, 32).reshape(1, 4, 8)})


def test_many_headed_attention_draws_nothing() -> None:
    net = torch.nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True).eval()
    x = torch.linspace(-1, 1, 32).reshape(1, 4, 8)
    assert [spec.name for spec in load(net, (x, x, x)).inputs] == ["query", "key", "value"]


@pytest.mark.parametrize("mask", [torch.bool, torch.float32])
def test_many_headed_attention_whose_weights_are_wanted(mask: Any) -> None:
    """Its padding is hidden by -infinity, by itself where the mask is of truths."""

    class Net(torch.nn.MultiheadAttention):
        def forward(self, x: Any, hidden: Any) -> Any:
            return super().forward(x, x, x, key_padding_mask=hidden, average_attn_weights=mask.is_floating_point)

    hidden = torch.arange(6) >= torch.tensor([[4], [2]])
    hidden = torch.zeros(2, 6).masked_fill(hidden, -torch.inf) if mask.is_floating_point else hidden
    net = Net(8, 2, batch_first=True).eval()
    inputs = {"x": torch.linspace(-1, 1, 96).reshape(2, 6, 8), "hidden": hidden}
    model = same_as_torch(net, inputs)
    samples = {name: value.numpy() for name, value in inputs.items()}
    made = plan(model, Target.load("host"), calibration=samples, schemes=["w8a8"], measure=False, threads=1)
    for got, want in zip(build(model, made)(samples), expected(net, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=0.02)


class Summed(torch.nn.Module):
    """Products in Einstein's notation: a dense layer, heads, and a matrix on the left."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"dense": (6, 8), "heads": (6, 2, 3), "tokens": (5, 4)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(shape, generator=generator))

    def forward(self, x: Any) -> Any:
        wide = torch.einsum("bsd,od->bso", x, self.dense.T)
        return wide + 1, torch.einsum("bsd,dhe->bhse", x, self.heads), torch.einsum("ts,bsd->btd", self.tokens, x)


def test_constants_in_sums_of_products_are_weights_of_dense_layers() -> None:
    model = same_as_torch(Summed().eval(), {"x": torch.linspace(-1, 1, 48).reshape(2, 4, 6)})
    kinds = [layer.op for layer in model.graph.layers]
    assert kinds.count("dense") == 3
    assert set(kinds) == {"dense", "reshape", "transpose"}
