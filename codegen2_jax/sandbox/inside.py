"""What runs in the jail: binds itself, loads a solution, answers calls. Not trusted once the solution is in.

It imports little, since every program pays for it, and knows neither tests nor expected values.
"""

import os
import sys

from codegen2_jax.sandbox import wire


def main(request_fd, reply_fd):
    """Serves until the grader closes the pipe or ends the jail."""
    sys.path.pop()  # where this file was found
    channel = _Channel(request_fd, reply_fd)
    start = channel.receive()
    _bind(start)
    channel.answer({"ready": True})
    what = channel.receive()
    if what["do"] == "execute":
        _execute(what, channel)
    elif what["do"] == "main":
        _run_as_program(what["source"], channel)
    else:
        _Solution(channel).serve(what)


def _bind(start):
    """Limits and filter, which cannot be loosened from here on."""
    import resource

    for name, value in start["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    os.environ.clear()
    if start["paths"]:
        sys.path += start["paths"]
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each thread would reserve memory out of the program's limit
    if start["filter"]:
        _install(bytes.fromhex(start["filter"]))


def _install(code):
    """Puts this process, for good, under a filter of system calls. OSError where the kernel refuses."""
    import ctypes

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    filter_program = Filter(len(code) // 8, code)
    # PR_SET_NO_NEW_PRIVS; PR_SET_SECCOMP with SECCOMP_MODE_FILTER
    for option, value, pointer in ((38, 1, None), (22, 2, ctypes.byref(filter_program))):
        if prctl(option, value, pointer, 0, 0):
            raise OSError(ctypes.get_errno(), "the kernel refuses the filter of system calls")


class _Channel:
    """The pipe to the grader; an answer repeats the number of its question, which cannot be guessed."""

    def __init__(self, request_fd, reply_fd):
        self.request_fd, self.reply_fd = request_fd, reply_fd
        self.number = None

    def receive(self):
        message = wire.loads(self._read(int.from_bytes(self._read(4), "big")))
        self.number = message["number"]
        return message

    def _read(self, length):
        parts = []
        while length:
            part = os.read(self.request_fd, length)
            if not part:
                os._exit(0)
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def answer(self, message):
        self._write(wire.dumps({"number": self.number, **message}))

    def answer_memory(self):
        """Without building anything larger than the answer."""
        body = b'{"number":"%s","memory":true}' % self.number.encode()
        self._write(len(body).to_bytes(4, "big") + body)

    def _write(self, data):
        while data:
            data = data[os.write(self.reply_fd, data) :]


def _module(name):
    module = type(sys)(name)
    import builtins

    builtins.exit = builtins.quit = sys.exit  # which `site` adds otherwise; it is left out since it takes time
    sys.modules[name] = module
    sys.argv = [f"{name}.py"]
    return module


def _run_as_program(source, channel):
    """Style "output": as `python solution.py` would; an exception is reported, the exit code is the process's own."""
    module = _module("__main__")
    try:
        exec(compile(source, "solution.py", "exec"), module.__dict__)
    except SystemExit:
        raise
    except MemoryError:
        channel.answer_memory()
        os._exit(1)
    except BaseException as error:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__.tb_next)
        sys.stdout.flush()
        channel.answer(_raised(error))
        os._exit(1)


def _execute(what, channel):
    """Writes files into the jail's folder and becomes another program, on the same descriptors."""
    for name, text in what["files"].items():
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    for name, text in what["binaries"].items():
        import base64

        with open(name, "wb") as file:
            file.write(base64.b64decode(text))
    if what["stack_in_place"]:
        import ctypes

        ctypes.CDLL(None).personality(0x0040000)  # ADDR_NO_RANDOMIZE
    os.dup2(channel.request_fd, 0)
    os.set_inheritable(channel.reply_fd, False)
    os.execve(what["line"][0], what["line"], what["environment"])


class _Solution:
    """The loaded solution, and the objects of its classes that the tests hold on to."""

    def __init__(self, channel):
        self.channel = channel
        self.names = {}
        self.objects = []

    def serve(self, first):
        """Answers until the pipe is closed. A call that does not return normally is an answer too."""
        message = first
        while True:
            do = getattr(self, message["do"])
            try:
                answer = do(message)
                sys.stdout.flush()
                sys.stderr.flush()
                self.channel.answer(answer)
            except MemoryError:
                answer = None
                self.channel.answer_memory()
            except SystemExit as error:
                self.channel.answer({"exit": str(error.code)[:100]})
                os._exit(0)
            except wire.WireError as error:
                self.channel.answer({"unsendable": str(error)[:300]})
            except RecursionError as error:
                self.channel.answer(_raised(error))
            except BaseException as error:
                self.channel.answer(_raised(error))
            message = self.channel.receive()

    def load(self, message):
        module = _module("solution")
        exec(compile(message["source"], "solution.py", "exec"), module.__dict__)
        self.names = module.__dict__
        kinds, values = {}, {}
        for name in message["names"]:
            if name not in self.names:
                continue
            value = self.names[name]
            if isinstance(value, type(sys)):
                kinds[name] = "module"
                values[name] = value.__name__
            elif callable(value):
                kinds[name] = "callable"
            else:
                try:
                    values[name] = self._encode(value)
                    kinds[name] = "value"
                except wire.WireError:
                    kinds[name] = "opaque"
        return {"kinds": kinds, "values": values}

    def call(self, message):
        return self._call(self.names[message["name"]], message)

    def method(self, message):
        return self._call(getattr(self.objects[message["object"]], message["name"]), message)

    def get(self, message):
        value = getattr(self.objects[message["object"]], message["name"])
        return {"method": True} if callable(value) else {"value": self._encode(value)}

    def set(self, message):
        setattr(self.objects[message["object"]], message["name"], self._decode(message["value"]))
        return {"value": None}

    def _call(self, function, message):
        given = self._decode(message["arguments"])
        before = message["arguments"]
        value = function(*given[0], **given[1])
        if isinstance(function, type) and isinstance(value, function) and self._known(value) is None:
            try:
                answer = {"value": self._encode(value)}
            except wire.WireError:
                self.objects.append(value)
                answer = {"value": {"ref": len(self.objects) - 1}}
        else:
            answer = {"value": self._encode(value)}
        try:
            after = self._encode(given)
        except wire.WireError:
            return answer  # an argument that was changed into something that cannot be sent stays as it was
        return answer if after == before else {**answer, "arguments": after}

    def _known(self, value):
        """The number of an object that the tests hold. A match of a regular expression is held like an instance."""
        number = next((number for number, known in enumerate(self.objects) if known is value), None)
        if number is None and type(value) is getattr(sys.modules.get("re"), "Match", None):
            self.objects.append(value)
            number = len(self.objects) - 1
        return number

    def _encode(self, value):
        return wire.encode(value, self._known)

    def _decode(self, data):
        return wire.decode(data, self.objects.__getitem__)


def _raised(error):
    """An exception as the nearest built-in class, its own name and its text."""
    import builtins

    known = [base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base]
    try:
        text = str(error)[:300]
    except BaseException:
        text = "(no text)"
    return {"raised": [known[0] if known else "Exception", type(error).__name__[:100], text]}
