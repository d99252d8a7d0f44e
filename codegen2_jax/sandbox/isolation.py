"""The walls: what of this machine a program sees, which is what is listed here and nothing else.

Two arrangements. A user's own process starts bubblewrap for each program, in new namespaces of all kinds. Root first
starts one bubblewrap per keeper, which shows the interpreter where an unprivileged user may read it (it often lies in
root's home), and the keeper becomes that user for good: limits on processes do not bind root, and a bind mount that
root made shows what only root may read. In both, a keeper that loses its parent ends, and with it all below it.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import packages, system_calls
from codegen2_jax.sandbox.toolchain import Toolchain

UID = 64_999  # of the jailed when root started them: no account, and below the 65,536 that containers often have
_PACKAGE = Path(__file__).resolve().parent.parent
_INSIDE = "/jail"  # where the package's few files lie in a jail
_LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/lib32", "/usr/local/lib")
_FILES = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
_MODULE = "import sys; sys.dont_write_bytecode = True; sys.path.append({path!r}); from codegen2_jax.sandbox"
HINT = (
    "install bubblewrap (apt-get install bubblewrap) and let it make user namespaces: Ubuntu 24.04 needs `sysctl -w "
    "kernel.apparmor_restrict_unprivileged_userns=0` or an AppArmor profile for bwrap, a container needs --privileged "
    "or a seccomp profile that allows them; or run without a jail by --allow_unsafe_execution, for programs you trust"
)


@dataclasses.dataclass(frozen=True)
class Isolation:
    """How programs are started here.

    Attributes:
      bwrap: the path of bubblewrap, "" for no jail.
      as_root: whether a stage and a change of user come first.
    """

    bwrap: str
    as_root: bool

    def keeper_line(self, toolchains: list[Toolchain], folders: list[str]) -> list[str]:
        """The command of a keeper; a descriptor of its parent's process is appended to it.

        folders: of `packages.find`, which its jails may show.

        No --die-with-parent: it would end the keeper with the thread that started it.
        """
        staged = self.bwrap and self.as_root
        module = _MODULE.format(path=_INSIDE if staged else str(_PACKAGE.parent))
        code = f"{module} import keeper; keeper.main(int(sys.argv[1]))"
        line = [_interpreter(), "-P", "-s", "-S", "-c", code]
        return [*self._stage(toolchains, folders), *line] if staged else line

    def _stage(self, toolchains: list[Toolchain], folders: list[str]) -> list[str]:
        shown = _Shown()
        shown.bind("/usr", *_LIBRARIES, *_FILES, *_interpreter_parts(), self.bwrap)
        for toolchain in toolchains:
            shown.bind(*toolchain.needs)
        for folder in folders:
            shown.bind(folder, to=_packaged(folder))
        for path in ("__init__.py", "errors.py", "sandbox"):
            shown.bind(str(_PACKAGE / path), to=f"{_INSIDE}/codegen2_jax/{path}")
        return [
            self.bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
            "--as-pid-1", "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0",
            "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID",
            *shown.arguments(), "--proc", "/proc", "--bind", "/proc/sys", "/proc/sys", "--dev", "/dev", "--dir", "/tmp",
            "--remount-ro", "/", "--chdir", "/",
        ]  # fmt: skip

    def jail_line(self, disk_bytes: int, toolchain: Toolchain | None, folders: list[str]) -> list[str]:
        """The command of a jail; the descriptors of its pipes are appended to it."""
        code = "import inside; inside.main(*map(int, sys.argv[1:]))"
        if not self.bwrap:
            return [_interpreter(), "-P", "-s", "-S", "-c", f"{_MODULE.format(path=str(_PACKAGE.parent))} {code}"]
        package = f"{_INSIDE}/codegen2_jax/sandbox"
        shown = _Shown()
        shown.bind(*_LIBRARIES, *_FILES, *_interpreter_parts())
        shown.bind(package if self.as_root else str(_PACKAGE / "sandbox"), to=package, check=not self.as_root)
        for folder in folders:
            shown.bind(_packaged(folder) if self.as_root else folder, to=_packaged(folder), check=not self.as_root)
        if toolchain:
            shown.bind(*toolchain.needs)
            for path, target in toolchain.links:
                shown.link(path, target)
        return [
            self.bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--die-with-parent",
            "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--cap-drop", "ALL",
            *shown.arguments(), "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null",
            "--dev-bind", "/dev/urandom", "/dev/urandom", "--size", str(disk_bytes), "--tmpfs", "/tmp",
            "--remount-ro", "/", "--chdir", "/tmp",
            _interpreter(), "-P", "-s", "-S", "-c", f"{_MODULE.format(path=_INSIDE)} {code}",
        ]  # fmt: skip


def _packaged(folder: str) -> str:
    return f"{packages.FOLDER}/{Path(folder).name}"


class _Shown:
    """Read-only binds, with the folders above them open to all: bubblewrap makes them its own user's alone."""

    def __init__(self):
        self.folders, self.binds = {}, []

    def bind(self, *paths: str, to: str = "", check: bool = True) -> None:
        for path in paths:
            target = to or path
            above = [str(folder) for folder in reversed(Path(target).parents)][1:]
            if os.path.islink(path) and not to:
                self.binds += ["--symlink", os.readlink(path), target]
            elif not check or os.path.exists(path):
                if any(str(folder) == bound for folder in (target, *above) for bound in self.binds[2::3]):
                    continue  # within a bind, where nothing can be made
                self.folders |= dict.fromkeys(above)
                self.binds += ["--ro-bind", path, target]

    def link(self, path: str, target: str) -> None:
        self.folders |= dict.fromkeys([str(folder) for folder in reversed(Path(path).parents)][1:])
        self.binds += ["--symlink", target, path]

    def arguments(self) -> list[str]:
        bound = self.binds[2::3]
        made = [folder for folder in self.folders if folder not in bound]
        return [part for folder in made for part in ("--perms", "0755", "--dir", folder)] + self.binds


def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _interpreter_parts() -> list[str]:
    """The interpreter and its library, without the other folders of its prefix."""
    prefix = Path(_interpreter()).parent.parent
    return [_interpreter(), *(str(prefix / name) for name in ("lib", "lib64"))]


def find() -> Isolation:
    """Bubblewrap as it stands on PATH; UserError where there is none, or no filter for this machine."""
    if sys.platform != "linux":
        raise UserError(f"programs are jailed on Linux only, this is {sys.platform}; use a Linux machine or container.")
    if not system_calls.supported():
        raise UserError("there is no filter of system calls for this machine; use x86-64 or aarch64.")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError(f"generated programs are not run without isolation, and there is no bwrap on PATH: {HINT}.")
    said = subprocess.run([bwrap, "--help"], capture_output=True, text=True).stdout
    lacking = [option for option in ("--disable-userns", "--size", "--perms") if option not in said]
    if lacking:
        raise UserError(f"{bwrap} is too old: it lacks {', '.join(lacking)}; install bubblewrap 0.8 or newer.")
    return Isolation(bwrap=os.path.realpath(bwrap), as_root=os.geteuid() == 0)


def none() -> Isolation:
    """No jail: limits and, where the kernel has it, the filter of system calls."""
    return Isolation(bwrap="", as_root=os.geteuid() == 0)
