"""A session: one sequence that a network goes through token by token, with what it keeps of the tokens before.

Stands on an artifact of ``hwq.decoder``. Its state lies where the library does, on this machine or on a board; all else
is the artifact's, so sessions cost their caches and nothing more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.device import set_threads
from hwq.errors import HwqError
from hwq.graph import SPAN, Shape
from hwq.library import Library
from hwq.placed import Held, Placed, new_state, run
from hwq.samples import array_of, check_range

Array = npt.NDArray[Any]


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One sequence. position: how many of its tokens are in the state, ``length`` at most.

    name, dtype: those of the network's input of token ids. lock: the artifact's; tokens of all its sessions take turns.
    own: of this session alone, whose calls, from several threads, follow one another. rows: how many rows the table of
    embeddings has, where that is known. given, args: what a call is given and gives, and the arguments that it then
    takes; none before the first.
    """

    placed: Placed
    library: Library
    lock: threading.Lock
    threads: int
    name: str
    dtype: str
    outputs: Mapping[str, tuple[Shape, str]]
    length: int
    position: int = 0
    given: tuple[Any, ...] = ()
    args: tuple[Any, ...] = ()
    rows: int | None = None
    own: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, ids: Any) -> Array | tuple[Array, ...]:
        """The outputs of the next tokens: logits (1, n, V) for ``ids``, a whole number or n of them, (n,) or (1, n).

        They are fed one by one, and ``position`` goes with them: an interrupt between two leaves the session where it
        then stands. A tuple where the network has several outputs. Raises HwqError "input-type", "input-shape",
        "input-range", "samples-empty", "session-full" before anything is fed, "kernel-failed" and "device-lost".
        """
        tokens = read_ids(ids, self.name, self.dtype, self.rows)
        with self.own:
            rows = self._feed(tokens)
        joined = tuple(np.concatenate(column, axis=1) for column in zip(*rows, strict=True))
        return joined[0] if len(joined) == 1 else joined

    def _feed(self, tokens: Array) -> list[tuple[Array, ...]]:
        """The outputs of each token. Raises HwqError "session-full" before anything is fed."""
        if self.position + len(tokens) > self.length:
            raise HwqError(
                "session-full",
                f"the session stands at position {self.position} and is given {len(tokens)} tokens, but its length is "
                f"{self.length}; accepted: {self.length - self.position} more, reset(), or hwq.decoder with a greater "
                "length",
            )
        if not self.args:
            self._begin()
        set_threads(self.placed.device, self.threads)
        return [self._step(token) for token in tokens]

    def reset(self) -> None:
        """Begin another sequence: position 0, and nothing kept of the tokens before."""
        with self.own:
            self.position = 0
            self.args = ()

    def _begin(self) -> None:
        """Make the arguments of every call: the token and where it stands, the state, and the outputs."""
        specs = [((1, 1), self.dtype), ((2,), "int32"), *self.outputs.values()]
        token, span, *results = (Held.of(self.placed.device, shape, dtype) for shape, dtype in specs)
        state = new_state(self.placed, self.library)
        self.given = (token, span, *results)
        self.args = (token.tensor, span.tensor, *self.placed.memory, state, *(result.tensor for result in results))

    def _step(self, token: Any) -> tuple[Array, ...]:
        """The outputs of one token, which is in the state when the call has ended."""
        at, span, *results = self.given
        at.write(token)
        span.write((1, self.position + 1))
        with self.lock:
            run(self.placed, self.args)
        found = tuple(result.read() for result in results)
        self.position += 1
        return found


def read_ids(ids: Any, name: str, dtype: str, rows: int | None = None) -> Array:
    """Token ids (n,) of what a caller gives: a whole number, or an array or list of shape (n,) or (1, n).

    rows: of the table that they are looked up in, where it is known. Raises HwqError "input-type", "input-shape",
    "input-range" and "samples-empty".
    """
    accepted = "accepted: a whole number, or n of them as (n,) or (1, n)"
    array = array_of(name, ids, "the argument", "a whole number, or n of them as (n,) or (1, n)")
    if array.size == 0:
        raise HwqError("samples-empty", f"tokens for input {name!r} are none, shape {array.shape}; {accepted}")
    if array.dtype.kind not in "iu":
        raise HwqError("input-type", f"tokens for input {name!r} have type {array.dtype}; {accepted}")
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1):
        raise HwqError("input-shape", f"tokens for input {name!r} have shape {array.shape}; {accepted}")
    check_range(name, array, dtype, "the argument", rows)
    return array.reshape(-1).astype(dtype)


def sequences(start: Callable[[], Session], value: Any, name: str) -> Array | tuple[Array, ...]:
    """The outputs for token ids (N, n), one array or a dict of it: each sequence in a session of its own.

    One array (N, n, V), or a tuple of several. Raises HwqError "input-name", "input-shape", and as a session does.
    """
    given = value[name] if isinstance(value, Mapping) and set(value) - {SPAN} == {name} else value
    if isinstance(given, Mapping | tuple):
        shown = ", ".join(map(repr, given)) if isinstance(given, Mapping) else f"{len(given)} arrays"
        raise HwqError("input-name", f"the argument gives {shown}; accepted: token ids for {name!r}")
    array = array_of(name, given, "the argument", "token ids (N, n), or a session")
    if array.ndim != 2:
        message = f"the argument for input {name!r} has shape {array.shape}; accepted: token ids (N, n), or a session"
        raise HwqError("input-shape", message)
    rows = []
    for ids in array:
        found = start()(ids)
        rows.append(found if isinstance(found, tuple) else (found,))
    if not rows:
        raise HwqError("samples-empty", f"the argument for input {name!r} holds no sequence; accepted: at least one")
    joined = tuple(np.concatenate(column) for column in zip(*rows, strict=True))
    return joined[0] if len(joined) == 1 else joined
