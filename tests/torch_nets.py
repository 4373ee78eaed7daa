"""Small PyTorch modules for tests. Import only behind ``pytest.importorskip("torch")``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor


class Block(nn.Module):
    """Two convolutions with batch norms around a shortcut, ReLU and sum in place."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return self.relu(y)


class Residual(nn.Module):
    """A small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(16, 32, 2))
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.weight, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.pool(functional.relu6(self.stem(x))))
        return self.fc(torch.flatten(self.avg(x), 1))


class Attention(nn.Module):
    """One product for query, key and value, as in GPT-2 and many vision transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(x).split(c, 2))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Encoder(nn.Module):
    """Token and position embeddings and one layer, with a padding mask, in the way of BERT."""

    def __init__(self, words: int = 50, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(32, width)
        self.attention = Attention(width, 4)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("ids", torch.arange(32)[None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.dropout(self.words(input_ids) + self.places(self.ids[:, : input_ids.shape[1]]))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.dropout(self.down(functional.gelu(self.up(x)))))


class RMSNorm(nn.Module):
    """As the LLaMA of Hugging Face writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class Grouped(nn.Module):
    """Causal attention with rotary positions, four heads that share two keys and values."""

    def __init__(self, width: int, heads: int = 4, groups: int = 2, length: int = 32) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, groups * self.size, bias=False)
        self.v_proj = nn.Linear(width, groups * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        angles = torch.outer(torch.arange(length).float(), 1e4 ** -(torch.arange(0, self.size, 2) / self.size))
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.groups, self.size).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.groups, self.size).transpose(1, 2)
        cos, sin = self.cos[:t], self.sin[:t]
        q, k = (part * cos + _rotated(part) * sin for part in (q, k))
        times = self.heads // self.groups
        k = k[:, :, None].expand(b, self.groups, times, t, self.size).reshape(b, self.heads, t, self.size)
        y = functional.scaled_dot_product_attention(q, k, v.repeat_interleave(times, 1), is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, c))


class Decoder(nn.Module):
    """One LLaMA-like block between an embedding and a head that share their weight."""

    def __init__(self, words: int = 50, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.attn_norm = RMSNorm(width)
        self.attn = Grouped(width)
        self.mlp_norm = RMSNorm(width)
        self.gate = nn.Linear(width, 48, bias=False)
        self.up = nn.Linear(width, 48, bias=False)
        self.down = nn.Linear(48, width, bias=False)
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        x = self.embed(input)
        x = x + self.attn(self.attn_norm(x))
        y = self.mlp_norm(x)
        x = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return {"logits": self.head(self.norm(x))}


class Paired(nn.Module):
    """Causal attention with rotary positions on pairs that lie side by side, and repeated keys, as in llama2.c."""

    def __init__(self, width: int = 32, heads: int = 4, groups: int = 2, length: int = 16) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.norm = nn.RMSNorm(width)
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, groups * self.size, bias=False)
        self.wv = nn.Linear(width, groups * self.size, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        angles = torch.outer(torch.arange(length).float(), 1e4 ** -(torch.arange(0, self.size, 2) / self.size))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.full((1, 1, length, length), float("-inf")).triu(1))

    def turned(self, x: Tensor) -> Tensor:
        real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        cos, sin = (table[: x.shape[1]].view(1, x.shape[1], 1, -1) for table in (self.cos, self.sin))
        return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(3)

    def repeated(self, x: Tensor) -> Tensor:
        b, t, g, size = x.shape
        return x[:, :, :, None, :].expand(b, t, g, self.heads // g, size).reshape(b, t, self.heads, size)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.norm(x)
        q = self.turned(self.wq(y).view(b, t, self.heads, self.size))
        k = self.repeated(self.turned(self.wk(y).view(b, t, self.groups, self.size)))
        v = self.repeated(self.wv(y).view(b, t, self.groups, self.size))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(2, 3) / self.size**0.5 + self.mask[:, :, :t, :t]
        y = functional.softmax(scores.float(), -1).type_as(q) @ v
        return x + self.wo(y.transpose(1, 2).contiguous().view(b, t, c))


class Perceptron(nn.Module):
    """Two inputs, one by keyword only, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(4, 16)
        self.c = nn.Linear(16, 3)

    def forward(self, left: Tensor, *, right: Tensor) -> tuple[Tensor, Tensor]:
        y = self.c(torch.tanh(self.a(left)) + functional.gelu(self.b(right), approximate="tanh"))
        return y, y.softmax(-1)


def module(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A module in evaluation mode, and inputs for it by name; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made: dict[str, Any] = {
            "residual": lambda: (Residual(), {"x": torch.randn(1, 3, 24, 24)}),
            "encoder": lambda: (
                Encoder(),
                {
                    "input_ids": torch.randint(0, 50, (1, 12)),
                    "attention_mask": (torch.arange(12) < 9).long()[None],
                },
            ),
            "transformer": lambda: (
                nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu"),
                {"src": torch.randn(1, 10, 32)},
            ),
            "decoder": lambda: (Decoder(), {"input": torch.randint(0, 50, (1, 12))}),
            "paired": lambda: (Paired(), {"x": torch.randn(1, 12, 32)}),
            "perceptron": lambda: (Perceptron(), {"left": torch.randn(5, 8), "right": torch.randn(5, 4)}),
        }
        net, inputs = made[name]()
    return net.eval(), inputs
