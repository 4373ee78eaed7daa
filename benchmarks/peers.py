"""The peers: ONNX Runtime and OpenVINO on the same network, each with its best settings for one sample a call.

ONNX Runtime: all graph optimizations, static shapes, its own pre-processing before quantization, QDQ with per-channel
weights and uint8 activations calibrated on the same samples, sequential execution, worker threads that spin while they
wait. Spinning is worth a lot to it. It has no switch that keeps it from using AMX. Transformers are quantized
dynamically, as it advises for them, after its own optimizer for transformers has fused what it knows.

OpenVINO: float, bfloat16 where the CPU has it and nothing keeps it from it, and int8 made by NNCF from the same samples
in whichever of NNCF's presets (for transformers in its mode for these) and float precisions is the fastest in a short
trial; one stream, the latency hint,
threads pinned, tensors made beforehand, outputs shared and not copied. Its environment variable ONEDNN_MAX_CPU_ISA is
read once, when it is first imported: so it is imported here only when it is first used.

A peer that is not installed is left out; ``absent`` names it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from race import Contender, Network, Samples, in_turns

CALIBRATION_BATCHES = 300  # at most; NNCF's own number
TRIAL = (3, 5)  # rounds and runs that decide between OpenVINO's settings
PRESETS = ("performance", "mixed")
# NNCF's ways to compress weights alone, int4 in groups of 64: its corrections one by one and together.
WEIGHTS: dict[str, dict[str, Any]] = {
    "int8 weights": {},
    "int4 weights": {"group_size": 64},
    "int4 weights, AWQ and GPTQ": {"group_size": 64, "awq": True, "gptq": True},
    "int4 weights, AWQ and scale estimation": {"group_size": 64, "awq": True, "scale_estimation": True},
    "int4 weights, all three": {"group_size": 64, "awq": True, "gptq": True, "scale_estimation": True},
}


def absent() -> list[str]:
    """A sentence for each peer that cannot run."""
    lacking = [
        ("ONNX Runtime", "onnxruntime", "no ONNX Runtime"),
        ("OpenVINO", "openvino", "no OpenVINO"),
        ("OpenVINO int8", "nncf", "no int8 for OpenVINO"),
    ]
    return [
        f"{name} is left out: the package {module} is not installed ({what}); pip install 'hwq[bench]'"
        for name, module, what in lacking
        if not available(module)
    ]


def versions() -> str:
    """The peers' versions in one line."""
    packages = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "NNCF": "nncf"}
    return ", ".join(f"{name} {importlib.metadata.version(it)}" for name, it in packages.items() if available(it))


def peers(network: Network, threads: int) -> dict[str, Contender]:
    """Every peer that is installed, ready to run; what it makes on the way lies beside the network's file."""
    found: dict[str, Contender] = {}
    if available("onnxruntime"):
        quantized = onnx_runtime_dynamic if network.transformer else onnx_runtime_int8
        found["ONNX Runtime f32"] = onnx_runtime(network.path, network.feed(), threads)
        found["ONNX Runtime int8"] = onnx_runtime(quantized(network), network.feed(), threads)
    if available("openvino"):
        found |= _openvino_contenders(network, threads)
    return found


def available(module: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(module) is not None


def _timed(call: Any) -> Contender:
    def run(count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times

    return run


# ONNX Runtime


def onnx_runtime_int8(network: Network) -> Path:
    """Its static quantization: QDQ, uint8 activations, int8 weights per channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """The calibration samples, one by one, as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self.batches = (network.feed(index) for index in range(network.count))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    path = network.path.with_suffix(".int8.onnx")
    if path.exists():
        return path
    prepared = network.path.with_suffix(".prepared.onnx")
    quant_pre_process(str(network.path), str(prepared), skip_symbolic_shape=True)  # no shape is free
    quantization.quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return path


def onnx_runtime_dynamic(network: Network) -> Path:
    """Its dynamic quantization of a transformer, int8 weights per channel, where its optimizer has fused attention."""
    from onnxruntime import quantization
    from onnxruntime.transformers import optimizer

    path = network.path.with_suffix(".dynamic.onnx")
    if not path.exists():
        prepared = network.path.with_suffix(".fused.onnx")
        # Before its graph optimizations: those make Gemm of products whose GELU and attention it then leaves apart.
        fused = optimizer.optimize_model(str(network.path), model_type="bert", opt_level=0)
        fused.save_model_to_file(str(prepared))
        quantization.quantize_dynamic(
            str(prepared),
            str(path),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # what its own fused nodes give
        )
    return path


def onnx_runtime(path: Path, feed: Samples, threads: int) -> Contender:
    """A session with all that makes it fast; see the module's text."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    for output in session.get_outputs():
        binding.bind_ortvalue_output(
            output.name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
        )
    return _timed(lambda: session.run_with_iobinding(binding))


# OpenVINO


def _openvino_contenders(network: Network, threads: int) -> dict[str, Contender]:
    import openvino

    core = openvino.Core()
    precisions = ["f32"]
    # Capabilities are the CPU's: kept from its instructions, oneDNN emulates bfloat16 at a tenth of the speed.
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        precisions.append("bf16")
    feed = network.feed()
    found = {f"OpenVINO {it}": openvino_model(core, network.path, feed, threads, it) for it in precisions}
    if available("nncf"):
        settings: dict[str, Contender] = {}
        for preset, precision in itertools.product(PRESETS, precisions):
            try:
                contender = openvino_model(core, nncf_int8(core, network, preset), feed, threads, precision)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                print(f"OpenVINO int8 ({preset}, {precision}) of {network.name} is left out: it fails with: {reason}")
            else:
                settings[f"{preset}, {precision}"] = contender
        times = in_turns(settings, *TRIAL)
        if settings:
            best = min(settings, key=lambda name: min(times[name]))
            shown = ", ".join(f"{name} {min(values) * 1e3:.3f}" for name, values in times.items())
            print(f"OpenVINO int8 of {network.name}, threads {threads}: {best} (least ms: {shown})", file=sys.stderr)
            found["OpenVINO int8"] = settings[best]
    return found


def openvino_model(core: Any, path: Path, feed: Samples, threads: int, precision: str) -> Contender:
    """A compiled model with all that makes one call fast; see the module's text."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": True,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(str(path), "CPU", settings).create_infer_request()
    for name, value in feed.items():
        request.set_tensor(name, openvino.Tensor(value.copy()))
    return _timed(lambda: request.infer(share_outputs=True))


def nncf_int8(core: Any, network: Network, preset: str) -> Path:
    """The network quantized by NNCF, as a file."""
    import nncf
    import openvino

    path = network.path.with_suffix(f".{preset}.xml")
    if path.exists():
        return path
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress is no result
        quantized = nncf.quantize(
            core.read_model(str(network.path)),
            nncf.Dataset([network.feed(index) for index in range(network.count)]),
            preset=nncf.QuantizationPreset(preset),
            model_type=nncf.ModelType.TRANSFORMER if network.transformer else None,
            subset_size=min(network.count, CALIBRATION_BATCHES),
        )
    openvino.save_model(quantized, str(path), compress_to_fp16=False)
    return path


def nncf_weights(core: Any, path: Path, feeds: Sequence[Samples], way: str) -> tuple[Any, int]:
    """(the network with weights that NNCF compressed in one of ``WEIGHTS``, their bytes with their scales)."""
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    nncf.set_log_level(logging.ERROR)
    model = core.read_model(str(path))
    model.reshape({name: value.shape for name, value in feeds[0].items()})
    _transpose_weights(model)
    given = WEIGHTS[way]
    if given:  # inputs that groups do not divide get smaller ones, where it would fail otherwise
        groups = advanced.AdvancedCompressionParameters(
            group_size_fallback_mode=advanced.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=4
        )
        corrected = {"dataset": nncf.Dataset(list(feeds)), "subset_size": len(feeds)} if "awq" in given else {}
        given = {**given, **corrected, "ratio": 1.0, "all_layers": True, "advanced_parameters": groups}
    mode = nncf.CompressWeightsMode.INT4_SYM if given else nncf.CompressWeightsMode.INT8_SYM
    with contextlib.redirect_stdout(sys.stderr):
        found = nncf.compress_weights(model, mode=mode, **given)
    constants = [op for op in found.get_ops() if op.get_type_name() == "Constant"]
    packed = [op for op in constants if op.get_element_type().get_type_name() in ("i4", "i8", "f16")]
    return found, sum(op.get_byte_size() for op in packed)


def _transpose_weights(model: Any) -> None:
    """Hold matrices of weights the other way round, the only one that NNCF's GPTQ takes."""
    from openvino import opset13

    for op in model.get_ops():
        weight = op.input_value(1).get_node() if op.get_type_name() == "MatMul" else op
        if op is not weight and weight.get_type_name() == "Constant" and not op.get_attributes()["transpose_b"]:
            turned = opset13.constant(np.ascontiguousarray(weight.data.T))
            new = opset13.matmul(op.input_value(0), turned, op.get_attributes()["transpose_a"], True)
            new.set_friendly_name(op.get_friendly_name())
            op.output(0).replace(new.output(0))
