#!/usr/bin/env python3
"""A greeter: a program that is an Interlock actor, with nothing but pyzmq.

It serves `greeter/hello/v1`. A request carries a name as text; the answer is a greeting streamed
word by word, as fast as the requester takes it, and stopped when the requester cancels. Each
greeting that was given is published on `greetings/given`.

    interlock keys issue greeter --serve 'greeter/#' --publish 'greetings/#'
    python3 greeter.py --creds path/to/greeter.toml
    bus request greeter/hello/v1 Ada

Supervised by the runtime it needs no arguments: credentials come through a descriptor, and
readiness is declared when the broker has confirmed that requests are routed here. When the session
ends, the program ends too, and its supervisor starts it again.

The first half of this file is a client of the native protocol (`bus/WIRE.md`), to be copied; the
actor is the second half. Needs Python 3.11 and pyzmq on a libzmq with CURVE and ZMQ_METADATA.
"""

import argparse
import os
import signal
import socket as unix
import struct
import sys
import time
import tomllib
import uuid

import zmq
from zmq.utils.monitor import parse_monitor_message

# ------------------------------------------------------------------------------------ the protocol

HELLO, SUBSCRIBE, SUBSCRIBED, PUBLISH, REQUEST, REPLY, REPLY_END = 1, 2, 3, 5, 7, 8, 9
CANCEL, CREDIT, PING, DENIED, GOODBYE, FRAGMENT = 10, 11, 12, 13, 16, 19
DONE, FAILED = 0, 1
SERVE = 1  # flag of subscribe
DENIED_PUBLISH = 0
CREDIT_OF_SUBSCRIPTION, CREDIT_OF_REQUEST = 0, 1
RECORD_BYTES_MAX = 256 * 1024  # a longer record travels in fragments
REQUESTS_MAX = 256  # requests at once; a further one is answered `busy`
TEXT = b"text/plain; charset=utf-8"


class SessionLost(Exception):
    """The broker ended the session, or cannot be reached. The second argument is the exit code."""


def text8(text):
    data = text.encode()[:255]
    return bytes([len(data)]) + data


def text16(text):
    data = text.encode()[:65535]
    return struct.pack("<H", len(data)) + data


def header():
    """Message id (UUID), time, and one fact: the content type."""
    message_id = uuid.uuid4().bytes
    return message_id + struct.pack("<QQHQ", time.time_ns(), 1, 1, len(TEXT)) + TEXT


class Reader:
    """Takes the fields of a record one after another. Bytes behind the known ones are ignored."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    def bytes(self, count):
        if self.at + count > len(self.data):
            raise struct.error("the record ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def text8(self):
        return self.bytes(self.take("B")).decode()

    def text16(self):
        return self.bytes(self.take("H")).decode()


class Request:
    """A request in hand: `parts` is what the handler still has to say."""

    def __init__(self, request_id, window, parts):
        self.id, self.parts = request_id, parts
        self.window, self.allowed, self.sent = window, window, 0
        self.not_before = 0.0


class Native:
    """A native session: connects, serves one filter with one handler, publishes.

    The handler is a generator: it is given the topic and the payload, and yields text to send as one
    part of the answer, or a number of seconds to wait. It is closed when the requester cancels.
    """

    def __init__(self, credentials, serve, handler):
        self.filter, self.handler = serve, handler
        self.requests, self.consumed, self.sequence = {}, 0, 0
        self.fragments = bytearray()
        self.on_ready = lambda: None
        context = zmq.Context.instance()
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.METADATA, b"X-Interlock:1")
        self.socket.curve_publickey = credentials["public_key"].encode()
        self.socket.curve_secretkey = credentials["secret_key"].encode()
        self.socket.curve_serverkey = credentials["broker_key"].encode()
        self.socket.immediate, self.socket.linger, self.socket.sndtimeo = 1, 1000, 10_000
        self.monitor = self.socket.get_monitor_socket()
        self.socket.connect(credentials["endpoints"][0])
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        self.poller.register(self.monitor, zmq.POLLIN)

    # Sending

    def send(self, *records):
        """One ZMTP message is one batch: each record behind its length."""
        batch = []
        for record in records:
            if len(record) <= RECORD_BYTES_MAX:
                batch.append(struct.pack("<I", len(record)) + record)
                continue
            for at in range(0, len(record), RECORD_BYTES_MAX):
                piece = record[at : at + RECORD_BYTES_MAX]
                is_last = at + len(piece) == len(record)
                batch.append(struct.pack("<IBB", len(piece) + 2, FRAGMENT, is_last) + piece)
        for piece in batch if len(batch) != len(records) else [b"".join(batch)]:
            try:
                self.socket.send(piece)
            except zmq.Again:
                raise SessionLost("the broker took nothing for 10 s", 3) from None

    def publish(self, topic, text):
        self.sequence += 1
        name, head = topic.encode(), header()
        prefix = struct.pack("<BBBHIQQ", PUBLISH, 0, len(name), len(head), 0, self.sequence, 0)
        self.send(prefix + name + head + text.encode())

    def reply(self, request, text):
        head = header()
        self.send(struct.pack("<BQH", REPLY, request.id, len(head)) + head + text.encode())

    def end(self, request, status=DONE, code="", text=""):
        empty_part = struct.pack("<H", 0)
        record = struct.pack("<BQB", REPLY_END, request.id, status) + text8(code) + text16(text)
        self.send(record + empty_part)

    # Receiving

    def records(self, batch):
        at = 0
        while at < len(batch):
            (length,) = struct.unpack_from("<I", batch, at)
            record = batch[at + 4 : at + 4 + length]
            at += 4 + length
            if record[:1] == bytes([FRAGMENT]):
                self.fragments += record[2:]
                if record[1]:
                    yield bytes(self.fragments)
                    self.fragments.clear()
            else:
                yield record

    def take(self, record):
        kind, fields = record[0], Reader(record[1:])
        if kind == HELLO:
            subscription, bounds = 1, (0, 0)
            self.send(
                struct.pack("<BIBBII", SUBSCRIBE, subscription, SERVE, 0, *bounds)
                + text8(self.filter)
                + text8("")
            )
        elif kind == SUBSCRIBED:
            self.on_ready()
        elif kind == REQUEST:
            self.take_request(fields)
        elif kind == CANCEL:
            cancelled = self.requests.pop(fields.take("Q"), None)
            if cancelled:
                cancelled.parts.close()
        elif kind == CREDIT:
            scope, request_id, parts = fields.take("BQQ") if fields.data[0] < 2 else (2, 0, 0)
            request = self.requests.get(request_id)
            if scope == CREDIT_OF_REQUEST and request:
                request.allowed = max(request.allowed, request.window + parts)
        elif kind == PING:
            number, is_answer = fields.take("QB")
            if not is_answer:
                self.send(struct.pack("<BQB", PING, number, 1))
        elif kind == DENIED:
            operation, _reference = fields.take("BQ")
            code, topic, text = fields.text8(), fields.text8(), fields.text16()
            denial = f"denied ({code}) on `{topic}`: {text}"
            if operation != DENIED_PUBLISH:
                raise SessionLost(denial, 4)
            print(f"greeter.py: {denial}", file=sys.stderr)
        elif kind == GOODBYE:
            code, text = fields.text8(), fields.text16()
            raise SessionLost(f"the broker says goodbye ({code}): {text}", 1)

    def take_request(self, fields):
        request_id, subscription, window = fields.take("QII")
        _flags, topic_bytes, header_bytes, _origin, _sequence, _deadline = fields.take("BBHIQQ")
        topic = fields.bytes(topic_bytes).decode()
        fields.bytes(header_bytes)
        payload = fields.data[fields.at :]
        self.consumed += 1
        self.send(struct.pack("<BBQQ", CREDIT, CREDIT_OF_SUBSCRIPTION, subscription, self.consumed))
        request = Request(request_id, window, self.handler(topic, payload))
        if len(self.requests) >= REQUESTS_MAX:
            self.end(request, FAILED, "busy", f"{REQUESTS_MAX} requests are answered already")
        else:
            self.requests[request_id] = request

    # Running

    def run(self):
        """Until the session ends, which raises."""
        while True:
            for socket, _ in self.poller.poll(self.work()):
                if socket is self.monitor:
                    self.watch(parse_monitor_message(self.monitor.recv_multipart())["event"])
                else:
                    for record in self.records(self.socket.recv()):
                        self.take(record)

    def watch(self, event):
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            major, minor, program, nobody, no_epoch = 1, 0, "greeter.py", "", bytes(16)
            self.send(struct.pack("<BHH", HELLO, major, minor) + text8(program) + text8(nobody) + no_epoch)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise SessionLost("the broker refuses this key, or is not the one in the credentials", 4)
        elif event == zmq.EVENT_DISCONNECTED:
            raise SessionLost("the session with the broker was lost", 1)

    def work(self):
        """Says one part for every request that may; returns how long nothing is to be done, in ms."""
        now, wake = time.monotonic(), None
        for request in list(self.requests.values()):
            if request.sent >= request.allowed:
                continue  # its credit will wake us
            if request.not_before <= now:
                self.step(request, now)
            if request.id in self.requests:
                wake = min(wake or request.not_before, request.not_before)
        return None if wake is None else max(0, int((wake - time.monotonic()) * 1000) + 1)

    def step(self, request, now):
        try:
            said = next(request.parts)
        except StopIteration:
            del self.requests[request.id]
            return self.end(request)
        except Exception as error:  # the handler's mistake ends its request, not the program
            del self.requests[request.id]
            return self.end(request, FAILED, "handler_failed", str(error))
        if isinstance(said, str):
            self.reply(request, said)
            request.sent += 1
        else:
            request.not_before = now + said


def load_credentials(path):
    """From a file, or from the descriptor that the runtime passed on, which can be read once."""
    descriptor = os.environ.get("INTERLOCK_CREDENTIALS_FD")
    path = path or os.environ.get("INTERLOCK_CREDENTIALS")
    if path:
        with open(path, "rb") as file:
            return tomllib.load(file)
    if descriptor:
        with os.fdopen(int(descriptor), "rb") as file:
            return tomllib.load(file)
    sys.exit("greeter.py: no credentials; give --creds FILE, or let the runtime start this program")


def declare_ready():
    """A newline on the descriptor in INTERLOCK_READY_FD, or sd_notify's datagram; both do no harm if unused."""
    if descriptor := os.environ.get("INTERLOCK_READY_FD"):
        os.write(int(descriptor), b"\n")
    if address := os.environ.get("NOTIFY_SOCKET"):
        with unix.socket(unix.AF_UNIX, unix.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1\nSTATUS=serving greeter/hello/v1")
    print("greeter.py: ready", flush=True)


# --------------------------------------------------------------------------------------- the actor


def main():
    arguments = argparse.ArgumentParser(description="Greets whoever asks, word by word.")
    arguments.add_argument("--creds", help="credentials file, as `interlock keys issue` writes it")
    arguments.add_argument("--pause", type=float, default=0.2, help="seconds between two words")
    arguments = arguments.parse_args()

    def greet(_topic, payload):
        name = payload.decode(errors="replace").strip() or "stranger"
        for index, word in enumerate(f"Hello {name}, pleased to meet you.".split(" ")):
            yield word if index == 0 else " " + word
            yield arguments.pause
        session.publish("greetings/given", name)

    session = Native(load_credentials(arguments.creds), "greeter/#", greet)
    session.on_ready = declare_ready
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        session.run()
    except KeyboardInterrupt:
        return 0
    except SessionLost as lost:
        reason, exit_code = lost.args
        print(f"greeter.py: {reason}", file=sys.stderr)
        return exit_code


if __name__ == "__main__":
    sys.exit(main())
