"""A pyzmq socket that does what one JSON object on the command line says.

Used by pyzmq_interop.rs and by the recorder in src/zmtp/golden.rs. Prints one JSON value per line.
"""

import json
import os
import sys
import time

import zmq
import zmq.auth.thread
from zmq.utils.monitor import recv_monitor_message

order = json.loads(sys.argv[1])
context = zmq.Context()
socket = context.socket(getattr(zmq, order["type"]))
socket.linger = 0
socket.rcvtimeo = 20_000
socket.sndtimeo = 20_000


def say(value):
    print(json.dumps(value), flush=True)


def frames():
    return [bytes.fromhex(frame) for frame in order["frames"]]


def watch():
    """Prints the monitor's events up to the end of the first handshake."""
    monitor = socket.get_monitor_socket()
    socket.connect(order["endpoint"])
    while True:
        if not monitor.poll(20_000):
            sys.exit("no end of the handshake within 20 s")
        event = recv_monitor_message(monitor)
        name = zmq.Event(event["event"]).name
        if name.startswith("HANDSHAKE"):
            say([name, event["value"]])
            return


def serve():
    """Binds, as a CURVE server if it has a key, says its endpoint, and sends everything back."""
    if "refuse" in order:
        authenticator = zmq.auth.thread.ThreadAuthenticator(context)
        authenticator.start()
        directory = order["refuse"]  # a directory without a single key
        authenticator.configure_curve(domain="*", location=directory)
    socket.curve_server = "secret" in order
    socket.bind("tcp://127.0.0.1:*")
    say(socket.last_endpoint.decode())
    while True:
        socket.send_multipart(socket.recv_multipart())


def send_until_killed():
    """A PUB cannot know when it has a subscriber, so it repeats itself."""
    while True:
        socket.send_multipart(frames())
        time.sleep(0.005)


def ask():
    """Sends messages of all sizes and compares what comes back."""
    for size in order["sizes"]:
        message = [b"part", os.urandom(size)]
        socket.send_multipart(message)
        if socket.recv_multipart() != message:
            sys.exit(f"{size} bytes came back changed")
    say("all equal")


if "secret" in order:
    socket.curve_secretkey = order["secret"].encode()
    socket.curve_publickey = order["public"].encode()
if "server" in order:
    socket.curve_serverkey = order["server"].encode()
for metadata in order.get("metadata", []):
    socket.setsockopt(zmq.METADATA, metadata.encode())
if "identity" in order:
    socket.identity = order["identity"].encode()

action = order["action"]
if action == "watch":
    watch()
elif action == "serve":
    serve()
else:
    socket.connect(order["endpoint"])
    for prefix in order.get("subscribe", []):
        socket.subscribe(prefix)
    for prefix in order.get("unsubscribe", []):
        socket.unsubscribe(prefix)
    if action == "send_until_killed":
        send_until_killed()
    elif action == "send":
        for _ in range(order.get("wait_for", 0)):
            say([frame.hex() for frame in socket.recv_multipart()])
        socket.send_multipart(frames())
    elif action == "ask":
        ask()
    elif action == "send_back":
        while True:
            socket.send_multipart(socket.recv_multipart())
    if action in ("send", "receive"):
        # Until the other side has seen enough and ends this process.
        socket.rcvtimeo = -1
        while True:
            say([frame.hex() for frame in socket.recv_multipart()])
