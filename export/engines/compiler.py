"""ONNX graph -> engine, over what TensorRT 10, TensorRT 11 and TensorRT for RTX have in common.

Networks are strongly typed: each layer computes in the types that the graph names, and no flag changes them. TF32,
which the builder would use for float32 unasked, is turned off: the detector's squared distances need all their bits.
"""

import ctypes
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle import tensors
from bundle.engines import BUILDER, INSPECTOR, NETWORK, RUNTIMES, TENSORRT, TENSORRT_RTX, Evidence, Profile, is_target
from bundle.errors import EngineError, MissingExtra, OptionError, first_line
from bundle.manifest import FETCH_AGAIN
from bundle.signals import signals_postponed
from export.engines.layers import inspected_layers, listed_layers, network_layers
from export.engines.messages import Messages, logger, refusal

LOCAL = "local"
# runtime -> the extra that brings it and the modules that may hold it, the first one preferred
MODULES = {TENSORRT: ("gpu", ("tensorrt",)), TENSORRT_RTX: ("tensorrt-rtx", ("tensorrt_rtx", "tensorrt_rtx_bindings"))}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """An engine's bytes, what its layers compute in, and the builder's timings for the next build, if it keeps any."""

    data: bytes
    evidence: Evidence
    timings: bytes | None


class Compiler:
    """One runtime's builder. Use `Compiler.open`; `trt` is the runtime's module."""

    def __init__(self, runtime: str, trt: Any) -> None:
        self.runtime = runtime
        self.trt = trt
        self.version = str(trt.__version__)
        self.messages = Messages()
        self._logger = logger(trt, self.messages)  # a runtime keeps the first logger it sees for as long as it lives

    @classmethod
    def open(cls, runtime: str) -> "Compiler":
        """Load a runtime by name; raises OptionError for an unknown one, MissingExtra for one not installed."""
        if runtime not in RUNTIMES:
            raise OptionError(f"unknown runtime {runtime!r}", hint=f"Choose from: {', '.join(RUNTIMES)}.")
        extra, modules = MODULES[runtime]
        for name in modules:
            try:
                return cls(runtime, importlib.import_module(name))
            except ModuleNotFoundError as problem:
                missing = problem
            except Exception as problem:  # libraries that are there and do not load: of another CUDA, of no platform
                raise EngineError(f"{runtime} is installed and cannot be loaded ({first_line(problem)})") from None
        raise MissingExtra.named(extra, f"fieldmark engine --runtime {runtime}", missing) from None

    @property
    def builds_anywhere(self) -> bool:
        """TensorRT for RTX compiles for any GPU on any machine; TensorRT times its kernels on the GPU that is here."""
        return self.runtime == TENSORRT_RTX

    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that it builds for here, ascending, such as sm_86."""
        if self.builds_anywhere:
            names = re.findall(r"\bSM(\d+)\b", " ".join(self.trt.ComputeCapability.__members__))
            return tuple(f"sm_{number}" for number in sorted(map(int, names)))
        here = local_target()
        return () if here is None else (here,)

    def resolve(self, target: str) -> str:
        """The target that a text names, `local` included; raises OptionError for what it cannot build here."""
        known = self.targets()
        hint = f"It builds here for: {', '.join(known)}." if known else "Run this on a machine with the GPU."
        if target == LOCAL:
            here = local_target()
            if here is None:
                raise OptionError("there is no GPU here that --target local could mean", hint=hint)
            target = here
        if not is_target(target):
            raise OptionError(f"--target {target!r} is no compute capability such as sm_86", hint=hint)
        if target not in known:
            where = "" if self.builds_anywhere else ", since it builds for the GPU of its own machine alone"
            raise OptionError(f"{self.runtime} {self.version} cannot build for {target} here{where}", hint=hint)
        return target

    def compile(self, graph: bytes, where: Path, target: str, profile: Profile, timings: bytes | None) -> Compiled:
        """Build an engine of an ONNX file's bytes; raises EngineError naming what is refused.

        `where` is the file, for that sentence alone: a graph must read no file beside it. `timings` are those of an
        earlier build on this machine.
        """
        trt = self.trt
        builder = trt.Builder(self._logger)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows nothing else
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        self._parse(network, graph, where)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else neither builder nor inspector tell types
        config.clear_flag(trt.BuilderFlag.TF32)
        if self.builds_anywhere:
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.__members__[target.upper().replace("_", "")], 0)
        else:  # a timing cache makes TensorRT for RTX ask for a GPU, and changes nothing in its engines
            _use_timings(config, timings)
        config.add_optimization_profile(_profile(builder, network, where, profile))
        self.messages.clear()
        with signals_postponed() as stopped:
            monitor = _monitor(trt, stopped)  # must outlive the build
            config.progress_monitor = monitor
            made = builder.build_serialized_network(network, config)
        if made is None:
            raise EngineError(
                f"{self.runtime} {self.version} cannot build {where} for {target} ({self.messages.error()})",
                hint="Choose another target, another precision of the bundle, or another version of the runtime.",
            )
        data = bytes(made)
        cache = None if self.builds_anywhere else config.get_timing_cache()
        return Compiled(
            data=data,
            evidence=self._evidence(network, data, target),
            timings=None if cache is None else bytes(cache.serialize()),
        )

    def load(self, data: bytes) -> Any:
        """An engine on the GPU of this machine; raises EngineError."""
        self.messages.clear()
        try:
            engine = self.trt.Runtime(self._logger).deserialize_cuda_engine(data)
        except Exception as problem:  # the bindings raise many kinds
            raise EngineError(f"{self.runtime} cannot load its engine ({first_line(problem)})") from None
        if engine is None:
            raise EngineError(f"{self.runtime} cannot load its engine ({self.messages.error()})")
        return engine

    def _parse(self, network: Any, graph: bytes, where: Path) -> None:
        parser = self.trt.OnnxParser(network, self._logger)
        self.messages.clear()
        if not parser.parse(graph):
            raise EngineError(
                f"{self.runtime} {self.version} cannot read {where}: {refusal(parser)}",
                hint="Use a newer version of the runtime, or serve this network with ONNX Runtime.",
            )

    def _evidence(self, network: Any, data: bytes, target: str) -> Evidence:
        if local_target() == target:
            inspector = self.load(data).create_engine_inspector()
            text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
            if layers := inspected_layers(text):
                return Evidence(source=INSPECTOR, layers=layers)
        if layers := listed_layers(self.messages.layers):
            return Evidence(source=BUILDER, layers=layers)
        return Evidence(source=NETWORK, layers=network_layers(network))


def local_target() -> str | None:
    """The compute capability of this machine's first GPU, such as sm_86, or None; asks the driver alone."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute, value in ((75, major), (76, minor)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"sm_{major.value}{minor.value}"


def _monitor(trt: Any, stopped: list[int]) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Ends a build early when somebody wants to stop."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

        def phase_finish(self, phase_name: str) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not stopped

    return Monitor()


def _use_timings(config: Any, timings: bytes | None) -> None:
    """Start from an earlier build's timings; those of another version or GPU, or damaged ones, are left aside."""
    cache = config.create_timing_cache(timings or b"")
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _profile(builder: Any, network: Any, where: Path, profile: Profile) -> Any:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if [tensor.name for tensor in inputs] != [tensors.IMAGE] or inputs[0].shape[0] != -1:
        raise EngineError(f"{where} does not have the one input {tensors.IMAGE!r} with a free batch", hint=FETCH_AGAIN)
    size = tuple(inputs[0].shape)[1:]
    made = builder.create_optimization_profile()
    made.set_shape(tensors.IMAGE, (profile.min, *size), (profile.opt, *size), (profile.max, *size))
    return made
