"""What an ExportedProgram holds: the tensors behind the inputs of its graph, and a fingerprint of all of it.

torch is imported only inside these functions, so hwq works without it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from hwq.errors import HwqError
from hwq.graph import Shape


def tensor_of(program: Any, spec: Any) -> Any:
    """The parameter, buffer or constant that an input of the captured graph stands for; None for the user's inputs."""
    if spec.kind.name in ("USER_INPUT", "TOKEN"):
        return None
    if spec.kind.name in ("PARAMETER", "BUFFER") and spec.target in program.state_dict:
        return program.state_dict[spec.target]
    return program.constants.get(spec.target)


def fingerprint(program: Any, inputs: tuple[tuple[str, str, Shape], ...]) -> str:
    """SHA-256 of the weights, the graph and the shapes. Raises HwqError "model-invalid" for weights without values."""
    import torch

    digest = hashlib.sha256()
    for node in program.graph.nodes:
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
    digest.update(repr(inputs).encode())
    for spec in program.graph_signature.input_specs:
        value = tensor_of(program, spec)
        if value is None:
            continue
        if value.is_meta:
            raise HwqError(
                "model-invalid",
                f"{spec.target!r} is on the device 'meta', so it has a shape but no values; accepted: a network whose "
                "weights are loaded, on a device that holds them",
            )
        digest.update(f"{spec.arg.name} {spec.target} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(dtype=torch.uint8).numpy().tobytes())
    return digest.hexdigest()
