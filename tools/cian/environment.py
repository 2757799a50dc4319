"""Prepares the process before MXNet is imported; importing any part of ``cian`` runs it once.

* ``numpy.bool``: MXNet 1.9.1 reads this alias, which NumPy 1.24 removed.
* ``OMP_NUM_THREADS``: MXNet reads it when its library is loaded and takes half of the cores without
  it. It is set to the number of cores that this process may use, unless the user has set it.
* ``OPENBLAS_CORETYPE``: the OpenBLAS inside of MXNet 1.9.1 does not know processors that came after
  it and takes kernels of the time before AVX for them, at less than half of the speed. It is told
  to use those for AVX2, where the processor has it and the user said nothing.
* ``MXNET_CPU_TEMP_COPY``: how many buffers MXNet's operators take turns with for what they need
  while they run, 4 by itself. Each grows to the largest need, and a CPU runs one operator at a
  time, so one is enough, unless the user has set another number.
* ``scipy.stats``: MXNet imports it for some of its test utilities and for quantization, which takes
  a third of its start and 50 MB. These get it when they first use it; nobody else sees a
  difference.
* GPU wheels: ``mxnet-cu112`` links against CUDA 11 libraries that the ``nvidia-*-cu11`` wheels
  bring; they are loaded here by path, so that no ``LD_LIBRARY_PATH`` is needed.
"""
from __future__ import annotations

import ctypes
import glob
import importlib
import importlib.metadata
import importlib.util
import mmap
import os
import resource
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from cian.later import MXNetFinder

# The libraries that libmxnet.so of mxnet-cu112 1.9.1 needs, dependencies first, and the wheel that
# holds each.
CUDA_LIBRARIES = {
    "libcudart.so.11.0": "nvidia-cuda-runtime-cu11",
    "libnvrtc.so.11.2": "nvidia-cuda-nvrtc-cu11",
    "libnvToolsExt.so.1": "nvidia-nvtx-cu11",
    "libcublasLt.so.11": "nvidia-cublas-cu11",
    "libcublas.so.11": "nvidia-cublas-cu11",
    "libcufft.so.10": "nvidia-cufft-cu11",
    "libcurand.so.10": "nvidia-curand-cu11",
    "libcusparse.so.11": "nvidia-cusparse-cu11",
    "libcusolver.so.11": "nvidia-cusolver-cu11",
    "libcudnn.so.8": "nvidia-cudnn-cu11",
    "libnccl.so.2": "nvidia-nccl-cu11",
}
# Compute capabilities with machine code in mxnet-cu112 1.9.1; it carries no PTX, so nothing newer can run.
GPU_ARCHITECTURES = ("5.0", "6.0", "7.0", "8.0", "8.6")

# The variables that prepare() sets, and their values as the user gave them.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "MXNET_CPU_TEMP_COPY",
             "MXNET_STORAGE_FALLBACK_LOG_VERBOSE")
USERS_VALUES = {name: os.environ[name] for name in VARIABLES if name in os.environ}


def users_environment() -> Dict[str, str]:
    """The environment without what :func:`prepare` has set: for processes that are to choose by
    themselves.
    """
    return {**{name: value for name, value in os.environ.items() if name not in VARIABLES}, **USERS_VALUES}


def usable_cores() -> int:
    """Number of cores this process may run on: its affinity mask and its container's share of
    processor time, not the machine's size.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    for quota, period in limits("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"), ("cpu.max",)):
        if quota > 0 and period > 0:
            cores = min(cores, max(1, int(quota / period + 0.5)))
    return cores


def usable_memory() -> int:
    """Bytes of memory that this process and its children may use: the machine's, or less where a
    container (memory cgroup, version 1 or 2) or ``ulimit -v`` or ``-d`` says so.
    """
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    bounds += [limit for limit, *_ in limits("memory", ("memory.limit_in_bytes",), ("memory.max",))
               if limit > 0]
    virtual, resident = _pages("/proc/self/statm")
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:  # counts what is mapped and not used, too
            bounds.append(max(soft - (virtual - resident), 1))
    return min(bounds)


def reserve_for_products() -> None:
    """Where ``ulimit -v`` or ``-d`` bounds the memory, NumPy's OpenBLAS gets its buffer of 32 MB now.
    Later, where none is left, it would ask for it for ever.

    Raises
    ------
    MemoryError
        When there is no memory for it.
    """
    bounds = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(bound != resource.RLIM_INFINITY for bound in bounds):
        import numpy

        try:
            mmap.mmap(-1, 2 ** 26).close()
        except OSError as error:
            raise MemoryError from error
        numpy.ones((64, 64)) @ numpy.ones((64, 64))


def resident_memory() -> int:
    """Bytes of memory that this process uses."""
    return _pages("/proc/self/statm")[1]


def _pages(path: str) -> Tuple[int, int]:
    try:
        with open(path, encoding="ascii") as stream:
            words = stream.read().split()
        return int(words[0]) * os.sysconf("SC_PAGE_SIZE"), int(words[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        return 0, 0


def limits(controller: str, old: Sequence[str], new: Sequence[str], root: str = "/sys/fs/cgroup",
           membership: str = "/proc/self/cgroup") -> List[List[int]]:
    """Limits of this process's control group and of those above it; -1 stands for none.

    Parameters
    ----------
    old, new : files of the controller in cgroup version 1 and 2; the numbers in them are joined.
    """
    try:
        with open(membership, encoding="utf-8", errors="surrogateescape") as stream:
            groups = [line.rstrip("\n").split(":", 2) for line in stream if line.count(":") >= 2]
    except OSError:  # not Linux
        return []
    found = []
    for _, names, path in groups:
        if names and controller not in names.split(","):
            continue
        tops = [os.path.join(root, folder) for folder in ((names, controller) if names else ("unified", ""))]
        top = next((folder for folder in tops if os.path.isdir(folder)), root)
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # a container sees its own group at the top, under the name that it has outside
        for depth in range(len(parts), -1, -1):
            numbers = _numbers([os.path.join(top, *parts[:depth], name) for name in (old if names else new)])
            if numbers:
                found.append(numbers)
    return found


def _numbers(paths: Sequence[str]) -> List[int]:
    numbers = []
    for path in paths:
        try:
            with open(path, encoding="ascii") as stream:
                numbers += [-1 if word == "max" else int(word) for word in stream.read().split()]
        except (OSError, ValueError):
            return []
    return numbers


def keep_freed_memory(limit: int = 2 ** 25) -> None:
    """Have glibc keep up to ``limit`` bytes of what this process frees, for its next arrays;
    nothing where the C library is another.

    Without it every array of an image goes back to the system and comes again as pages that must be
    zeroed: two fifths of the time of a process that decodes and counts label maps.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            mallopt(parameter, limit)


def has_avx2() -> bool:
    """Whether Linux says that this x86 processor has AVX2 and FMA."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            flags: List[str] = next((line.split() for line in stream if line.startswith("flags")), [])
    except OSError:  # not Linux
        return False
    return "avx2" in flags and "fma" in flags


def installed_mxnet() -> Optional[str]:
    """Name of the installed MXNet distribution (``mxnet`` or ``mxnet-cu112``), or None."""
    for name in ("mxnet-cu112", "mxnet"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return None


def _library_path(library: str) -> Optional[str]:
    """Path of a CUDA library inside an installed nvidia wheel, or None."""
    for folder in sys.path:
        found = glob.glob(os.path.join(folder or ".", "nvidia", "*", "lib", library))
        if found:
            return found[0]
    return None


def preload_cuda() -> None:
    """Load the CUDA 11 libraries of ``mxnet-cu112`` ahead of its import.

    Raises
    ------
    ImportError
        Naming the missing driver or library and the wheel or package that brings it.
    """
    try:
        ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError("mxnet-cu112 needs an NVIDIA driver (libcuda.so.1), and none is installed; install "
                          "a driver of version 450 or newer, or use the CPU build: pip install "
                          "'cian[cpu]' after pip uninstall mxnet-cu112") from error
    for library, wheel in CUDA_LIBRARIES.items():
        try:
            ctypes.CDLL(_library_path(library) or library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ImportError(f"mxnet-cu112 needs {library}, which was not found; install it with: pip "
                              f"install {wheel}") from error


def check_gpu(device_id: int) -> None:
    """Refuse a GPU that this build of MXNet has no machine code for.

    Raises
    ------
    ValueError
        Naming the device, its compute capability and the supported ones, or the reason why it
        cannot be asked.
    """
    if installed_mxnet() != "mxnet-cu112":
        raise ValueError(f"gpu:{device_id} was asked for, but the installed MXNet is the CPU build; "
                         "install the GPU build: pip uninstall mxnet && pip install 'cian[gpu]'")
    driver = ctypes.CDLL("libcuda.so.1")
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        raise ValueError("the NVIDIA driver reports no usable GPU; check nvidia-smi")
    if not 0 <= device_id < count.value:
        raise ValueError(
            f"gpu:{device_id} does not exist; the driver reports {count.value} GPU(s), numbered from 0")
    if driver.cuDeviceGet(ctypes.byref(device), device_id) != 0:
        raise ValueError(f"gpu:{device_id} cannot be opened; check nvidia-smi")
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, number in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    capability = (major.value, minor.value)
    # Machine code runs on the same major version at an equal or higher minor one.
    supported = [tuple(map(int, name.split("."))) for name in GPU_ARCHITECTURES]
    if not any(capability[0] == have[0] and capability[1] >= have[1] for have in supported):
        raise ValueError(f"gpu:{device_id} has compute capability {capability[0]}.{capability[1]}, but "
                         f"mxnet-cu112 1.9.1 carries machine code for {', '.join(GPU_ARCHITECTURES)} only "
                         "and no PTX; use one of those GPUs or the CPU")


def later_names(package: str, places: Mapping[str, str]) -> Tuple[Callable[[str], Any],
                                                                 Callable[[], List[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose public names are loaded when they are asked for.

    Parameters
    ----------
    places : module of each name, as ``importlib.import_module`` takes it.
    """
    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(places[name], package), name)

    return find, lambda: sorted({*vars(sys.modules[package]), *places})


def prepare() -> None:
    """Do all of the above that this installation needs; harmless to call again."""
    import numpy

    if "bool" not in numpy.__dict__:
        numpy.bool = bool  # type: ignore[attr-defined]
    if "mxnet" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
        if has_avx2():
            os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
        os.environ.setdefault("MXNET_CPU_TEMP_COPY", "1")
        os.environ.setdefault("MXNET_STORAGE_FALLBACK_LOG_VERBOSE", "0")
        if not any(isinstance(finder, MXNetFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, MXNetFinder())
        if importlib.util.find_spec("mxnet") is None:
            raise ImportError(
                "MXNet is not installed; install it with: pip install 'cian[cpu]' (or 'cian[gpu]')")
        if installed_mxnet() == "mxnet-cu112":
            preload_cuda()
