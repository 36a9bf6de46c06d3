"""Stops one thread of a process, as nothing but a debugger can: `freeze_thread.py PID NAME`.

Prints `frozen`, or `refused` where the system does not allow it; lets the thread go on when its input ends.
"""

import ctypes
import os
import select
import sys

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
ALL_THREADS = 0x40000000


def ptrace(request: int, thread: int) -> bool:
    return libc.ptrace(request, thread, None, None) == 0


libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
pid, name = int(sys.argv[1]), sys.argv[2]
for thread in map(int, os.listdir(f"/proc/{pid}/task")):
    with open(f"/proc/{pid}/task/{thread}/comm", encoding="ascii") as comm:
        if comm.read().strip() == name:
            break
else:
    sys.exit(f"process {pid} has no thread `{name}`")
if not (ptrace(PTRACE_SEIZE, thread) and ptrace(PTRACE_INTERRUPT, thread)):
    print("refused", flush=True)
    sys.exit(0)
os.waitpid(thread, ALL_THREADS)
print("frozen", flush=True)
# A process that ends waits for us to take note of the end of its thread.
while not select.select([sys.stdin], [], [], 0.05)[0]:
    if os.waitpid(thread, ALL_THREADS | os.WNOHANG) != (0, 0):
        sys.exit(0)
ptrace(PTRACE_DETACH, thread)
