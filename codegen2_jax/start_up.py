"""What a command does for its process before JAX starts: what this machine has decides the environment.

JAX and XLA read these settings once, when they are loaded, and glibc when a process starts.
"""

import importlib.util
import os
import platform
import sys
import zlib
from pathlib import Path

# glibc gives large blocks back and faults them in again, 4 KiB at a time, at every step. Keeping them gains 10 to 13 %
# of a CPU step, and huge pages (where the kernel has them on request) another 15 %.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_plugins")
# PCI ids of TPU v2/v3, v4, v5p, v5e, v6e and 7x, as jax/_src/hardware_utils.py has them.
TPU_VENDOR, TPU_DEVICES = "0x1ae0", ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
KEEP_ALLOCATOR = "CODEGEN2_JAX_KEEP_ALLOCATOR"
NEVER = "1e9"  # seconds, more than any program takes to compile: JAX reads what is kept and adds nothing


def use_compilation_cache() -> None:
    """Has JAX keep all that it compiles between runs: where JAX_COMPILATION_CACHE_DIR says, and with "" nowhere.

    By default in the user's cache (a user without a home has none), in a folder for each kind of processor: programs
    that were compiled for one may not run on another.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_programs_folder())
        except RuntimeError:
            return
    if os.environ["JAX_COMPILATION_CACHE_DIR"]:
        # JAX leaves out what took it less than a second. A start has dozens of such programs, half of what it compiles.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        _say_once_where_none_is_kept(os.environ["JAX_COMPILATION_CACHE_DIR"])


def _say_once_where_none_is_kept(folder: str) -> None:
    """One line for a folder that cannot be written to, where JAX has two for each program; what it holds is read."""
    if "://" in folder or os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == NEVER:  # a bucket; said already
        return
    nearest = next(place for place in (Path(folder), *Path(folder).parents) if os.path.exists(place))
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return
    print(
        f"compiled programs are not kept: {folder} cannot be written to; set JAX_COMPILATION_CACHE_DIR to a folder "
        "that can, or to nothing.",
        file=sys.stderr,
    )
    if os.path.isdir(folder):
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = NEVER
    else:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = ""


def _programs_folder() -> Path:
    """Raises RuntimeError where nothing says what the user's home is."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "codegen2_jax" / "xla_programs" / f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"


def use_large_allocations() -> None:
    """Restarts this process with `ALLOCATOR` in its environment, which glibc reads when a process starts.

    Only where it helps: glibc, and JAX on a CPU. Settings that the user made stay, and so does all with KEEP_ALLOCATOR.
    """
    if os.environ.get(KEEP_ALLOCATOR) or any(name in os.environ for name in ALLOCATOR):
        return
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or not _on_cpu():
        return
    settings = " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
    print(f"CPU run: restarting with {settings} ({KEEP_ALLOCATOR}=1 prevents it).", flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR | {KEEP_ALLOCATOR: "1"})


def _on_cpu() -> bool:
    """Whether JAX will run on a CPU, judged without importing it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in GPU_PLUGINS) and (not _has_libtpu() or not _has_tpu())


def _has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def _has_tpu() -> bool:
    """Whether a TPU is plugged in; a cloud's network cards are of the same vendor."""
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        if vendor.read_text().strip() == TPU_VENDOR and (vendor.parent / "device").read_text().strip() in TPU_DEVICES:
            return True
    return False


def leave_absent_tpu() -> None:
    """Where libtpu is installed (for `precompile`, say) and no TPU is there, JAX need not try it and complain."""
    if "jax" in sys.modules or os.environ.get("JAX_PLATFORMS") or not _has_libtpu() or _has_tpu():
        return
    if _on_cpu():
        os.environ["JAX_PLATFORMS"] = "cpu"

