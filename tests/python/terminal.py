"""A person at a terminal: runs a command on one, and types an answer after each question, or sends it a signal (`SIGTERM`).

    terminal.py '[["question", "answer"], ...]' COMMAND ARGUMENT...

Prints one JSON object: what the terminal showed, the exit code, and whether the terminal shows what is typed afterwards.
"""

import json
import os
import pty
import select
import signal
import sys
import termios

SECONDS = 30

answers = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if pid == 0:
    # Whoever runs the tests may ignore some, and what is ignored is inherited.
    for ending in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_DFL)
    os.execvp(sys.argv[2], sys.argv[2:])

shown, told = b"", 0
while True:
    ready, _, _ = select.select([terminal], [], [], SECONDS)
    if not ready:
        os.kill(pid, signal.SIGKILL)
        break
    try:
        piece = os.read(terminal, 4096)
    except OSError:
        break
    if not piece:
        break
    shown += piece
    # The silence was begun before the question was shown.
    while answers and answers[0][0].encode() in shown[told:]:
        told = shown.index(answers[0][0].encode(), told) + len(answers[0][0])
        answer = answers.pop(0)[1]
        if answer.startswith("SIG"):
            # Somebody ends it from outside.
            os.kill(pid, getattr(signal, answer))
        else:
            os.write(terminal, answer.encode())
echo = bool(termios.tcgetattr(terminal)[3] & termios.ECHO)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps({"shown": shown.decode(errors="replace"), "code": code, "echo": echo, "unasked": len(answers)}))
