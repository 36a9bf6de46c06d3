"""A program that suspends itself or its guardian, once, at one moment of its life: for `tests/suspended.rs`.

Usage: suspends.py LIST WHO MOMENT START
LIST     a file; each start adds its number and the number of a child that has left the group
WHO      program or guardian
MOMENT   before-ready, at-ready, beating or stopping
START    at which of its starts; at earlier ones it fails as soon as it is ready
"""

import os
import signal
import socket
import sys
import time

path, who, moment, at_start = sys.argv[1:]
helper = os.fork()
if helper == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "100000"])
with open(path, "a") as file:
    file.write(f"{os.getpid()} {helper}\n")
with open(path) as file:
    start = len(file.readlines())
is_time = start == int(at_start)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect(os.environ["NOTIFY_SOCKET"])


def reach(here):
    if is_time and moment == here:
        os.kill(os.getpid() if who == "program" else os.getppid(), signal.SIGSTOP)


def on_stop(*_):
    reach("stopping")
    # Whoever has suspended its guardian waits to be killed.
    while is_time and moment == "stopping":
        time.sleep(1)
    sys.exit(0)


signal.signal(signal.SIGTERM, on_stop)
reach("before-ready")
while is_time and moment == "before-ready":
    time.sleep(1)
manager.send(b"READY=1")
reach("at-ready")
if start < int(at_start):
    sys.exit("not yet")
while True:
    manager.send(b"WATCHDOG=1")
    reach("beating")
    time.sleep(0.1)
