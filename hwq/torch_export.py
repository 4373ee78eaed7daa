"""The PyTorch side of loading: a module or an ExportedProgram, captured by torch.export, checked and made functional.

Stands before ``hwq.torch_import``. torch is imported only inside these functions, so hwq works without it. The user's
module is never changed, and no gradients are recorded.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwq.errors import HwqError
from hwq.graph import Shape
from hwq.lengths import NO_LENGTHS, Lengths, check_axes
from hwq.torch_program import fingerprint

# Composite operators that ``hwq.torch_convert`` writes itself; torch would take them apart.
KEPT = (
    "linear.default", "matmul.default", "conv1d.default", "conv2d.default",
    "scaled_dot_product_attention.default", "layer_norm.default", "group_norm.default", "silu.default",
    "relu6.default", "hardswish.default", "softmax.int", "max_pool2d.default", "avg_pool2d.default",
    "split.Tensor", "repeat_interleave.self_int", "hardsigmoid.default", "transpose.int",
    "upsample_nearest2d.vec", "upsample_bilinear2d.vec", "pad.default", "leaky_relu.default",
)  # fmt: skip
# Layers that behave otherwise while a network is trained: the place of the flag among their arguments.
_TRAINING = {"batch_norm.default": 5, "dropout.default": 2, "dropout_.default": 2}
_TYPES = ("float16", "float32", "float64", "bfloat16", "int", "uint", "bool")
_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A captured network: ``program`` is functional, each user input has its name and fixed shape.

    inputs: (placeholder, name, shape) of every tensor input, in order. fingerprint: SHA-256 of weights, graph, shapes.
    """

    name: str
    program: Any
    inputs: tuple[tuple[str, str, Shape], ...]
    outputs: tuple[str, ...]
    fingerprint: str


def is_torch(source: Any) -> bool:
    """Whether ``source`` is a torch.nn.Module, an ExportedProgram, or the path of a saved one (.pt2)."""
    if isinstance(source, str | Path):
        return Path(source).suffix.lower() == ".pt2"
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(source).__mro__}
    return bool(names & {"torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"})


def export(
    source: Any, example_inputs: Any, *, batch: int | None, shapes: Mapping[str, Shape], lengths: Lengths = NO_LENGTHS
) -> Exported:
    """Capture ``source`` with the shapes of ``example_inputs``; see ``hwq.load``.

    lengths: input name -> axis -> how long it is, where it is free and ``shapes`` does not say.
    Raises HwqError "torch-missing", "torch-export", "model-missing", "model-invalid", "model-training", "model-kind",
    "model-dynamic", "example-inputs", "shapes-invalid", "dynamic-invalid".
    """
    source = getattr(source, "_orig_mod", source)  # what torch.compile wraps
    name = type(source).__name__
    if isinstance(source, str | Path):
        name, source = Path(source).stem, _read(Path(source))
    import torch

    if isinstance(source, torch.jit.ScriptModule):
        raise HwqError(
            "torch-export",
            f"{name} is a TorchScript module, which torch.export cannot capture; accepted: the torch.nn.Module that "
            "torch.jit made it from, or an ExportedProgram",
        )
    if isinstance(source, torch.nn.Module):
        program = _capture(source, example_inputs)
        free = False
    else:
        program, free = source, True
        if example_inputs is not None:
            raise HwqError(
                "example-inputs", "example_inputs are given for an ExportedProgram; accepted: for a torch module only"
            )
        name = name if name != "ExportedProgram" else _root_name(program)
    _check_inference(program, name)
    inputs = _inputs(program, batch=batch, shapes=shapes, free=free, lengths=lengths)
    outputs = _outputs(program, name)
    program = _decompose(program, name)
    _check_state(program, name)
    return Exported(
        name=name, program=program, inputs=inputs, outputs=outputs, fingerprint=fingerprint(program, inputs)
    )


def _read(path: Path) -> Any:
    """The ExportedProgram in a file that torch.export.save wrote."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise HwqError(
            "model-missing", f"model file {str(path)!r} {kind}; accepted: a file that torch.export.save wrote"
        )
    try:
        import torch
    except ImportError:
        raise HwqError(
            "torch-missing", f"PyTorch, which reads {str(path)!r}, is not installed; accepted: pip install 'hwq[torch]'"
        ) from None
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:  # torch raises whatever its zip and JSON readers do
        raise HwqError(
            "model-invalid",
            f"{str(path)!r} is no program that torch.export.save wrote: {_first_line(error)}; accepted: a whole one",
        ) from None


def _capture(module: Any, example_inputs: Any) -> Any:
    """The module as an ExportedProgram with the shapes of the inputs."""
    import torch

    name = type(module).__name__
    training = [f"{path or name} ({type(part).__name__})" for path, part in module.named_modules() if part.training]
    if training:
        raise HwqError(
            "model-training",
            f"module {name} is in training mode (first {training[0]}); accepted: a module after .eval()",
        )
    bound = _arguments(module, example_inputs)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, bound.args, bound.kwargs, strict=False)
    except Exception as error:  # whatever the user's forward, or torch while it follows it, raises
        given = [
            f"{key} {str(value.dtype).removeprefix('torch.')} {_text(tuple(value.shape))}"
            for key, value in bound.arguments.items()
            if isinstance(value, torch.Tensor)
        ]
        name = f"{name} with {', '.join(given)}" if given else name
        raise HwqError(
            "torch-export",
            f"torch.export cannot capture {name}: {_first_line(error)}; accepted: a forward that takes these inputs "
            "and whose control flow does not depend on their values",
        ) from None


def _arguments(module: Any, example_inputs: Any) -> inspect.BoundArguments:
    """The arguments of ``forward`` by name, as tensors on the module's device."""
    import torch

    signature = inspect.signature(module.forward)
    accepted = f"accepted: a tuple of tensors or arrays, or a dict by the names of forward{signature}"
    if example_inputs is None:
        raise HwqError("example-inputs", f"example_inputs are missing for module {type(module).__name__}; {accepted}")
    if isinstance(example_inputs, torch.Tensor | np.ndarray):
        example_inputs = (example_inputs,)
    if not isinstance(example_inputs, tuple | list | Mapping):
        raise HwqError("example-inputs", f"example_inputs are a {type(example_inputs).__name__}; {accepted}")
    device = next((item.device for item in [*module.parameters(), *module.buffers()]), torch.device("cpu"))

    def tensor(label: Any, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(device)
        if isinstance(value, np.ndarray | np.generic):
            try:
                return torch.from_numpy(np.array(value)).to(device)
            except TypeError:
                pass
        elif isinstance(value, _SCALARS):
            return value
        raise HwqError("example-inputs", f"example input {label!r} is a {type(value).__name__}; {accepted}")

    try:
        if isinstance(example_inputs, Mapping):
            return signature.bind(**{str(key): tensor(key, value) for key, value in example_inputs.items()})
        else:
            return signature.bind(*(tensor(index, value) for index, value in enumerate(example_inputs)))
    except TypeError as error:
        raise HwqError("example-inputs", f"example_inputs do not fit forward: {error}; {accepted}") from None


def _check_inference(program: Any, name: str) -> None:
    """Raises HwqError "model-training" for a program that was captured to train."""
    for node in program.graph.nodes:
        place = _TRAINING.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        flags = [*node.args, *(node.kwargs.get(key) for key in ("train", "training"))]
        if place is not None and (node.args[place : place + 1] == (True,) or True in flags[len(node.args) :]):
            raise HwqError(
                "model-training", f"{node.name!r} of {name} is in training mode; accepted: a module after .eval()"
            )


def _check_state(program: Any, name: str) -> None:
    """Raises HwqError "model-kind" for a functional program that keeps state."""
    for spec in program.graph_signature.output_specs:
        if spec.kind.name in ("BUFFER_MUTATION", "USER_INPUT_MUTATION", "PARAMETER_MUTATION"):
            raise HwqError(
                "model-kind", f"{name} writes to {spec.target!r} as it runs; accepted: a network that keeps no state"
            )


def _inputs(
    program: Any, *, batch: int | None, shapes: Mapping[str, Shape], free: bool, lengths: Lengths
) -> tuple[tuple[str, str, Shape], ...]:
    """(placeholder, name, shape) of the tensor inputs; free axes as ``shapes``, ``lengths`` or ``batch`` say."""
    if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
        raise HwqError("shapes-invalid", f"batch is {batch!r}; accepted: a positive integer")
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = {name: key for key, name in _input_names(program) if hasattr(values.get(key), "shape")}
    if not tensors:
        raise HwqError("model-kind", "the module has no tensor input; accepted: at least one input and one output")
    listed = ", ".join(map(repr, tensors))
    for name in sorted(set(shapes) - set(tensors)):
        raise HwqError("shapes-invalid", f"shapes names input {name!r}, which the module lacks; its inputs: {listed}")
    check_axes(lengths, {name: len(values[key].shape) for name, key in tensors.items()})
    known: dict[Any, int] = {}
    found = []
    for name, key in tensors.items():
        own, dtype = tuple(values[key].shape), str(values[key].dtype).removeprefix("torch.")
        if not dtype.startswith(_TYPES) or 0 in own:
            found_there = f"of shape {_text(own)}" if 0 in own else f"of {dtype}"
            raise HwqError(
                "model-kind",
                f"input {name!r} is {found_there}; accepted: float, integer or bool tensors with numbers in them",
            )
        wanted = shapes.get(name, [None] * len(own))
        if name in shapes and (len(wanted) != len(own) or not all(isinstance(dim, int) and dim > 0 for dim in wanted)):
            raise HwqError("shapes-invalid", f"shapes[{name!r}] is {wanted!r}; accepted by the module: {_text(own)}")
        dims = []
        for axis, (dim, want) in enumerate(zip(own, wanted, strict=True)):
            what = f"shapes[{name!r}] is {tuple(wanted)}"
            if want is None and not isinstance(dim, int) and (want := lengths.get(name, {}).get(axis)) is not None:
                what = f"dynamic gives axis {axis} of input {name!r} {want}"
            if want is None and axis == 0 and not (free and isinstance(dim, int)):
                what, want = f"batch is {batch}", batch
            value = _fixed(dim, want if axis or want is not None else 1, known, program.range_constraints)
            if value is None and want is None and axis:
                raise HwqError(
                    "model-dynamic",
                    f"dimension {axis} ({dim}) of input {name!r} is free; give the whole shape in "
                    f"shapes={{{name!r}: (...)}}, or its lengths, where they vary, in "
                    f"dynamic={{{name!r}: {{{axis}: (least, most)}}}}",
                )
            if value is None or value != (value if want is None else want):
                accepted = _text(own) if free else f"{_text(own)}, as in example_inputs"
                raise HwqError("shapes-invalid", f"{what}; accepted by the module for {name!r}: {accepted}")
            dims.append(value)
        found.append((key, name, tuple(dims)))
    return tuple(found)


def _fixed(dim: Any, wanted: int | None, known: dict[Any, int], ranges: Any) -> int | None:
    """A dimension as a number; a free one as ``wanted``, which fixes its symbol in ``known``. None where neither is."""
    if isinstance(dim, int):
        return dim
    import sympy

    expr = dim.node.expr.subs(known)
    if expr.is_number or wanted is None:
        return int(expr) if expr.is_number else None
    symbols = list(expr.free_symbols)
    roots = sympy.solve(expr - wanted, symbols[0]) if len(symbols) == 1 else []
    if len(roots) != 1 or not roots[0].is_integer:
        return None
    bounds = next((item for key, item in ranges.items() if str(key) == str(symbols[0])), None)
    if bounds is not None and not bounds.lower <= int(roots[0]) <= bounds.upper:
        return None
    known[symbols[0]] = int(roots[0])
    return wanted


def _text(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(str(dim) if isinstance(dim, int) else 'free' for dim in shape)})"


def _input_names(program: Any) -> list[tuple[str, str]]:
    """(placeholder, name): the parameter of ``forward`` that each user input is, or is a part of."""
    from torch.utils import _pytree as pytree

    keys = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    call = program.module_call_graph[0].signature
    if call is None:
        return [(key, key) for key in keys]
    params = list(call.forward_arg_names or ())
    tree = pytree.tree_unflatten(keys, call.in_spec)
    found = []
    for path, key in pytree.tree_flatten_with_path(tree)[0]:
        side, first, *rest = path
        label = params[first.idx] if side.idx == 0 and first.idx < len(params) else str(getattr(first, "key", key))
        found.append((key, ".".join([label, *map(_key, rest)])))
    counts = [name for _, name in found]
    return found if len(set(counts)) == len(counts) else [(key, key) for key in keys]


def _key(entry: Any) -> str:
    """One step into nested inputs or outputs: an index, a key or a field."""
    return str(next(getattr(entry, kind) for kind in ("idx", "key", "name") if hasattr(entry, kind)))


def _outputs(program: Any, name: str) -> tuple[str, ...]:
    """The names of the tensor outputs: keys of a dict, fields of a data class; else output, or output_0, output_1."""
    from torch.utils import _pytree as pytree

    specs = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    tensors = [type(spec.arg).__name__ == "TensorArgument" for spec in specs]
    if not any(tensors):
        raise HwqError("model-kind", f"{name} has no tensor output; accepted: at least one input and one output")
    call = program.module_call_graph[0].signature
    paths: list[Any] = [()] if len(specs) == 1 else [(index,) for index in range(len(specs))]
    if call is not None:
        tree = pytree.tree_unflatten(list(range(len(specs))), call.out_spec)
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    names = []
    for path, tensor in zip(paths, tensors, strict=True):
        steps = [str(step) if isinstance(step, int) else _key(step) for step in path]
        if tensor:
            names.append(".".join(steps) if steps and not steps[0].isdigit() else "_".join(["output", *steps]))
    return tuple(names)


def _decompose(program: Any, name: str) -> Any:
    """The program without in-place operators, in few kinds of operators; KEPT stay whole."""
    import torch

    table = torch.export.default_decompositions()
    for target in list(table):
        if target.__name__ in KEPT:
            table.pop(target)
    try:
        with torch.no_grad(), _quiet():
            return program.run_decompositions(table)
    except Exception as error:
        raise HwqError(
            "torch-export", f"torch cannot make {name} functional: {_first_line(error)}; accepted: an inference network"
        ) from None


def _root_name(program: Any) -> str:
    """The class of the captured module, as its nodes remember it."""
    for node in program.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if stack:
            kind = stack[0][1]
            return str(kind if isinstance(kind, str) else kind.__name__).rsplit(".", 1)[-1]
    return "model"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings, and without its log and its prints of what is raised anyway.

    What the user's own forward prints while it is followed is not shown either.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).split(". ")[0].rstrip(".")
