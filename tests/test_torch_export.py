"""Capturing PyTorch modules: inputs by name, free dimensions, and one clear sentence for each thing that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_torch_import import same_as_torch

from hwq.errors import HwqError
from hwq.model import load
from hwq.torch_program import tensor_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hwq[torch]'")
nn = torch.nn


class Wide(nn.Module):
    """One linear layer over rows of six."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 3)

    def forward(self, x: Any, scale: float = 2.0) -> Any:
        return self.proj(x) * scale


class Forked(nn.Module):
    """Control flow that depends on data."""

    def forward(self, x: Any) -> Any:
        return x + 1 if x.sum() > 0 else x - 1


class Plus(nn.Module):
    """What takes anything."""

    def forward(self, x: Any) -> Any:
        return x + 1


class Counting(nn.Module):
    """A network with a state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.calls.add_(1)
        return x * self.calls


class Picky(nn.Module):
    """An output whose shape depends on data."""

    def forward(self, x: Any) -> Any:
        return x[x > 0] * 2


def wide() -> Any:
    torch.manual_seed(3)
    return Wide().eval()


def x(*shape: int) -> Any:
    return torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


def free(*, lower: int = 1, upper: int = 64) -> Any:
    """A program over (rows, steps, 6) with the first two dimensions free."""
    dims = {"x": {0: torch.export.Dim("rows", min=1, max=8), 1: torch.export.Dim("steps", min=lower, max=upper)}}
    return torch.export.export(wide(), (x(2, 5, 6),), dynamic_shapes=dims)


CASES: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "training": ("model-training", ("Wide", ".eval()"), lambda: load(Wide(), (x(1, 6),))),
    "one part in training": (
        "model-training",
        ("first 1 (Dropout)",),
        lambda: load(nn.Sequential(nn.Linear(6, 6)).eval().append(nn.Dropout()), (x(1, 6),)),
    ),
    "a program captured in training": (
        "model-training",
        ("dropout", ".eval()"),
        lambda: load(torch.export.export(nn.Sequential(nn.Linear(6, 6), nn.Dropout()), (x(1, 6),))),
    ),
    "no inputs": ("example-inputs", ("missing", "forward(x", "a tuple of tensors"), lambda: load(wide())),
    "inputs of a wrong type": ("example-inputs", ("a str",), lambda: load(wide(), "picture.png")),
    "an input of a wrong type": ("example-inputs", ("example input 0", "a object"), lambda: load(wide(), (object(),))),
    "an input of a wrong name": ("example-inputs", ("'x'", "forward(x"), lambda: load(wide(), {"y": x(1, 6)})),
    "inputs for a program": (
        "example-inputs",
        ("ExportedProgram",),
        lambda: load(torch.export.export(wide(), (x(1, 6),)), (x(1, 6),)),
    ),
    "inputs for an ONNX file": ("example-inputs", ("for a str",), lambda: load("net.onnx", (x(1, 6),))),
    "inputs that do not fit": ("torch-export", ("Wide", "reduction dim"), lambda: load(wide(), (x(1, 7),))),
    "control flow": ("torch-export", ("Forked", "control flow"), lambda: load(Forked().eval(), (x(1, 6),))),
    "a traced module": (
        "torch-export",
        ("TorchScript", "accepted: the torch.nn.Module that"),
        lambda: load(torch.jit.trace(wide(), (x(1, 6),)), (x(1, 6),)),
    ),
    "a scripted module": (
        "torch-export",
        ("TorchScript",),
        lambda: load(torch.jit.script(nn.Linear(6, 6).eval()), (x(1, 6),)),
    ),
    "whole numbers into a linear layer": (
        "example-inputs",
        ("'x' is int64", "linear.default at 'proj'", "float32 and int64"),
        lambda: load(wide(), (x(1, 6).long(),)),
    ),
    "doubles into a linear layer": (
        "example-inputs",
        ("'x' is float64", "float32 and float64"),
        lambda: load(wide(), (x(1, 6).double(),)),
    ),
    "a float into a double layer": ("example-inputs", ("'x' is float32",), lambda: load(wide().double(), (x(1, 6),))),
    "doubles into a convolution": (
        "torch-export",
        ("Conv1d with input float64 (1, 6, 4)",),
        lambda: load(nn.Conv1d(6, 6, 3).eval(), (x(1, 6, 4).double(),)),
    ),
    "weights alone with inputs": (
        "example-inputs",
        ("OrderedDict", "weights without their network"),
        lambda: load(wide().state_dict(), (x(1, 6),)),
    ),
    "a class with inputs": ("example-inputs", ("class Wide", "an instance"), lambda: load(Wide, (x(1, 6),))),
    "a function with inputs": ("example-inputs", ("a function", "forward"), lambda: load(wide, (x(1, 6),))),
    "weights without values": (
        "model-invalid",
        ("'weight'", "'meta'"),
        lambda: load(nn.Linear(6, 6, device="meta").eval(), (x(1, 6),)),
    ),
    "weights alone": (
        "model-invalid",
        ("OrderedDict", "a torch.nn.Module, or a torch.export.ExportedProgram"),
        lambda: load(wide().state_dict()),
    ),
    "a file in capitals": ("model-missing", ("NOTHING.PT2", "torch.export.save"), lambda: load("NOTHING.PT2")),
    "a state": ("model-kind", ("'calls'", "keeps no state"), lambda: load(Counting().eval(), (x(1, 6),))),
    "a shape that depends on data": ("model-dynamic", ("depends on data",), lambda: load(Picky().eval(), (x(1, 6),))),
    "an input of another kind": ("model-kind", ("'x'", "complex64"), lambda: load(Plus().eval(), (x(1, 6) * 1j,))),
    "an empty input": ("model-kind", ("'x'", "(0, 6)"), lambda: load(Plus().eval(), (x(0, 6),))),
    "a free dimension": ("model-dynamic", ("dimension 1", "shapes={'x'", "dynamic={'x': {1:"), lambda: load(free())),
    "a dimension out of range": ("shapes-invalid", ("(1, 65, 6)",), lambda: load(free(), shapes={"x": (1, 65, 6)})),
    "another fixed dimension": ("shapes-invalid", ("(free, free, 6)",), lambda: load(free(), shapes={"x": (1, 5, 7)})),
    "shapes of no input": ("shapes-invalid", ("'y'", "'x'"), lambda: load(free(), shapes={"y": (1, 5, 6)})),
    "another batch than the inputs": (
        "shapes-invalid",
        ("batch is 4", "(2, 6), as in example_inputs"),
        lambda: load(wide(), (x(2, 6),), batch=4),
    ),
    "other shapes than the inputs": (
        "shapes-invalid",
        ("(3, 6)", "(2, 6)"),
        lambda: load(wide(), (x(2, 6),), shapes={"x": (3, 6)}),
    ),
    "a batch of none": ("shapes-invalid", ("batch is 0",), lambda: load(wide(), (x(2, 6),), batch=0)),
    "no such file": ("model-missing", ("nothing.pt2",), lambda: load("nothing.pt2")),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_captured_is_said_in_one_sentence(case: str) -> None:
    code, texts, call = CASES[case]
    with pytest.raises(HwqError) as caught:
        call()
    assert (caught.value.code, "\n" in str(caught.value)) == (code, False)
    assert [text for text in texts if text not in str(caught.value)] == [], str(caught.value)
    assert any(text in str(caught.value) for text in ("accepted", "give the whole shape", "its inputs"))


def test_what_cannot_be_captured_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    """torch prints the graph so far, where control flow depends on values."""
    with pytest.raises(HwqError):
        load(Forked().eval(), (x(1, 6),))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["net.pt", "net.PTH"])
def test_a_file_of_weights_has_no_network(name: str, tmp_path: Path) -> None:
    torch.save(wide().state_dict(), tmp_path / name)
    with pytest.raises(HwqError, match=r"holds weights without their network.*accepted: the torch\.nn") as caught:
        load(tmp_path / name)
    assert caught.value.code == "model-invalid"


def test_free_dimensions_are_fixed() -> None:
    model = load(free(), batch=2, shapes={"x": (2, 7, 6)})
    assert model.inputs[0].shape == (2, 7, 6)
    same_as_torch(wide(), {"x": x(2, 7, 6)}, model)
    assert load(free(), shapes={"x": (1, 7, 6)}).fingerprint != model.fingerprint


def test_a_saved_program_is_the_same_model(tmp_path: Path) -> None:
    program = torch.export.export(wide(), (x(2, 6),))
    torch.export.save(program, tmp_path / "net.pt2")
    saved, here = load(tmp_path / "net.pt2"), load(wide(), (x(2, 6),))
    assert saved.fingerprint == load(program).fingerprint == here.fingerprint
    assert (saved.name, here.name) == ("net", "Wide")
    (tmp_path / "net.pt2").write_bytes(b"no archive")
    with pytest.raises(HwqError, match=r"net\.pt2") as caught:
        load(tmp_path / "net.pt2")
    assert caught.value.code == "model-invalid"


def test_the_tensors_of_a_program_are_the_modules_own() -> None:
    net = wide()
    program = torch.export.export(net, (x(1, 6),))
    found = {spec.target: tensor_of(program, spec) for spec in program.graph_signature.input_specs}
    assert torch.equal(found["proj.weight"], net.proj.weight)
    assert [name for name, value in found.items() if value is None] == [None]


def test_other_weights_are_another_model() -> None:
    one, other = wide(), wide()
    assert load(one, (x(2, 6),)).fingerprint == load(other, (x(2, 6),)).fingerprint
    with torch.no_grad():
        other.proj.weight[1, 2] += 1e-6
    assert load(one, (x(2, 6),)).fingerprint != load(other, (x(2, 6),)).fingerprint


def test_arrays_numbers_and_a_lone_tensor_are_inputs_too() -> None:
    by_name = load(wide(), {"scale": 2.0, "x": x(2, 6).numpy()})
    assert by_name.inputs == load(wide(), x(2, 6)).inputs
    assert [spec.name for spec in by_name.inputs] == ["x"]
    same_as_torch(wide(), {"x": x(2, 6)}, by_name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(dtype: str) -> None:
    half = wide().to(getattr(torch, dtype))
    model = load(half, (x(2, 6).to(getattr(torch, dtype)),))
    assert [model.inputs[0].dtype, model.outputs[0].dtype] == ["float32", "float32"]
    same_as_torch(wide().to(getattr(torch, dtype)).float(), {"x": x(2, 6)}, model)


def test_hwq_needs_no_torch(tmp_path: Path) -> None:
    """With torch not to be found, ONNX loads, and a .pt2 file says what is missing."""
    (tmp_path / "net.pt2").write_bytes(b"")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import hwq, hwq.demo\n"
        f"try: hwq.load({str(tmp_path / 'net.pt2')!r})\n"
        "except hwq.HwqError as error: print(error.code, error)\n"
        "try: hwq.load(object(), (1,))\n"
        "except hwq.HwqError as error: print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("torch-missing")
    assert "pip install 'hwq[torch]'" in first
    assert second == "example-inputs"
