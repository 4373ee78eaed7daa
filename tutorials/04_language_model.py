"""A language model, token by token: a step network with caches of keys and values, and the text that it writes.

Run it from top to bottom (`python tutorials/04_language_model.py`, about a minute), or block by block in an editor that
knows `# %%`. It needs nothing but hwq: its network of characters is made here, by solving one system of equations.
`--small` writes less.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import hwq

SMALL = "--small" in sys.argv[1:]
TEXT = """
the river runs below the mill and turns the wheel that grinds the corn. the miller wakes before the sun and walks along
the water with a lamp. he counts the sacks and ties them well, then sends the boy to town to sell the flour. the boy has
a cart, and the cart has a bell, and the bell can be heard from the hill to the well. when the wind is cold the boy
sings a song, and the song is old and the road is long. in the town there is a square with a tree, and under the tree
the bakers wait for the flour. they buy it all and bake all night, and in the morning the bread is white and warm. so
the river feeds the town and the town sends its thanks back to the river.
"""

# %% A network that has read a little
#
# Characters are tokens. One block of attention, four heads that share keys and values, each looking less far back than
# the one before it; a layer of random features; and a last layer that predicts the next character. Only that one is
# learned: it is the ridge regression of the next character on the features, so a minute of training is one `solve`.

text = " ".join(TEXT.split()) + " "
letters = sorted(set(text))
code = np.array([letters.index(letter) for letter in text])
LENGTH, WIDTH, HEADS, FEATURES = 96, 32, 4, 512
rng = np.random.default_rng(0)


def weights(*shape: int, scale: float = 0.1) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


behind = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
arrays = {
    "letters": np.eye(len(letters), WIDTH, dtype=np.float32),
    "wq": weights(WIDTH, HEADS * WIDTH),
    "wk": weights(WIDTH, WIDTH),
    "wv": np.eye(WIDTH, dtype=np.float32),
    "recent": (-np.array([0.4, 0.8, 1.6, 4.0])[:, None, None] * np.maximum(behind, 0)[None]).astype(np.float32)[None],
    "past": np.where(behind >= 0, 0.0, -np.inf).astype(np.float32),
    "scale": np.array(WIDTH**-0.5, np.float32),
    "w1": weights(HEADS * WIDTH, FEATURES, scale=4.0),
    "b1": weights(FEATURES, scale=0.5),
}


def features(ids: np.ndarray) -> np.ndarray:
    """The features (n, FEATURES) of n characters, as the network below computes them."""
    x = arrays["letters"][ids]
    n = len(ids)
    q = (x @ arrays["wq"]).reshape(n, HEADS, WIDTH).transpose(1, 0, 2)
    scores = q @ (x @ arrays["wk"]).T * arrays["scale"] + arrays["recent"][0, :, :n, :n] + arrays["past"][:n, :n]
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = powers / powers.sum(axis=-1, keepdims=True) @ (x @ arrays["wv"])
    z = seen.transpose(1, 0, 2).reshape(n, -1) @ arrays["w1"] + arrays["b1"]
    return z / (1 + np.exp(-z))


starts = range(0, len(code) - LENGTH, 16)
known = np.concatenate([features(code[start : start + LENGTH]) for start in starts])
nexts = np.concatenate([np.eye(len(letters))[code[start + 1 : start + LENGTH + 1]] for start in starts])
arrays["w2"] = 12 * np.linalg.solve(known.T @ known + 0.5 * np.eye(FEATURES), known.T @ nexts).astype(np.float32)

# As an ONNX file, written as exporters write it: heads split by Reshape and Transpose, masks added to the scores.

NODES = [
    ("Gather", "letters ids", "x", {}),
    ("MatMul", "x wq", "q", {}),
    ("MatMul", "x wk", "k", {}),
    ("MatMul", "x wv", "v", {}),
    ("Reshape", "q heads", "q4", {}),
    ("Transpose", "q4", "qt", {"perm": [0, 2, 1, 3]}),
    ("Reshape", "k one", "k4", {}),
    ("Transpose", "k4", "kt", {"perm": [0, 2, 3, 1]}),
    ("Reshape", "v one", "v4", {}),
    ("Transpose", "v4", "vt", {"perm": [0, 2, 1, 3]}),
    ("Expand", "kt each_k", "keys", {}),
    ("Expand", "vt each_v", "values", {}),
    ("MatMul", "qt keys", "products", {}),
    ("Mul", "products scale", "scaled", {}),
    ("Add", "scaled recent", "leaning", {}),
    ("Add", "leaning past", "scores", {}),
    ("Softmax", "scores", "shares", {"axis": -1}),
    ("MatMul", "shares values", "seen", {}),
    ("Transpose", "seen", "seen_t", {"perm": [0, 2, 1, 3]}),
    ("Reshape", "seen_t flat", "joined", {}),
    ("MatMul", "joined w1", "h", {}),
    ("Add", "h b1", "z", {}),
    ("Sigmoid", "z", "gate", {}),
    ("Mul", "z gate", "known", {}),
    ("MatMul", "known w2", "logits", {}),
]
shapes = {
    "heads": [1, LENGTH, HEADS, WIDTH],
    "one": [1, LENGTH, 1, WIDTH],
    "each_k": [1, HEADS, WIDTH, LENGTH],
    "each_v": [1, HEADS, LENGTH, WIDTH],
    "flat": [1, LENGTH, HEADS * WIDTH],
}
constants = arrays | {name: np.array(shape, np.int64) for name, shape in shapes.items()}
graph = helper.make_graph(
    [helper.make_node(op, inputs.split(), [output], name=output, **attrs) for op, inputs, output, attrs in NODES],
    "letters",
    [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, LENGTH])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, LENGTH, len(letters)])],
    [numpy_helper.from_array(value, name) for name, value in constants.items()],
)
model = hwq.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
for layer in model.graph.layers:
    print(f"{layer.name:<16} {layer.op:<10} {layer.output_shape}")

# %% From sequences to steps
#
# The network takes whole sequences: for one more character it would compute all of them again. `hwq.decoder` derives
# the network of one token. Each layer that computes every token by itself is the same layer on one row; attention reads
# the keys and values of the tokens before from caches, to which each step appends its own row; and what is constant
# along the sequence is read at the position.

step = hwq.decoder(model)
print("besides, in steps:", ", ".join(layer.name for layer in step.graph.layers if layer.op in ("append", "rows_at")))

# The layers keep their names, so a plan of the whole network is a plan of its steps, with the ranges that calibration
# found on whole sequences. Here all layers with weights are int8.

windows = np.stack([code[start : start + LENGTH] for start in starts])
plan = hwq.plan(model, calibration=windows, schemes=["w8a8"], threads=1, measure=False)
print("schemes:", dict(Counter(plan.schemes.values())))
whole, writer = hwq.build(model, plan), hwq.build(step, plan)

# An artifact of steps is used by sessions, each a sequence of its own. Tokens go in one by one, or several at once; out
# come the logits of each. They are the rows that the whole network gives.

session = writer.start()
rows, logits = session(windows[0]), whole(windows[:1])
print(f"rows of the whole and of {session.position} steps differ by {np.abs(rows - logits).max():.3f}")
print(f"the same character is the likeliest in {np.mean(rows.argmax(axis=-1) == logits.argmax(axis=-1)):.0%} of them")

# %% Write
#
# The session reads the beginning, and then each character that was drawn from what it expects. When its caches are full
# it says so; `reset` begins anew.


def write(session: hwq.Session, start: str, count: int, seed: int) -> str:
    """``start``, and so many characters behind it, drawn by their probabilities."""
    draw = np.random.default_rng(seed)
    session.reset()
    found, expected = start, session([letters.index(letter) for letter in start])[0, -1]
    for _ in range(count):
        powers = np.exp(expected - expected.max())
        token = int(draw.choice(len(letters), p=powers / powers.sum()))
        found += letters[token]
        expected = session(token)[0, -1]
    return found


for seed, start in enumerate(("the boy ", "when the ", "in the town ")):
    print(f"  {write(session, start, 40 if SMALL else 80, seed)}")
try:
    session(windows[0])
except hwq.HwqError as error:
    print(f"{error.code}: {error}")

# Sessions are independent: two texts may be written in turn, from one artifact, each with caches of its own.

one, other = writer.start(), writer.start()
for letter in "the wheel":
    one(letters.index(letter))
other([letters.index(letter) for letter in "the sun "])
print(f"two sessions, at {one.position} and {other.position} of {writer.length} tokens")

# %% Save, load, time
#
# The file holds no state; a session of what was loaded begins with empty caches, and gives the same bits.

folder = Path(tempfile.mkdtemp(prefix="hwq-tutorial-"))
writer.save(folder / "letters.hwq")
again = hwq.Artifact.load(folder / "letters.hwq").start()
assert np.array_equal(again(windows[0]), rows)

times = {"all of a sequence": whole.benchmark(windows[:1]), "one step": writer.benchmark([[0]])}
for name, found in times.items():
    print(f"{name:<18} {found.median_s * 1e6:6.1f} us")
print(f"caches of a session: {writer.library.state_bytes} bytes; weights: {writer.report['measured']['weight_bytes']}")

# Long texts make long caches. In int8 they take a quarter, and a float for each row of a head; attention reads them as
# they are.

less = hwq.build(hwq.decoder(model, cache="int8"), plan)
print(f"in int8 they take {less.library.state_bytes} bytes: {write(less.start(), 'when the ', 40, 1)}")

# %% A network that was trained
#
# stories260K, a LLaMA with 260 thousand weights (RMS norms, rotary positions, grouped queries, SwiGLU), if it is here.

stories = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260k" / "stories260K_T128.onnx"
if stories.exists() and not SMALL:
    teller = hwq.compile(hwq.decoder(hwq.load(stories)), schemes=["f32"], threads=1, measure=False).start()
    expected, tokens, began = teller(1)[0, -1], [1], time.perf_counter()
    while teller.position < teller.length:
        tokens.append(int(expected.argmax()))
        expected = teller(tokens[-1])[0, -1]
    seconds = time.perf_counter() - began
    print(f"stories260K: {len(tokens)} tokens, {(len(tokens) - 1) / seconds:.0f} a second: {tokens[:12]} ...")

# From here: `hwq.decoder(model, length=...)` for caches of another size; `artifact(ids)` for whole sequences, each in a
# session of its own; `hwq run` and `hwq bench` take such artifacts too.
