"""The filter of system calls, as a program for the kernel's seccomp, made without a compiler.

Three kinds. Allowed: what an interpreter needs to compute, to allocate and to use its own folder. Violations: what no
honest solution does (new processes, sockets, tracing, mounts, keys, clocks); the kernel ends the process, and the
verdict says so. Everything else is refused as a kernel would that lacks it (EPERM), since libraries try such calls out.

Numbers are those of Linux for x86-64 and aarch64 ("-" where there is none), the two on which the accelerators' hosts
run. Another machine is refused rather than left without a filter. The filter compares numbers and argument registers;
it cannot look behind pointers, so the namespaces are the wall for paths and addresses.
"""

import errno
import platform
import signal
import struct

ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, open 2 -, openat 257 56, openat2 437 437, creat 85 -, close 3 57,
close_range 436 436, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, poll 7 -, ppoll 271 73,
select 23 -, pselect6 270 72, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, madvise 28 233,
msync 26 227, mincore 27 232, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128,
pause 34 -, access 21 -, faccessat 269 48, faccessat2 439 439, pipe 22 -, pipe2 293 59, dup 32 23, dup2 33 -,
dup3 292 24, fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, sync_file_range 277 84, truncate 76 45,
ftruncate 77 46, fallocate 285 47, fadvise64 221 223, readahead 187 213, getdents 78 -, getdents64 217 61,
getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34,
rmdir 84 -, link 86 -, linkat 265 37, unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36, readlink 89 -,
readlinkat 267 78, chmod 90 -, fchmod 91 52, fchmodat 268 53, umask 95 166, utime 132 -, utimes 235 -,
utimensat 280 88, futimesat 261 -, statfs 137 43, fstatfs 138 44, sendfile 40 71, copy_file_range 326 285,
splice 275 76, tee 276 77, sched_yield 24 124, sched_getaffinity 204 123, sched_setaffinity 203 122,
sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
sched_rr_get_interval 148 127, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114,
gettimeofday 96 169, time 201 -, times 100 153, getitimer 36 102, setitimer 38 103, alarm 37 -, timer_create 222 107,
timer_settime 223 110, timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, timerfd_create 283 85,
timerfd_settime 286 86, timerfd_gettime 287 87, getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158,
getpgrp 111 -, getpgid 121 155, getsid 124 156, setsid 112 157, setpgid 109 154, getpriority 140 141,
getrlimit 97 163, setrlimit 160 164, getrusage 98 165, sysinfo 99 179, uname 63 160, getcpu 309 168,
getrandom 318 278, capget 125 90, arch_prctl 158 -, set_tid_address 218 96, set_robust_list 273 99,
get_robust_list 274 100, rseq 334 293, futex 202 98, futex_waitv 449 449, membarrier 324 283, exit 60 93,
exit_group 231 94, wait4 61 260, waitid 247 95, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_ctl_old 214 -, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19,
signalfd 282 -, signalfd4 289 74, mlock 149 228, munlock 150 229, pkey_alloc 330 289, pkey_free 331 290,
pkey_mprotect 329 288, recvfrom 45 207, recvmsg 47 212, shutdown 48 210, getsockname 51 204, getpeername 52 205,
setsockopt 54 208, getsockopt 55 209
"""
VIOLATIONS = """
fork 57 -, vfork 58 -, execveat 322 281, ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271,
process_madvise 440 440, process_mrelease 448 448, kcmp 312 272, pidfd_open 434 434, pidfd_getfd 438 438,
pidfd_send_signal 424 424, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242,
sendmmsg 307 269, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, setns 308 268, unshare 272 97,
open_by_handle_at 304 265, name_to_handle_at 303 264, fsopen 430 430, fsconfig 431 431, fsmount 432 432,
fspick 433 433, open_tree 428 428, move_mount 429 429, mount_setattr 442 442, bpf 321 280, perf_event_open 298 241,
userfaultfd 323 282, keyctl 250 219, add_key 248 217, request_key 249 218, memfd_create 319 279, memfd_secret 447 447,
shmget 29 194, shmat 30 196, shmctl 31 195, shmdt 67 197, semget 64 190, semop 65 193, semctl 66 191,
semtimedop 220 192, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180, mq_unlink 241 181,
settimeofday 164 170, clock_settime 227 112, reboot 169 142, kexec_load 246 104, kexec_file_load 320 294,
init_module 175 105, finit_module 313 273, delete_module 176 106, create_module 174 -, swapon 167 224,
swapoff 168 225, acct 163 89, quotactl 179 60, quotactl_fd 443 443, sethostname 170 161, setdomainname 171 162,
iopl 172 -, ioperm 173 -, syslog 103 116, vhangup 153 58, nfsservctl 180 42, lookup_dcookie 212 18, uselib 134 -,
modify_ldt 154 -, fanotify_init 300 262, fanotify_mark 301 263, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
tkill 200 130, mknod 133 -, mknodat 259 33
"""
CONDITIONAL = """
clone 56 220, clone3 435 435, execve 59 221, prctl 157 167, kill 62 129, tgkill 234 131, ioctl 16 29,
prlimit64 302 261, socket 41 198, socketpair 53 199, sendto 44 206, personality 135 92
"""
PROCESSES = ("fork", "vfork")  # allowed where a toolchain may start processes
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH

_LOAD, _EQUAL, _GREATER, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, JEQ, JGE, JSET, RET with K
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020080  # all CLONE_NEW* flags
_PR_SET_PDEATHSIG = 1
# Names, seccomp itself, flags that bind the process more, and queries; PR_SET_VMA names memory (allocators do).
_PRCTL = (2, 3, 4, 7, 15, 16, 21, 22, 23, 27, 29, 30, 38, 39, 41, 42, 0x53564D41)
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal that started us
_UNIX = 1
_ADDR_NO_RANDOMIZE, _PERSONALITY_QUERY = 0x0040000, 0xFFFFFFFF
KILLED = 128 + signal.SIGSYS  # the exit code that bubblewrap reports


def table(text: str, machine: str) -> dict[str, int]:
    """{name: number} of a table on a machine."""
    column, _ = MACHINES[machine]
    rows = (row.split() for row in text.replace("\n", " ").split(","))
    return {name: int(numbers[column]) for name, *numbers in rows if numbers[column] != "-"}


def supported() -> bool:
    return platform.machine() in MACHINES


def program(
    *, own_pid: int = 1, processes: bool = False, execute: bool = True, tries_sockets: bool = False, machine: str = ""
) -> bytes:
    """The filter as an array of struct sock_filter, which `bwrap --seccomp` reads.

    Args:
      own_pid: the one process that may be signalled: 1 inside its own PID namespace.
      processes: whether new processes may be started.
      execute: whether another program may be loaded; needed once, to start the interpreter.
      tries_sockets: whether opening a socket is refused without ending the process.
      machine: as `platform.machine()` says; default: this one.
    """
    machine = machine or platform.machine()
    numbers = table(CONDITIONAL, machine)
    violations, allowed = table(VIOLATIONS, machine), table(ALLOWED, machine)
    if processes:
        allowed |= {name: violations.pop(name) for name in PROCESSES if name in violations}
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, MACHINES[machine][1], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += _when(_GREATER, 0x40000000, _KILL)  # the x32 interface has other numbers
    fork = _ALLOW if processes else _KILL
    clone = [_op(_BITS, _CLONE_NEW, 0, 1), _op(_RETURN, _KILL), _op(_BITS, _CLONE_THREAD, 0, 1), _op(_RETURN, _ALLOW)]
    code += _call(numbers["clone"], 0, clone, fork)
    code += _when(_EQUAL, numbers["clone3"], _ERRNO | errno.ENOSYS)  # flags behind a pointer; libc then uses clone
    code += _when(_EQUAL, numbers["execve"], _ALLOW if execute else _KILL)
    death = _when(_EQUAL, _PR_SET_PDEATHSIG, _KILL)  # it would outlive us
    code += _call(numbers["prctl"], 0, death + _any(_PRCTL, _ALLOW), _ERRNO | errno.EINVAL)
    code += _call(numbers["kill"], 0, _any((own_pid,), _ALLOW), _ALLOW if processes else _KILL)
    code += _call(numbers["tgkill"], 0, _any((own_pid,), _ALLOW), _ALLOW if processes else _KILL)
    code += _call(numbers["ioctl"], 1, _any(_TERMINAL_INPUT, _KILL), _ALLOW)
    code += _call(numbers["prlimit64"], 0, _any((0, own_pid), _ALLOW), _ERRNO | errno.EPERM)
    refuse = _ERRNO | errno.EACCES
    unix = _any((_UNIX,), refuse)  # the C library looks for a name service
    code += _call(numbers["socket"], 0, unix, refuse if tries_sockets else _KILL)
    code += _call(numbers["socketpair"], 0, _any((_UNIX,), _ALLOW), _KILL)
    code += _call(numbers["sendto"], 4, _any((0,), _ALLOW), _KILL)  # without an address: within a pair
    still = _any((_ADDR_NO_RANDOMIZE, _PERSONALITY_QUERY), _ALLOW)
    code += _call(numbers["personality"], 0, still, _ERRNO | errno.EPERM)
    for number in sorted(allowed.values()):
        code += _when(_EQUAL, number, _ALLOW)
    for number in sorted(violations.values()):
        code += _when(_EQUAL, number, _KILL)
    return b"".join([*code, _op(_RETURN, _ERRNO | errno.EPERM)])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _when(test: int, value: int, action: int) -> list[bytes]:
    return [_op(test, value, 0, 1), _op(_RETURN, action)]


def _any(values, action: int) -> list[bytes]:
    return [op for value in values for op in _when(_EQUAL, value, action)]


def _call(number: int, argument: int, rules: list[bytes], otherwise: int) -> list[bytes]:
    """Rules over the low half of one argument of one call."""
    body = [_op(_LOAD, _ARGUMENTS + 8 * argument), *rules, _op(_RETURN, otherwise)]
    return [_op(_EQUAL, number, 0, len(body)), *body]


def without_execute(machine: str = "") -> bytes:
    """A second filter, for an interpreter that is running: nothing else is loaded in its place."""
    number = table(CONDITIONAL, machine or platform.machine())["execve"]
    return b"".join([_op(_LOAD, _NUMBER), *_when(_EQUAL, number, _KILL), _op(_RETURN, _ALLOW)])
