"""The float-preserving Relax passes in order, on one page.

Stands between ``hwq.onnx_import`` and ``hwq.layers``. With HWQ_DUMP=folder the module is written there after every
pass, numbered; with HWQ_VERIFY=1 it is checked to be well formed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tvm import IRModule, relax

from hwq.passes.flatten_dense import FlattenDense
from hwq.passes.fold_batch_norm import FoldBatchNorm
from hwq.passes.fold_constants import FoldConstants
from hwq.passes.fold_padding import FoldPadding
from hwq.passes.fold_scale import FoldScale
from hwq.passes.fold_transpose import FoldTranspose
from hwq.passes.recognize_activations import RecognizeActivations
from hwq.passes.recognize_attention import RecognizeAttention
from hwq.passes.recognize_layer_norm import RecognizeLayerNorm
from hwq.passes.recognize_rms_norm import RecognizeRMSNorm
from hwq.passes.recognize_rope import RecognizeRope
from hwq.passes.remove_identity import RemoveIdentity
from hwq.passes.share_views import ShareViews
from hwq.passes.simplify_layout import SimplifyLayout
from hwq.passes.sink_broadcast import SinkBroadcast
from hwq.passes.sink_reshape import SinkReshape
from hwq.passes.sink_transpose import SinkTranspose
from hwq.passes.split_dense import SplitDense
from hwq.passes.to_nhwc import ToNHWC
from hwq.switches import dump_folder, verify_wanted

PASSES: tuple[Any, ...] = (
    # Clean up what the importer wrote.
    RemoveIdentity(),
    FoldConstants(),
    ShareViews(),
    # Weights: batch norms, scales and shifts go into convolutions and dense layers; norms, attention and activations
    # are named before their arithmetic is pulled apart.
    FoldBatchNorm(),
    SinkTranspose(),
    # Before projections are cut: those of pairs that lie side by side would come apart into the two of each pair.
    RecognizeRope(),
    SplitDense(),
    SinkBroadcast(),
    RecognizeLayerNorm(),
    RecognizeRMSNorm(),
    RecognizeRope(),
    RecognizeAttention(),
    FlattenDense(),
    SinkReshape(),
    RecognizeActivations(),
    FoldScale(),
    RemoveIdentity(),
    # Shapes: padding into its reader, channels last, and no transpose left inside.
    FoldPadding(),
    ToNHWC(),
    FoldTranspose(),
    SimplifyLayout(),
    RemoveIdentity(),
    FoldConstants(),
    # A norm over the channels of a picture is one over the last axis only now.
    RecognizeLayerNorm(),
    # What the passes put in front of each reader, once for all.
    ShareViews(),
)


def run(mod: IRModule, *, name: str = "model") -> IRModule:
    """The module after all passes; see the module's docstring for the two switches."""
    folder = dump_folder()
    verify = verify_wanted()
    _dump(mod, folder, name, 0, "import")
    for number, step in enumerate(PASSES, start=1):
        mod = step(mod)
        if verify:
            relax.analysis.well_formed(mod)
        _dump(mod, folder, name, number, step.info.name)
    return mod


def _dump(mod: IRModule, folder: Path | None, name: str, number: int, step: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        (folder / f"{stem}-{number:02d}-{step}.py").write_text(mod.script(show_meta=False))
