"""A stock party of the ledger oracle. Usage: oracle.py sub|pub|req|dealer CREDENTIALS PARTY ENDPOINT; speaks the
language of tests/ledger_oracle/party.rs on standard input and output."""
import os, sys, threading, tomllib
import zmq

role, path, party, endpoint = sys.argv[1:]
with open(path, "rb") as file:
    creds = tomllib.load(file)
context, control = zmq.Context(), zmq.Context()
socket = context.socket({"sub": zmq.SUB, "pub": zmq.XPUB, "req": zmq.REQ, "dealer": zmq.DEALER}[role])
socket.linger = 10_000
socket.sndhwm = socket.rcvhwm = 0
socket.curve_publickey = creds["public_key"].encode()
socket.curve_secretkey = creds["secret_key"].encode()
socket.curve_serverkey = creds["broker_key"].encode()
socket.connect(creds["endpoints"][int(endpoint) % len(creds["endpoints"])])


def say(text):
    sys.stdout.write(f"#{text}\n")
    sys.stdout.flush()


def told(lines):
    """Standard input as a socket, so that one poll waits for both."""
    inner = control.socket(zmq.PAIR)
    inner.bind("inproc://told")
    outer = control.socket(zmq.PAIR)
    outer.connect("inproc://told")

    def relay():
        for line in lines:
            outer.send_string(line.rstrip("\n"))

    threading.Thread(target=relay, daemon=True).start()
    return inner


def publish(numbers, topic, count, size):
    for _ in range(count):
        numbers[topic] = numbers.get(topic, 0) + 1
        socket.send_multipart([topic.encode(), f"{party} {numbers[topic]} ".encode().ljust(size, b".")])
    say(f"pub {topic} {numbers.get(topic, 0)} done")


def ask(first, topic, count):
    """REQ one after the other, DEALER all at once; an answer has the envelope of its request."""
    numbers = range(first, first + count)
    at_once = 1 if role == "req" else count
    for start in range(0, count, at_once):
        batch = numbers[start:start + at_once]
        for number in batch:
            say(f"asked {number}")
            envelope = [] if role == "req" else [str(number).encode(), b""]
            socket.send_multipart(envelope + [topic.encode(), f"{party} {number} ".encode()])
        for expected in batch:
            frames = socket.recv_multipart()
            number = expected if role == "req" else int(frames[0])
            status, payload = frames[-2:]
            if status == b"final":
                sender, echo = payload.split(b" ")[:2]
                say(f"done {number} {sender.decode()} {echo.decode()}")
            else:
                say(f"failed {number} {status.decode()}")
    say("asks")


def receive():
    topic, payload = socket.recv_multipart()
    sender, number = payload[:40].split(b" ")[:2]
    say(f"m 1 0 - {topic.decode()} {sender.decode()} {number.decode()} 0")


commands = told(sys.stdin)
if role == "pub":
    socket.recv()  # libzmq drops what is sent before the broker has subscribed
say("hello")
poller = zmq.Poller()
poller.register(commands, zmq.POLLIN)
poller.register(socket, zmq.POLLIN)
numbers, asked = {}, 1
while True:
    ready = dict(poller.poll())
    if socket in ready:
        receive() if role == "sub" else socket.recv()
        continue  # a command is looked at when nothing waits
    words = commands.recv_string().split(" ")
    if words[0] == "sub":
        socket.subscribe(words[2].encode())
    elif words[0] == "pub":
        publish(numbers, words[1], int(words[2]), int(words[3]))
    elif words[0] == "ask":
        ask(asked, words[1], int(words[2]))
        asked += int(words[2])
    elif words[0] == "close":
        socket.close()
        context.term()  # once the kernel has all that was sent
        say("close")
        os._exit(0)
    else:
        say(" ".join(words))
