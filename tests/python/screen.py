"""A person who works with a program that draws on the whole terminal: looks, types, and says what was there.

    screen.py '[["wait", "text"], ["type", "q"], ...]' COMMAND ARGUMENT...

Steps: `wait` until a text is on the screen, `gone` until it is not, `type` keys, `send` a signal by its name, `size` lines
and columns, `look` keeps the screen under a name, `tell` prints a line at once, so that somebody else acts. Prints one JSON object:
the screens, the exit code, whether the terminal's modes are as they were, what the alternate screen and the cursor were left
as, whether a colour was used, and what was written after the alternate screen was left.
"""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

SECONDS = 60
PART = re.compile("\x1b\\[([?]?)([0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[78=>]|([^\x1b]+)", re.S)


class Screen:
    """What stands on the terminal: as much of ECMA-48 as a drawing library uses."""

    def __init__(self, lines, columns):
        self.alternate, self.cursor, self.colored, self.after = False, True, False, ""
        self.decoder, self.rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
        self.resize(lines, columns)

    def resize(self, lines, columns):
        self.lines, self.columns, self.y, self.x = lines, columns, 0, 0
        self.cells = [[" "] * columns for _ in range(lines)]

    def feed(self, data):
        text, at = self.rest + self.decoder.decode(data), 0
        while at < len(text):
            part = PART.match(text, at)
            # An escape sequence whose end has not come yet.
            if part is None:
                break
            at = part.end()
            if part.group(4) is not None:
                self.write(part.group(4))
            elif part.group(3):
                self.control(part.group(1), part.group(2), part.group(3))
        self.rest = text[at:]

    def write(self, text):
        if not self.alternate:
            self.after += text
        for character in text:
            if character == "\r":
                self.x = 0
            elif character == "\n":
                self.y = min(self.y + 1, self.lines - 1)
            elif character >= " " and self.y < self.lines and self.x < self.columns:
                self.cells[self.y][self.x] = character
                self.x += 1

    def control(self, private, numbers, end):
        values = [int(number or 0) for number in numbers.split(";")]
        if private and end in "hl":
            if values[0] == 1049:
                self.alternate, self.after = end == "h", ""
            elif values[0] == 25:
                self.cursor = end == "h"
        elif end == "H":
            self.y = max(values[0], 1) - 1
            self.x = max(values[1] if len(values) > 1 else 1, 1) - 1
        elif end == "J":
            self.cells = [[" "] * self.columns for _ in range(self.lines)]
        elif end == "m":
            self.colored |= any(30 <= value <= 38 or 40 <= value <= 48 or value >= 90 for value in values)

    def text(self):
        return "\n".join("".join(line).rstrip() for line in self.cells)


def resize(terminal, lines, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


steps = json.loads(sys.argv[1])
master, slave = pty.openpty()
resize(master, 24, 80)
# The slave stays open here, so that its modes can be read when the program has ended.
before = termios.tcgetattr(slave)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for stream in (0, 1, 2):
        os.dup2(slave, stream)
    # Whoever runs the tests may ignore some, and what is ignored is inherited.
    for ending in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_DFL)
    os.environ.update(TERM="xterm-256color", LC_ALL="C.UTF-8")
    os.execvp(sys.argv[2], sys.argv[2:])

screen, screens, code = Screen(24, 80), {}, None


def read(seconds):
    """Takes what comes within this time; whether the program still runs."""
    global code
    ready, _, _ = select.select([master], [], [], seconds)
    if ready:
        screen.feed(os.read(master, 65536))
    elif code is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
    return ready or code is None


failed = None
for verb, *values in steps:
    end = time.monotonic() + SECONDS
    if verb in ("wait", "gone"):
        while (values[0] in screen.text()) != (verb == "wait"):
            if not read(0.05) or time.monotonic() > end:
                failed = f"{verb} {values[0]!r}"
                break
    elif verb == "type":
        os.write(master, values[0].encode())
    elif verb == "send":
        os.kill(pid, getattr(signal, values[0]))
    elif verb == "size":
        screen.resize(*values)
        resize(master, *values)
    elif verb == "look":
        screens[values[0]] = screen.text()
    elif verb == "tell":
        print(values[0], flush=True)
    if failed:
        screens["failed"] = screen.text()
        os.kill(pid, signal.SIGKILL)
        break

end = time.monotonic() + SECONDS
while read(0.05):
    if time.monotonic() > end:
        failed = failed or "it did not end"
        os.kill(pid, signal.SIGKILL)
        end += SECONDS
print(json.dumps({
    "failed": failed, "screens": screens, "code": code, "modes_kept": termios.tcgetattr(slave) == before,
    "alternate": screen.alternate, "cursor": screen.cursor, "colored": screen.colored, "after": screen.after,
}))
