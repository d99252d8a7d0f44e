"""Toolchains of other languages: where they are and what they need to see.

Outside Python, solution and tests share a process, so its exit code proves nothing: `exit(0)` before the first test is
a clean end. Each language therefore has a launcher, in `launchers/`, that reads an unguessable token before it loads
the program and repeats it only after the tests have returned. What that does not stop is written in docs/sandbox.md.
"""

import functools
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import csharp
from codegen2_jax.sandbox.toolchain import Toolchain, which


@functools.cache
def find(language: str) -> Toolchain:
    """The toolchain of a language; UserError where this machine has none."""
    finders = {"java": _java, "javascript": _node, "ruby": _ruby, "csharp": csharp.find}
    return finders[language]()


def present() -> list[Toolchain]:
    """All toolchains of this machine."""
    found = []
    for language in ("java", "javascript", "ruby", "csharp"):
        try:
            found.append(find(language))
        except UserError:
            pass
    return found


def _java() -> Toolchain:
    which("java", "javac", "a JDK, version 11 or newer (apt-get install default-jdk-headless)")
    java = which("java", "java", "a JDK")
    home = str(Path(java).parent.parent)
    options = ("-ea", "-Xmx{memory}m", "-Xss8m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
    options += ("-Xshare:auto", "-XX:ReservedCodeCacheSize=64m", "-XX:+DisableAttachMechanism")
    needs = (home, *(str(path) for path in sorted(Path("/etc").glob("java*"))))
    libraries = f"{home}/lib:{home}/lib/server"  # found through /proc otherwise, which a jail has not
    environment = (("LD_LIBRARY_PATH", libraries),)
    line = (java, *options, "Launcher.java")
    return Toolchain("java", line, ("Launcher.java",), needs, environment, tries_sockets=True)


def _node() -> Toolchain:
    node = which("javascript", "node", "Node.js 18 or newer (apt-get install nodejs)")
    line = (node, "--max-old-space-size={memory}", "--disable-wasm-trap-handler", "launcher.js")
    return Toolchain("javascript", line, ("launcher.js",), (node,))


def _ruby() -> Toolchain:
    ruby = which("ruby", "ruby", "Ruby 3 (apt-get install ruby)")
    gems = ("/usr/share/rubygems-integration", "/var/lib/gems")  # test/unit is one
    return Toolchain("ruby", (ruby, "launcher.rb"), ("launcher.rb",), (ruby, *gems))
