"""Does what the `console` blocks of a document say, in real terminals, and compares what comes with what is written there.

Usage: transcript.py DOCUMENT [OLD=NEW...]; OLD is replaced by NEW in commands and expected output (a port, a path).
A block begins with ```console: each command ends. In a block that begins with ```console terminal=NAME, a terminal of its own, it
stays, and is waited for until all that is written there has come. `$ ` begins a command, which may go
on over lines that begin with `> `; `^C` is Ctrl-C. What follows is what must come: `...` alone is any number of lines, within a
line any text. A block that begins with no command is more of what runs in its terminal. Prints a JSON line for each command; ends with 1 at the first difference.
"""
import json, os, pty, re, select, signal, struct, sys, termios, time, fcntl

DEADLINE_S = 60
PROMPT = "transcript-prompt> "
MAIN = "main"


class Terminal:
    def __init__(self):
        self.process, self.descriptor = pty.fork()
        if self.process == 0:
            os.environ.update(PS1=PROMPT, PS2="", NO_COLOR="1", TERM="dumb", HISTFILE="")
            os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        mode = termios.tcgetattr(self.descriptor)
        mode[3] &= ~termios.ECHO
        termios.tcsetattr(self.descriptor, termios.TCSANOW, mode)
        self.text, self.said = "", ""
        self.until(lambda text: text.endswith(PROMPT))

    def read(self, seconds):
        ready, _, _ = select.select([self.descriptor], [], [], seconds)
        if not ready:
            return
        try:
            self.text += os.read(self.descriptor, 65536).decode(errors="replace").replace("\r\n", "\n").replace("\r", "")
        except OSError:
            raise SystemExit("the terminal has closed")

    def until(self, is_there):
        deadline = time.monotonic() + DEADLINE_S
        while not is_there(self.text):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.read(left)

    def run(self, command, expected, stays):
        """Runs a command until it is over, or, if it stays, until all that is expected has come; `None` waits for more."""
        over = lambda text: text.endswith(PROMPT)
        if command == "^C":
            os.write(self.descriptor, b"\x03")
        elif command is not None:
            # What stayed before has been ended from elsewhere.
            self.until(over)
            self.text = ""
            os.write(self.descriptor, command.encode() + b"\n")
        pattern = r"\s*" + as_pattern(expected)
        begun = re.compile(pattern, re.S)
        stays = stays and command != "^C"
        self.until(lambda text: over(text) or (stays and begun.match(text)))
        if stays and (found := begun.match(self.text)):
            # It goes on after what was expected of it.
            self.said, self.text = self.text[:found.end()], self.text[found.end():]
            return True
        self.said = self.text.removesuffix(PROMPT)
        return over(self.text) and bool(re.fullmatch(pattern + r"\s*", self.said, re.S))

    def close(self):
        os.kill(self.process, signal.SIGHUP)
        os.close(self.descriptor)
        os.waitpid(self.process, 0)


def as_pattern(lines):
    """What `lines` stand for; a line of `...` is any number of lines."""
    parts = []
    for line in lines:
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            words = [re.escape(piece.strip()) for piece in re.split(r"\.\.\.", re.sub(r"\s+", " ", line))]
            parts.append(r"[ \t]*" + "[^\\n]*?".join(word.replace(r"\ ", r"[ \t]+") for word in words) + r"[ \t]*\n")
    return "".join(parts)


def blocks(text):
    """(terminal, [(command, expected lines)...]) of each block."""
    for match in re.finditer(r"^```console(?:[ \t]+terminal=(\S+))?\n(.*?)^```", text, re.S | re.M):
        steps = []
        for line in match[2].splitlines():
            if line.startswith("$ ") or line == "^C":
                steps.append((line.removeprefix("$ "), []))
            elif not steps:
                steps.append((None, [line]))
            elif line.startswith("> ") and not steps[-1][1]:
                steps[-1] = (steps[-1][0] + "\n" + line.removeprefix("> "), [])
            else:
                steps[-1][1].append(line)
        yield match[1] or MAIN, steps


def main(document, *replacements):
    with open(document) as file:
        text = file.read()
    for replacement in replacements:
        old, new = replacement.split("=", 1)
        text = text.replace(old, new)
    terminals, right = {}, True
    try:
        for name, steps in blocks(text):
            terminal = terminals.get(name) or terminals.setdefault(name, Terminal())
            for command, expected in steps:
                right = terminal.run(command, expected, name != MAIN)
                print(json.dumps({"terminal": name, "command": command, "right": right, "expected": expected, "said": terminal.said}), flush=True)
                if not right:
                    return 1
    finally:
        for terminal in terminals.values():
            terminal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
