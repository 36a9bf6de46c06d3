"""Stock ZeroMQ sockets against a running broker. Usage: stock.py SCENARIO CREDENTIALS [ARGUMENTS]; prints one JSON object a line."""
import json, sys, time, tomllib
import zmq
from zmq.utils.monitor import recv_monitor_message

DEADLINE_MS = 10_000
context = zmq.Context()
# A socket that is collected gives its number to another, whose monitor then finds its address taken.
kept = []


def say(**fields):
    print(json.dumps(fields), flush=True)


def credentials(path):
    with open(path, "rb") as file:
        return tomllib.load(file)


def connect(kind, creds, endpoint=None, server_key=None, monitor=False, **options):
    socket = context.socket(kind)
    socket.linger = 2000
    socket.curve_publickey = creds["public_key"].encode()
    socket.curve_secretkey = creds["secret_key"].encode()
    socket.curve_serverkey = (server_key or creds["broker_key"]).encode()
    socket.rcvtimeo = DEADLINE_MS
    socket.sndtimeo = DEADLINE_MS
    for name, value in options.items():
        setattr(socket, name, value)
    events = socket.get_monitor_socket() if monitor else None
    kept.append(socket)
    socket.connect(endpoint or creds["endpoints"][0])
    return (socket, events) if monitor else socket


def wait_for(events, *wanted):
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while time.monotonic() < deadline:
        if events.poll(200):
            event = recv_monitor_message(events)
            if event["event"] in wanted:
                return event
    raise SystemExit(f"no monitor event {wanted} came")


def connected(kind, creds, **options):
    socket, events = connect(kind, creds, monitor=True, **options)
    wait_for(events, zmq.EVENT_HANDSHAKE_SUCCEEDED)
    return socket


def sub(creds, *prefixes):
    """Subscribes, then relays every message until one ends with b'end'."""
    socket = connect(zmq.SUB, creds)
    for prefix in prefixes:
        socket.subscribe(prefix.encode())
    say(state="subscribed")
    while True:
        frames = socket.recv_multipart()
        say(frames=[frame.decode("latin-1") for frame in frames])
        if frames[-1].endswith(b"end"):
            return


def pub(creds, topic, *payloads):
    """Publishes once the broker's subscription to everything has come (an XPUB sees it)."""
    socket = connect(zmq.XPUB, creds)
    say(subscription=socket.recv().hex())
    for payload in payloads:
        socket.send_multipart([topic.encode()] + [part.encode() for part in payload.split("|")])
    say(state="sent")
    socket.close()
    context.term()


def plain_pub(creds, topic, payload):
    """A PUB repeats its message until it is stopped: libzmq drops what it sends before we subscribe."""
    socket = connect(zmq.PUB, creds)
    while True:
        socket.send_multipart([topic.encode(), payload.encode()])
        time.sleep(0.01)


def req(creds, topic, payload):
    socket = connect(zmq.REQ, creds)
    socket.send_multipart([topic.encode(), payload.encode()])
    say(frames=[frame.decode("latin-1") for frame in socket.recv_multipart()])


def dealer(creds, topic, payload, envelope=""):
    socket = connect(zmq.DEALER, creds)
    head = [part.encode() for part in envelope.split("|")] if envelope else []
    socket.send_multipart(head + [topic.encode(), payload.encode()])
    while True:
        frames = socket.recv_multipart()
        say(frames=[frame.decode("latin-1") for frame in frames])
        if frames[-2] != b"more":
            return


def idle(creds, sockets):
    """Connects so many subscribers, says so, and does nothing."""
    context.max_sockets = int(sockets) * 4 + 10
    watched = [connect(zmq.SUB, creds, monitor=True) for _ in range(int(sockets))]
    for _, events in watched:
        wait_for(events, zmq.EVENT_HANDSHAKE_SUCCEEDED)
        events.close()
    say(state="idle")
    time.sleep(3600)


def refused(creds, kind, server_key=""):
    """What the socket monitor says of a handshake that fails."""
    socket, events = connect(getattr(zmq, kind), creds, server_key=server_key or None, monitor=True)
    names = (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
             zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_SUCCEEDED)
    event = wait_for(events, *names)
    say(event=event["event"].name, value=event["value"])


def plaintext(creds):
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    events = socket.get_monitor_socket()
    socket.connect(creds["endpoints"][0])
    event = wait_for(events, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
                     zmq.EVENT_HANDSHAKE_SUCCEEDED)
    say(event=event["event"].name)


if __name__ == "__main__":
    scenario, path, *arguments = sys.argv[1:]
    globals()[scenario](credentials(path), *arguments)
