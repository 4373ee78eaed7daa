"""ATen operators one by one: as torch computes them, and written in the plain form where hwq does so itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_torch_import import same_as_torch

from hwq.torch_call import Call
from hwq.torch_convert import CONVERTERS
from hwq.torch_export import KEPT
from hwq.torch_views import VIEWS

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hwq[torch]'")
nn, functional = torch.nn, torch.nn.functional


class Calls(nn.Module):
    """Some functions of one input, as the outputs of one network."""

    def __init__(self, calls: dict[str, Callable[[Any], Any]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Any) -> Any:
        return {name.replace(" ", "_"): call(x) for name, call in self.calls.items()}


def attention(x: Any, **options: Any) -> Any:
    heads = x.reshape(2, 6, 4, 5)
    return functional.scaled_dot_product_attention(heads, heads[:, : options.pop("groups", 6)] * 2, heads, **options)


PICTURES: dict[str, Callable[[Any], Any]] = {
    "max_pool ceil": lambda x: functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max_pool dilated": lambda x: functional.max_pool2d(x, 2, 1, dilation=2),
    "avg_pool counting": lambda x: functional.avg_pool2d(x, 3, 2, 1),
    "avg_pool": lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, (2, 5)),
    "nearest": lambda x: functional.interpolate(x, scale_factor=2),
    "nearest size": lambda x: functional.interpolate(x, size=(7, 9)),
    "bilinear": lambda x: functional.interpolate(x, size=(8, 10), mode="bilinear"),
    "bilinear corners": lambda x: functional.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True),
    "pad": lambda x: functional.pad(x, (1, 2, 0, 3), value=0.5),
    "reflect": lambda x: functional.pad(x, (1, 2, 1, 1), mode="reflect"),
    "group_norm": lambda x: functional.group_norm(x, 3),
    "instance_norm": lambda x: functional.instance_norm(x),
    "transposed": lambda x: functional.conv_transpose2d(x, torch.ones(6, 2, 2, 2) / 7, stride=2),
    "shuffle": lambda x: functional.pixel_shuffle(x[:, :4], 2),
    "flip": lambda x: torch.flip(x, [2]),
}
ARITHMETIC: dict[str, Callable[[Any], Any]] = {
    "alpha": lambda x: torch.add(x, x.abs(), alpha=2) - torch.sub(x, x * x, alpha=0.5),
    "scalars": lambda x: (2 - x) / 3 + 1 / (x * x + 1),
    "integers": lambda x: (x * 10).int() // 3 + (x * 10).int() % 3,
    "true division": lambda x: (x * 10).int() / 3,
    "mixed types": lambda x: (x * 10).long() * x + (x > 0),
    "comparisons": lambda x: (x > 0.5) & ~(x <= 0.7) | (x == 0),
    "where": lambda x: torch.where(x > 0, x, x.exp()).masked_fill(x < -1, 3.0),
    "clamp": lambda x: x.clamp(-0.5, 0.25) + x.clamp(min=0.1) + functional.hardtanh(x, -0.2, 0.3),
    "powers": lambda x: x.pow(2) + x.abs().pow(0.5) + torch.rsqrt(x * x + 1) + torch.reciprocal(x * x + 2),
    "activations": lambda x: functional.silu(x) + functional.hardswish(x) + functional.hardsigmoid(x) + x.relu(),
    "more activations": lambda x: functional.leaky_relu(x, 0.2) + functional.elu(x) + functional.softplus(x),
    "gelus": lambda x: functional.gelu(x) + functional.gelu(x, approximate="tanh") + functional.mish(x),
    "sums": lambda x: x.sum(-1) + x.mean((1, 2), keepdim=True)[..., 0] + x.amax(-1) + x.std(-1),
    "softmaxes": lambda x: x.softmax(1) + x.log_softmax(-1) + torch.logsumexp(x, 1, keepdim=True),
    "norms": lambda x: functional.layer_norm(x, x.shape[2:]) + functional.rms_norm(x, x.shape[-1:]),
    "cumsum": lambda x: x.cumsum(-1),
    "argmax": lambda x: x.argmax(1),
    "trigonometry": lambda x: x.sin() + x.cos() + torch.atan2(x, x + 3) + x.tanh() + x.erf(),
}
SHAPES: dict[str, Callable[[Any], Any]] = {
    "views": lambda x: x.flatten(1).unflatten(1, (4, 30)).squeeze(0).unsqueeze(-1).expand(-1, -1, -1, 3),
    "transposes": lambda x: x.transpose(1, -1).permute(3, 0, 2, 1).mT,
    "slices": lambda x: x[:, 1:5:2, -3:, ::2],
    "selects": lambda x: x[:, -1] + x.select(1, 2) + x.narrow(1, 1, 2).sum(1),
    "splits": lambda x: torch.cat([part * i for i, part in enumerate(x.split([1, 2, 3], 1))], 1),
    "chunks": lambda x: sum(x.chunk(3, 1)) + torch.stack(x.unbind(1)[:2], 1),
    "uneven chunks": lambda x: x.split(4, 1)[1],
    "repeats": lambda x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, 1) + x.tile(2, 1, 1),
    "indices": lambda x: x[:, torch.tensor([3, 0, 3])] + x.index_select(1, torch.tensor([1, 2, 5])),
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 4, 5, dtype=torch.long)),
    "roll": lambda x: x.roll(1, 2),
    "einsum": lambda x: torch.einsum("bcij,bdij->bcd", x, x),
    "matmul": lambda x: x @ x.mT + torch.baddbmm(torch.ones(12, 4, 4), x.flatten(0, 1), x.flatten(0, 1).mT)[:1],
    "addmm": lambda x: torch.addmm(x[0, 0, 0], x[0, 0], torch.eye(5), beta=2, alpha=0.5),
    "triangle": lambda x: x.tril() + x.triu(1) * 2,
}
ATTENTION: dict[str, Callable[[Any], Any]] = {
    "plain": attention,
    "causal": lambda x: attention(x, is_causal=True),
    "scaled": lambda x: attention(x, scale=0.3),
    "grouped": lambda x: functional.scaled_dot_product_attention(
        x, x[:, :2] * 2, x[:, :2], enable_gqa=True, is_causal=True
    ),
    "float mask": lambda x: attention(x, attn_mask=x[:, :1, :, :4].detach() * 3),
    "constant boolean mask": lambda x: attention(x, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril(1)),
    "boolean mask": lambda x: attention(x, attn_mask=(x[:, :1, :, :4] > -9)),
    "three axes": lambda x: functional.scaled_dot_product_attention(x[0], x[1], x[0]),
}


@pytest.mark.parametrize(
    "calls", [PICTURES, ARITHMETIC, SHAPES, ATTENTION], ids=["pictures", "numbers", "shapes", "attention"]
)
def test_operators_compute_what_torch_computes(calls: dict[str, Callable[[Any], Any]]) -> None:
    generator = torch.Generator().manual_seed(5)
    same_as_torch(Calls(calls).eval(), {"x": torch.randn(2, 6, 4, 5, generator=generator)})


def test_a_list_of_one_stands_for_all_axes() -> None:
    call = Call(op="", args={"stride": [2], "padding": 1, "dim": -1, "self": None}, dtype="", emit=lambda value: value)
    assert (call.ints("stride", 2), call.ints("padding", 2)) == ((2, 2), (1, 1))


def test_views_are_converters() -> None:
    assert set(VIEWS) <= set(CONVERTERS)


def test_what_is_kept_whole_has_a_converter() -> None:
    assert sorted(set(KEPT) - set(CONVERTERS)) == []


def test_what_is_known_is_evaluated() -> None:
    """Positions, masks and the like are constants: no layer is left of them."""

    def positions(x: Any) -> Any:
        return x * torch.arange(x.shape[-1], dtype=torch.float64).float().outer(torch.ones(1)).cumsum(0)[:, 0]

    model = same_as_torch(Calls({"y": positions}).eval(), {"x": torch.ones(2, 3, 4, 5)})
    assert {layer.attrs.get("operator", layer.op) for layer in model.graph.layers} == {"depthwise_conv2d"}


@pytest.mark.parametrize("rank", [1, 2])
def test_convolutions(rank: int) -> None:
    kind = nn.Conv1d if rank == 1 else nn.Conv2d
    net = nn.Sequential(kind(6, 8, 3, 2, 1, 1, 2), nn.BatchNorm1d(8) if rank == 1 else nn.BatchNorm2d(8), kind(8, 4, 2))
    shape = (2, 6, 9) if rank == 1 else (2, 6, 9, 7)
    model = same_as_torch(net.eval(), {"input": torch.randn(shape, generator=torch.Generator().manual_seed(5))})
    assert [layer.name for layer in model.graph.layers if layer.op == "conv2d"] == ["0", "2"]
