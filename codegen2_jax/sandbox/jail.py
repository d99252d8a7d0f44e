"""The grader's end of a jail: starts it, talks to it, measures it, ends it.

Every wait looks at four things at once: the answer, what the solution prints, the CPU time it has used, and the time in
which nothing is done. CPU time is read from the kernel's clock of the jailed process, from outside.
"""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time

from codegen2_jax.sandbox import system_calls, wire

_POLL_SECONDS = 0.25  # how late a used-up CPU limit may be noticed; the verdict does not depend on it
# A second of CPU time excuses so many seconds on the wall: on a machine this busy a program still counts as working,
# one that sleeps in a loop does not.
_SHARE = 20
_F_SETPIPE_SZ = 1031


class Ended(BaseException):
    """The program is over and judged. No Exception, so that no test swallows it."""

    def __init__(self, outcome, detail):
        super().__init__(outcome, detail)
        self.outcome, self.detail = outcome, detail


class Jail:
    """One jailed process.

    Args:
        line: the command that starts the interpreter in the jail; two descriptors are appended.
        isolated: whether `line` is bubblewrap's, which reports the process's id.
        limits: the fields of `programs.Limits`, and "wall".
        filters: hexadecimal programs of `system_calls`: "jail" for bubblewrap, "inside" for the running interpreter.
        rlimits: {name: value} for the jail to set.
      paths: folders of packages that the program may import.
    """

    def __init__(self, line, *, isolated, limits, filters, rlimits, paths=()):
        self.limits, self.isolated = limits, isolated
        self.ended = None  # the Ended that was raised first
        self.started = False
        self.printed = {"stdout": bytearray(), "stderr": bytearray()}
        self.cpu_seconds = 0.0
        self._start = time.monotonic()
        self._idle_seconds, self._last = 0.0, (self._start, 0.0)
        self._baseline = 0.0
        self._replies = bytearray()
        self._clock = self._pidfd = self._status = None
        self._open = set()
        self._spawn(line, filters, rlimits, list(paths))

    # ------------------------------------------------------------------------------------------------------- the start

    def _spawn(self, line, filters, rlimits, paths):
        request_r, self._request = self._pipe()
        self._reply, reply_w = self._pipe()
        stdout, stdout_w = self._pipe()
        stderr, stderr_w = self._pipe()
        for fd in (stdout_w, stderr_w):
            _widen(fd, 1024 * self.limits["output_kib"])
        theirs = [request_r, reply_w]
        self._sources = {self._reply: "reply", stdout: "stdout", stderr: "stderr"}
        information = None
        if self.isolated:
            information, information_w = self._pipe()
            theirs.append(information_w)
            options = ["--info-fd", str(information_w)]
            if filters["jail"]:
                filter_r, filter_w = self._pipe()
                os.write(filter_w, bytes.fromhex(filters["jail"]))  # some kilobytes: a pipe holds 64
                self._close(filter_w)
                theirs.append(filter_r)
                options += ["--seccomp", str(filter_r)]
            line = [line[0], *options, *line[1:]]
        self._process = subprocess.Popen(
            [*line, str(request_r), str(reply_w)], stdin=subprocess.DEVNULL, stdout=stdout_w, stderr=stderr_w,
            pass_fds=theirs, env={"PYTHONHASHSEED": "0"}, cwd="/", start_new_session=True,
        )  # fmt: skip
        for fd in (*theirs, stdout_w, stderr_w):
            self._close(fd)
        os.set_blocking(self._request, False)
        if information is None:
            self._watch(self._process.pid)
        else:
            with open(information, "rb") as file:
                self._open.discard(information)
                text = file.read()
            if text:
                self._watch(json.loads(text)["child-pid"])
        self.ask({"do": "start", "limits": rlimits, "filter": self._inner_filter(filters), "paths": paths})
        self._baseline, self.cpu_seconds = self._cpu_now() or 0.0, 0.0
        self.started = True

    def _inner_filter(self, filters):
        if self.isolated or not system_calls.supported():
            return filters["inside"]
        return system_calls.program(own_pid=self._process.pid, execute=False).hex()  # all that is left without a jail

    def _watch(self, pid):
        try:
            self._pidfd = os.pidfd_open(pid)
            self._open.add(self._pidfd)
            self._clock = (~pid << 3) | 2  # clock_getcpuclockid(3): scheduled time of all its threads
        except ProcessLookupError:
            pass

    def _pipe(self):
        ends = os.pipe()
        self._open.update(ends)
        return ends

    def _close(self, fd):
        os.close(fd)
        self._open.discard(fd)

    # --------------------------------------------------------------------------------------------------------- the talk

    def ask(self, message):
        """The answer to a message; raises Ended when there is none, at a limit, or for an answer that is no answer."""
        if self.ended:
            raise self.ended
        number = os.urandom(8).hex()
        try:
            data = wire.dumps({"number": number, **message})
        except wire.WireError as error:
            self.end("error", f"protocol: the tests send {error}")
        while True:
            answer = self._take_answer()
            if answer is not None:
                break
            data = self._wait(data)
        if answer.get("number") != number or self._replies:
            self.end("violation", "protocol: an answer to no question")
        self._drain()
        if answer.get("memory") is True:
            self.end("memory", "memory: an allocation beyond the limit")
        if "exit" in answer:
            self.end("error", f"exited: the solution called exit({printable(answer['exit'])})")
        if "unsendable" in answer:
            self.end("violation", f"protocol: the answer is not a plain value: {printable(answer['unsendable'])}")
        return answer

    def run_to_the_end(self, message, then=b""):
        """Sends a message, and bytes behind it, and waits until the process has ended.

        Returns (exit code, the answers, if any). What reads on finds the end of its input.
        """
        data, answers = wire.dumps({"number": os.urandom(8).hex(), **message}) + then, []
        while self._sources:
            data = self._wait(data, ending=True)
            if not data and self._request in self._open:
                self._close(self._request)
            answer = self._take_answer()
            if answer is not None:
                answers.append(answer)
        self._reap()
        self._judge_exit(crash_only=True)
        return self._status, answers

    def take_last_line(self, token):
        """What follows a token on the standard output, "" without it; removed from what was printed."""
        text, found, said = bytes(self.printed["stdout"]).rpartition(f"\n{token} ".encode())[0:3]
        if not found:
            return ""
        self.printed["stdout"] = bytearray(text)
        return said.decode("utf-8", "replace").strip()

    def _take_answer(self):
        if len(self._replies) < 4:
            return None
        length = int.from_bytes(self._replies[:4], "big")
        if length > wire.MAX_BYTES:
            self.end("violation", f"protocol: an answer of {length} bytes")
        if len(self._replies) < 4 + length:
            return None
        body = bytes(self._replies[4 : 4 + length])
        del self._replies[: 4 + length]
        try:
            return wire.loads(body)
        except wire.WireError as error:
            self.end("violation", f"protocol: {error}")

    def _wait(self, data, ending=False):
        """Waits for something to happen; returns what is left to send."""
        poll = select.poll()
        for fd in self._sources:
            poll.register(fd, select.POLLIN)
        if data:
            poll.register(self._request, select.POLLOUT)
        for fd, event in poll.poll(1000 * min(_POLL_SECONDS, self.limits["wall"])):
            if fd == self._request:
                try:
                    data = data[os.write(fd, data[:65536]) :]
                except BrokenPipeError:
                    data = b""
                except BlockingIOError:
                    pass
            elif event & (select.POLLIN | select.POLLHUP):
                self._read(fd, ending)
        self._check_cpu()
        self._check_idle()
        return data

    def _check_idle(self):
        """The limit on the wall clock, in which only time counts that neither program nor tests used."""
        now, used = time.monotonic(), (self._cpu_now() or 0.0) + time.process_time()
        self._idle_seconds += max(0.0, now - self._last[0] - _SHARE * max(0.0, used - self._last[1]))
        self._last = now, used
        if self._idle_seconds > self.limits["wall"]:
            self.end("infra", f"asleep: did nothing for {self.limits['wall']:g} s")

    def _read(self, fd, ending):
        name = self._sources[fd]
        part = os.read(fd, 65536)
        if not part:
            del self._sources[fd]
            if name == "reply" and not ending:
                self._ended_by_itself()
        elif name == "reply":
            self._replies += part
        else:
            self.printed[name] += part
            most = 1024 * self.limits["output_kib"]
            if sum(map(len, self.printed.values())) > most:
                self.end("output", f"output: more than {self.limits['output_kib']} KiB printed")

    def _drain(self):
        """Takes what was printed before an answer, so that the limit on output does not depend on timing."""
        poll = select.poll()
        for fd, name in self._sources.items():
            if name != "reply":
                poll.register(fd, select.POLLIN)
        while ready := [fd for fd, event in poll.poll(0) if event & select.POLLIN and fd in self._sources]:
            for fd in ready:
                self._read(fd, ending=True)

    # -------------------------------------------------------------------------------------------------- measure and end

    def _cpu_now(self):
        if self._clock is None:
            return None
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return None

    def _check_cpu(self):
        used = self._cpu_now()
        if used is not None:
            self.cpu_seconds = max(self.cpu_seconds, used - self._baseline)
        if self.started and self.cpu_seconds > self.limits["cpu_seconds"]:
            self.end("timeout", f"cpu_time: more than {self.limits['cpu_seconds']:g} s of CPU time")

    def end(self, outcome, detail):
        """Ends the process; raises the Ended that counts, which is the first."""
        if self.ended is None:
            self.ended = Ended(outcome, detail)
        self.kill()
        raise self.ended

    def close(self):
        """Ends the process after a pass: nothing more is asked, and whoever talked unasked or took too long fails."""
        if self.ended is None:
            self._check_cpu()
            if select.select([self._reply], [], [], 0)[0]:
                part = os.read(self._reply, 1)
                if part:
                    self.end("violation", "protocol: an answer to no question")
                self._ended_by_itself()
            self._drain()
        self.kill()

    def kill(self):
        """Kills and reaps; no process of the jail is left when it returns."""
        if self._pidfd is not None and self._status is None:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._status is None and (self._pidfd is None or not self.isolated):
            os.kill(self._process.pid, signal.SIGKILL)  # not Popen.kill, which would reap it where it has ended already
        self._reap()
        for fd in list(self._open):
            self._close(fd)
        self._sources = {}

    def _reap(self):
        if self._status is not None:
            return
        _, status, usage = os.wait4(self._process.pid, 0)
        self._status = self._process.returncode = os.waitstatus_to_exitcode(status)
        used = usage.ru_utime + usage.ru_stime - self._baseline
        if self.started and self._clock is not None and used > self.cpu_seconds:
            self.cpu_seconds = used

    def _ended_by_itself(self):
        """The pipe of answers is closed: by a process that has ended, or by one that goes on without it."""
        for _ in range(200):
            if self._pidfd is None or select.select([self._pidfd], [], [], 0.01)[0]:
                break
            self._check_cpu()
        else:
            self.end("violation", "protocol: the solution closed the pipe of the answers")
        self._drain()
        self._reap()
        self._judge_exit()

    def _judge_exit(self, crash_only=False):
        code = self._status
        if self.started:
            self._check_cpu()
            if code in (system_calls.KILLED, -signal.SIGSYS):
                self.end("violation", "system_call: the solution made a system call that the jail forbids")
            if not crash_only:
                self.end("error", f"exited: {exit_text(code)} before the tests ended")
        elif not crash_only:
            said = printable(bytes(self.printed["stderr"]).decode("utf-8", "replace"))
            self.end("infra", f"the jail did not start: {exit_text(code)}: {said}")

    @property
    def wall_seconds(self):
        return time.monotonic() - self._start


def _widen(pipe, size):
    """Lets a pipe hold more than may be printed: Node.js keeps what does not fit for later, and later may not come."""
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, size + 65536)
    except OSError:
        pass  # beyond what this system gives to a user


def exit_text(code):
    """What an exit code says, a signal by its name."""
    number = -code if code < 0 else code - 128
    if code < 0 or 128 < code < 160:
        try:
            return f"ended by {signal.Signals(number).name}"
        except ValueError:
            pass
    return f"ended with exit code {code}"


def printable(text, most=300):
    """One line without control characters, shortened: it goes to terminals."""
    text = " ".join(str(text).split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= most else text[: most - 3] + "..."


assert sys.platform == "linux"
