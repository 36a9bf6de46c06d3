"""A client of the Interlock bus for programs in Python: one file to copy, nothing but pyzmq.

    import interlock

    with interlock.connect() as bus:                # credentials from the runtime, or a file
        bus.serve("greeter/#", lambda request: "hello " + request.text())
        interlock.ready("serving greeter/#")        # requests are routed here: say so
        bus.wait()                                  # until the session ends, which raises SessionLost

All of it blocks and may be used from any thread; one thread of the module's own holds the socket.
What cannot be done raises a `BusError`, whose `exit_code` is the one that Interlock's own programs
would end with. A lost session is not mended: everything in hand ends with `SessionLost`, the program
ends too, and its supervisor starts it again.

What must not be lost is published durably, through the runtime's outbox. It is on disk when this returns, and is
sent until each consumer named for its topic has acknowledged it:

    bus.publish_durable("orders/new", {"id": 7}, key="customer 12")   # in order for each key; may be repeated with its id

    inbox = interlock.Inbox("orders.db")            # a table in your own SQLite database

    def take(delivery):
        with inbox.once(delivery) as db:            # one transaction for the effect and the message's id, then the ack
            db.execute("INSERT INTO orders VALUES (?)", (delivery.text(),))

    bus.consume("orders/#", take, inbox=inbox)      # as the consumer of this name: the outbox has a route to it

Without a database of yours: `delivery.ack()` when the effect has happened, `delivery.retry(reason)` for later,
`delivery.reject(reason)` for never. A handler that raises, or says nothing, gets it again later.

The protocol is described in `bus/WIRE.md`. Needs Python 3.11 and pyzmq on a libzmq with CURVE and
ZMQ_METADATA (the wheels have both). Linux.
"""

import collections
import contextlib
import functools
import json
import logging
import os
import queue
import socket as unix
import sqlite3
import struct
import sys
import threading
import time
import tomllib
import uuid

import zmq
from zmq.utils.monitor import parse_monitor_message

HELLO, SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE, PUBLISH, DELIVER, REQUEST, REPLY, REPLY_END = range(1, 10)
CANCEL, CREDIT, PING, DENIED, GAP, SCHEMA, GOODBYE, ORIGIN, ACCEPTED, FRAGMENT = range(10, 20)
WILL = 21
SERVE, RETAINED, PROBES = 1, 2, 4  # flags of subscribe
RETAIN, ACKNOWLEDGE, PARTS = 1, 2, 4  # flags of a block
DONE, FAILED, NO_RESPONDERS, STATUS_DENIED, TIMED_OUT, SERVER_GONE, CANCELLED, BUSY = range(8)
OF_SUBSCRIPTION, OF_REQUEST, OF_TOPIC = range(3)  # scopes of credit
OPERATIONS = ("publish", "subscribe", "serve", "request")
OVERFLOW = {"drop_newest": 0, "drop_oldest": 1, "latest_only": 2, "disconnect": 3, "wait": 4}
PUT, CONSUME, INBOX = "outbox/put/", "outbox/consume/v1", "inbox/"  # topics of durable delivery
KEY_FACT, DELIVERY_FACT = 8, 9  # tags in a header
TEXT, JSON, BYTES = "text/plain; charset=utf-8", "application/json", ""

MAJOR, MINOR = 1, 0
BATCH_BYTES = 64 << 10  # what a box aims at
RECORD_BYTES_MAX = 256 << 10  # a longer record travels in fragments
PAYLOAD_BYTES_MAX = 64 << 20
OUTGOING_BYTES = 8 << 20  # what may wait for the socket; then publishing waits
CREDIT_BYTES = 1 << 20  # consumed bytes after which credit is given: a quarter of the broker's window
WINDOW = 64  # parts of a streamed answer that may come ahead of us
REQUESTS_MAX = 256  # requests in hand; a further one is answered `busy`
WRITE_SECONDS = 10  # how long the broker may take nothing
NEVER_MS = 3_600_000  # until the next try of libzmq to connect; the socket is closed long before
LAST_WORD_SECONDS = 0.05  # how long the broker's goodbye may follow the news that the connection is closed
KEY_BYTES_MAX = 255  # of an ordering key
SECONDS_MAX = 1e9  # of a timeout
RETRY_SECONDS = 0.1  # between two rounds of attempts to reach a broker

log = logging.getLogger("interlock")


class BusError(Exception):
    """Why something cannot be done. `exit_code` is that of Interlock's own programs."""

    exit_code = 1


class Misuse(BusError, TypeError, ValueError):
    """An argument is of a kind or size that cannot be sent. Nothing was sent."""

    exit_code = 2


class Unreachable(BusError):
    """No broker answered within the time."""

    exit_code = 3


class Refused(BusError):
    """The broker refuses the key, or is not the one in the credentials."""

    exit_code = 4


class Denied(BusError):
    """The key may not do this, or the broker does not allow it now. `code` says which."""

    exit_code = 4

    def __init__(self, code, topic, text):
        super().__init__(f"denied ({code}) on `{topic}`: {text}")
        self.code, self.topic = code, topic


class TimedOut(BusError):
    """No answer within the time."""

    exit_code = 3


class NoResponders(BusError):
    """Nobody serves the topic."""

    exit_code = 3


class Full(BusError):
    """The broker takes too little: the queue to it stayed full, or the topic is held by a full subscriber."""

    exit_code = 7


class RequestFailed(BusError):
    """The server said that it failed, is busy, or is gone. `code` says which."""

    def __init__(self, code, text):
        super().__init__(f"the request failed ({code}): {text}")
        self.code, self.text, self.exit_code = code, text, 5 if code == "busy" else 1


class NotAccepted(BusError):
    """The outbox did not take the message: nothing of it is kept. `code` says why."""

    def __init__(self, code, text):
        super().__init__(f"not accepted ({code}): {text}")
        self.code = code
        self.exit_code = {
            "too_large": 2, "no_consumers": 2, "other_content": 2, "invalid": 2, "busy": 5, "shutting_down": 5,
            "disk": 6, "bytes_full": 7, "disk_low": 7, "damaged": 8,
        }.get(code, 1)


class OutboxFull(NotAccepted):
    """As many messages are unfinished as may be: `current` of `max`."""

    def __init__(self, current, max, text):
        super().__init__("outbox_full", text)
        self.current, self.max, self.exit_code = current, max, 7


class Unconfirmed(BusError):
    """Nobody knows whether the message was accepted. Publish it again with this `id`: it is kept once."""

    exit_code = 3

    def __init__(self, message_id, reason):
        super().__init__(f"whether {message_id} was accepted is not known: {reason}")
        self.id, self.reason = message_id, reason


class Seen(BusError):
    """The effect of this delivery has happened before; it was acknowledged."""


class _Again(Exception):
    """This `error` passes by itself: the same is tried again."""

    def __init__(self, error):
        self.error = error


class Cancelled(BusError):
    """The requester wants no more."""


class SessionLost(BusError):
    """The session with the broker is over. `code` is the word with which the broker ended it, "" if it said none."""

    def __init__(self, text, code=""):
        super().__init__(text)
        self.code = code


Acknowledgement = collections.namedtuple("Acknowledgement", "subscribers dropped")
Acknowledgement.__doc__ = "The message is in the queues of `subscribers`; `dropped` lost it, theirs was full."

Accepted = collections.namedtuple("Accepted", "id number again")
Accepted.__doc__ = "The message is on disk under `id`; `number` is its place; `again`: it was there before."

Gap = collections.namedtuple("Gap", "count reason")
Gap.__doc__ = "`count` messages are missing before the next one; `None` if nobody knows how many."


class Message:
    """What came. `payload` is bytes; `origin` the registered name of the sender, proven by its key."""

    def __init__(self, topic, origin, sequence, header, payload, retained=False):
        self.topic, self.origin, self.sequence, self.payload = topic, origin, sequence, payload
        self.retained = retained
        self.id, self.published_at_ns, self.content_type, self.key, self._mark = _header_of(header)

    def text(self):
        return self.payload.decode(errors="replace")

    def json(self):
        return json.loads(self.payload)

    def __repr__(self):
        return f"Message({self.topic!r}, origin={self.origin!r}, {len(self.payload)} bytes)"


class Request(Message):
    """A request in hand. The handler's return value is the end of the answer; parts may go before it."""

    def __init__(self, bus, number, window, deadline_ms, *message):
        super().__init__(*message)
        self._bus, self._number, self._window, self._allowed = bus, number, window, window
        self._sent, self._ended, self._changed = 0, False, threading.Condition()
        self.deadline_ms, self.cancelled = deadline_ms, False

    def reply(self, payload):
        """Sends one part. Waits while the requester has not taken those before; raises `Cancelled`."""
        record = struct.pack("<BQ", REPLY, self._number) + _part(payload)
        with self._changed:
            self._changed.wait_for(lambda: self.cancelled or self._sent < self._allowed)
            if self.cancelled:
                raise Cancelled(f"the request on `{self.topic}` was cancelled")
            self._sent += 1
        self._bus._put(record)

    def end(self, payload=None):
        """Ends the answer, with a last part unless it is `None`."""
        self._finish(DONE, "", "", payload)

    def fail(self, code, text, payload=None):
        """Ends the answer with an error, and a last part that says more unless it is `None`."""
        self._finish(FAILED, code, text, payload)

    def _finish(self, status, code, text, payload):
        # What cannot be sent is no end: another one may follow.
        record = struct.pack("<BQB", REPLY_END, self._number, status) + _text8(code) + _text16(text)
        record += b"\0\0" if payload is None else _part(payload)
        with self._changed:
            if self._ended or self.cancelled:
                return
            self._ended = True
        self._bus._put(record)

    def _credit(self, parts):
        with self._changed:
            self._allowed = max(self._allowed, self._window + parts)
            self._changed.notify_all()

    def _cancel(self):
        with self._changed:
            self.cancelled = True
            self._changed.notify_all()


class Delivery(Message):
    """One attempt to deliver one message that was published durably. `origin` is its publisher.

    It waits until it was said what became of it: `ack`, `retry` or `reject`. What is said when the outbox has given the
    attempt up (`cancelled`) is not heard; the message comes again.
    """

    def __init__(self, request, topic, inbox, let_go):
        self.number, self.attempt, self.accepted_ms, self.origin = request._mark
        self.topic, self.sequence, self.payload, self.retained = topic, request.sequence, request.payload, False
        self.id, self.published_at_ns, self.content_type = request.id, request.published_at_ns, request.content_type
        self.key, self._request, self._inbox, self._said = request.key, request, inbox, threading.Event()
        self._let_go = let_go

    @property
    def cancelled(self):
        return self._request.cancelled

    def ack(self):
        """The effect has happened. The inbox remembers it before the outbox hears of it."""
        if self._inbox:
            self._inbox.record(self.id)
        self._let_go()
        self._request.end()
        self._said.set()

    def retry(self, reason="retry"):
        """It did not work this time; it comes again by the outbox's schedule."""
        self._let_go()  # before the outbox hears of it: the next attempt may come at once
        self._request.fail("retry", reason)
        self._said.set()

    def reject(self, reason="rejected"):
        """It will never work; it becomes a dead letter with this reason."""
        self._let_go()
        self._request.fail("rejected", reason)
        self._said.set()

    def __repr__(self):
        return f"Delivery({self.topic!r}, number={self.number}, attempt={self.attempt})"


class Consumer:
    """Deliveries for one filter: made by `Bus.consume` without a handler. Iterate over it, or `get`.

    Asking for the next one lets go of one that nothing was said of: it comes again.
    """

    def __init__(self, bus):
        self._bus, self._items, self._last = bus, queue.SimpleQueue(), None

    def get(self, timeout=None):
        """The next delivery; raises `TimedOut` after `timeout` seconds, `SessionLost` at the end."""
        deadline = None if timeout is None else time.monotonic() + _seconds(timeout)
        if self._last and not self._last._said.is_set():
            self._last.retry("nothing was said of it")
        self._last = None
        while True:
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            try:
                delivery = self._items.get(timeout=max(0.0, left))
                if delivery.cancelled:
                    continue  # the outbox has given this attempt up, and makes another one
                self._last = delivery
                return delivery
            except queue.Empty:
                if self._bus._lost:
                    raise self._bus._lost from None
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimedOut(f"no delivery came within {timeout} s") from None

    def __iter__(self):
        while True:
            yield self.get()

    def _take(self, delivery):
        """On the thread of the request: until something was said, or nobody waits for it."""
        self._items.put(delivery)
        while not delivery._said.wait(1.0) and not delivery.cancelled:
            pass


class Inbox:
    """Ids of messages whose effect has happened, in a table (`interlock_inbox`) of a SQLite database of yours.

    `once` writes the id in the transaction of the effect, so that it happens once whatever dies when. The last `keep` ids
    are remembered.
    """

    def __init__(self, path, *, keep=1_000_000):
        self.path, self.keep = path, _whole("keep", keep, 1, (1 << 63) - 1)
        with contextlib.closing(self.connect()) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS interlock_inbox "
                "(number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE)"
            )

    def connect(self):
        """A connection as `once` gives it: what is committed survives a loss of power."""
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        db.execute("PRAGMA synchronous = FULL")
        return db

    def seen(self, message_id):
        with contextlib.closing(self.connect()) as db:
            return self._seen(db, message_id)

    def record(self, message_id):
        """Remembers it by itself. A crash between the effect and this repeats the effect; `once` does not."""
        with contextlib.closing(self.connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            self._record(db, message_id)
            db.execute("COMMIT")

    @contextlib.contextmanager
    def once(self, delivery):
        """The block is a transaction on the connection it is given; at its end the id is written, all is committed, and
        the delivery acknowledged. If the block raises, nothing of it has happened. Raises `Seen` instead if it had."""
        with contextlib.closing(self.connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                if self._seen(db, delivery.id):
                    delivery._inbox = None  # there is nothing left to remember
                    delivery.ack()
                    raise Seen(f"{delivery!r} was seen before")
                yield db
                self._record(db, delivery.id)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        delivery._inbox = None
        delivery.ack()

    def _seen(self, db, message_id):
        return db.execute("SELECT 1 FROM interlock_inbox WHERE id = ?", (message_id.bytes,)).fetchone() is not None

    def _record(self, db, message_id):
        if not self._seen(db, message_id):
            added = db.execute("INSERT INTO interlock_inbox (id) VALUES (?)", (message_id.bytes,))
            db.execute("DELETE FROM interlock_inbox WHERE number <= ?", (added.lastrowid - self.keep,))


class Subscription:
    """What came for one filter: iterate over it, or `get`. Items are `Message` and `Gap`."""

    def __init__(self, bus, number, pattern):
        self._bus, self._number, self.filter = bus, number, pattern
        self._items, self._total, self._owed_bytes = queue.SimpleQueue(), 0, 0

    def get(self, timeout=None):
        """The next item; raises `TimedOut` after `timeout` seconds, `SessionLost` at the end.

        Asking for it tells those who probe this subscription that everything before it was taken.
        """
        deadline = None if timeout is None else time.monotonic() + _seconds(timeout)
        while True:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                item, settle = self._items.get(timeout=left)
            except queue.Empty:
                raise TimedOut(f"nothing came for `{self.filter}` within {timeout} s") from None
            if isinstance(item, BusError):
                self._items.put((item, None))
                raise item
            if settle:
                settle()
            if item is not None:
                return item

    def __iter__(self):
        while True:
            yield self.get()

    def close(self):
        """Unsubscribes. What came already can still be taken."""
        self._bus._subscriptions.pop(self._number, None)
        self._bus._put(struct.pack("<BI", UNSUBSCRIBE, self._number))
        self._items.put((SessionLost(f"`{self.filter}` was unsubscribed"), None))

    def _consumed(self, size):
        self._total += 1
        self._owed_bytes += size
        if self._owed_bytes >= CREDIT_BYTES or self._items.empty():
            self._owed_bytes = 0
            self._bus._put(struct.pack("<BBQQ", CREDIT, OF_SUBSCRIPTION, self._number, self._total), True)


class Stream:
    """The answer to a request: iterate over its parts. Raises what the request ended with."""

    def __init__(self, bus, number, topic, deadline):
        self._bus, self._number, self._topic, self._deadline = bus, number, topic, deadline
        self._items, self._taken, self._over = queue.SimpleQueue(), 0, False

    def __iter__(self):
        return self

    def __next__(self):
        if self._over:
            raise StopIteration
        try:
            # The broker ends a request at its deadline; the second more is for its word to arrive.
            item = self._items.get(timeout=max(0.0, self._deadline - time.monotonic()) + 1)
        except queue.Empty:
            self.cancel()
            raise TimedOut(f"no answer on `{self._topic}` within the time") from None
        if isinstance(item, BusError):
            self._over = True
            raise item
        if item is None:
            self._over = True
            raise StopIteration
        self._taken += 1
        if self._taken % (WINDOW // 4) == 0:
            self._bus._put(struct.pack("<BBQQ", CREDIT, OF_REQUEST, self._number, self._taken), True)
        return item

    def cancel(self):
        """Tells the server that no more is wanted."""
        self._over = True
        if self._bus._streams.pop(self._number, None):
            self._bus._put(struct.pack("<BQ", CANCEL, self._number), True)


class Bus:
    """A session with the broker. Made by `connect`."""

    def __init__(self, socket, monitor, hello, rest):
        self.name, self.epoch = hello
        self.denied = 0  # publishes that were refused without anybody waiting for the answer
        self._socket, self._monitor, self._rest = socket, monitor, rest
        self._lock = threading.Condition()
        self._outgoing, self._outgoing_bytes = collections.deque(), 0
        self._numbers, self._sequence = iter(range(1, 1 << 32)), 0
        self._subscriptions, self._handlers, self._streams, self._waiting = {}, {}, {}, {}
        self._requests, self._held, self._origins = {}, set(), {}
        self._fragments, self._lost, self._closing = bytearray(), None, False
        self._work, self._idle_workers, self._workers = queue.SimpleQueue(), 0, []
        self._wake_read, self._wake_write = unix.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._awake = True
        self._thread = threading.Thread(target=self._run, name="interlock", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # What an application calls

    def publish(self, topic, payload, *, retain=False, timeout=WRITE_SECONDS):
        """Hands a message to the broker. Waits while the queue to it is full or the topic is held.

        A refusal comes later and nobody waits for it: it is logged and counted in `denied`.
        """
        self._publish(topic, payload, RETAIN if retain else 0, timeout, None)

    def publish_acknowledged(self, topic, payload, *, retain=False, timeout=WRITE_SECONDS):
        """Returns an `Acknowledgement` when the message is in the queues of all subscribers."""
        answer = queue.SimpleQueue()
        flags = ACKNOWLEDGE | (RETAIN if retain else 0)
        reference = self._publish(topic, payload, flags, timeout, answer)
        return self._answer(("publish", reference), answer, timeout, f"publish on `{topic}`")

    def set_will(self, topic, payload, *, retain=False, timeout=WRITE_SECONDS):
        """Leaves a message that the broker publishes if this session ends in any other way than by `close`."""
        _seconds(timeout)
        flags = ACKNOWLEDGE | (RETAIN if retain else 0)
        with self._lock:
            reference = self._sequence + 1
            record = struct.pack("<BB", WILL, 1) + _block(flags, topic, payload, reference, 0)
            self._sequence = reference
        answer = self._waiting["publish", reference] = queue.SimpleQueue()
        self._put(record)
        self._answer(("publish", reference), answer, timeout, f"will on `{topic}`")

    def clear_will(self):
        """Takes the will back."""
        self._put(struct.pack("<BB", WILL, 0))

    def subscribe(self, pattern, *, overflow="drop_newest", messages=0, size=0, group="", retained=False,
                  timeout=WRITE_SECONDS):
        """Returns when the broker has confirmed that what matches `pattern` is routed here from now on.

        `overflow` says what is lost if we are too slow: drop_newest, drop_oldest, latest_only, disconnect,
        or wait (nothing; the publishers wait, which must be permitted). `messages` and `size` (bytes) bound
        the queue at the broker; zero stands for its defaults. One member of a `group` gets each message.
        """
        if not isinstance(overflow, str) or overflow not in OVERFLOW:
            raise Misuse(f"`overflow` is {overflow!r}; give one of {', '.join(OVERFLOW)}")
        bounds = tuple(_whole(name, value, 0, (1 << 32) - 1) for name, value in (("messages", messages), ("size", size)))
        number = self._number()
        subscription = self._subscriptions[number] = Subscription(self, number, pattern)
        flags = PROBES | (RETAINED if retained else 0)
        self._subscribe(number, flags, OVERFLOW[overflow], bounds, pattern, group, timeout)
        return subscription

    def serve(self, pattern, handler, *, group="", timeout=WRITE_SECONDS):
        """Returns when requests that match `pattern` are routed here; `handler(request)` answers each.

        It runs on a thread of its own for every request in hand. What it returns is the answer: text, bytes,
        anything JSON can say, or `None` for an empty end; a generator yields the parts of a streamed one. An
        exception ends the request with the code `handler_failed`, and nothing else.
        """
        _check_handler(handler)
        number = self._number()
        self._handlers[number] = [handler, 0]
        self._subscribe(number, SERVE, OVERFLOW["drop_newest"], (0, 0), pattern, group, timeout)

    def wait_for_subscribers(self, topic, count=1, *, timeout=60.0):
        """Returns the names of those who get what is published on `topic`, once there are so many."""
        answer = self.request("$sys/broker/receivers", {"topic": topic, "at_least": count}, timeout=timeout)
        return [subscriber["peer"] for subscriber in answer.json()["subscribers"]]

    def probe(self, topic, peer, *, timeout=60.0):
        """Returns when `peer` has taken all that was published on `topic` before; `False` if it cannot tell."""
        question = {"topic": topic, "peer": peer}
        return self.request("$sys/broker/probe", question, timeout=timeout).json()["proof"] == "proven"

    def request(self, topic, payload=b"", *, timeout=60.0):
        """Asks, and returns the answer's last part; `None` if the answer is empty."""
        answer = None
        for answer in self.request_stream(topic, payload, timeout=timeout):
            pass
        return answer

    def request_stream(self, topic, payload=b"", *, timeout=60.0):
        """Asks, and returns a `Stream` of the answer's parts. `timeout` (seconds) is for all of it."""
        data, content_type = _encoded(payload)
        return self._ask(topic, data, _header(content_type), timeout)

    def _ask(self, topic, data, header, timeout):
        deadline_ms = int((time.time() + _seconds(timeout)) * 1000)
        block, number = _block_of(0, topic, header, data, 0, deadline_ms), self._number()
        stream = self._streams[number] = Stream(self, number, topic, time.monotonic() + timeout)
        try:
            self._put(struct.pack("<BQII", REQUEST, number, 0, WINDOW) + block, timeout=timeout)
        except BusError:
            self._streams.pop(number, None)
            raise
        return stream

    def publish_durable(self, topic, payload, *, key=None, id=None, timeout=60.0):
        """Publishes durably: returns an `Accepted` when the message is on the outbox's disk.

        Messages with the same `key` (the topic, if there is none) reach each consumer in the order of their acceptance.
        While no outbox serves, or one is lost or starts again, the message is put again with the same id, until `timeout`.
        Raises `Misuse` before anything is sent, `OutboxFull`, another `NotAccepted`, `Denied`, `NoResponders` if no outbox
        runs, `SessionLost` or `Full` if it could not be sent, or `Unconfirmed`: it may have been accepted, and is published
        again with the `id` of that error.
        """
        for name, value, kinds in (("topic", topic, str), ("key", key, (str, type(None))), ("id", id, (uuid.UUID, type(None)))):
            if not isinstance(value, kinds):
                wanted = "a uuid.UUID" if name == "id" else "text"
                raise Misuse(f"`{name}` is {value!r}, a {type(value).__name__}; give {wanted}")
        if key is not None and len(_utf8(key)) > KEY_BYTES_MAX:
            raise Misuse(f"`key` has {len(_utf8(key))} bytes; at most {KEY_BYTES_MAX} are taken")
        if _seconds(timeout) == 0:
            raise Misuse("`timeout` is 0; nothing was sent: give it time to be answered")
        data, content_type = _encoded(payload)
        message_id = id if id and id.int else uuid.UUID(bytes=_header("")[:16])
        header = _header(content_type, message_id, key)
        deadline, pause, doubt = time.monotonic() + timeout, 0.02, None
        while True:
            try:
                return self._put_durably(topic, data, header, message_id, max(0.0, deadline - time.monotonic()))
            except _Again as again:
                error, passes = again.error, True
            except BusError as final:
                error, passes = final, False
            if isinstance(error, Unconfirmed):
                doubt = doubt or error
            # A try that begins too late ends without an answer, and what was known would be in doubt.
            latest = deadline - timeout / 4
            if passes and time.monotonic() + pause < latest:
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
                passes = time.monotonic() < latest
            else:
                passes = False
            if not passes:
                if doubt is None or getattr(error, "code", "") == "other_content":
                    raise error from None
                # An earlier try may have been accepted.
                later = "" if isinstance(error, Unconfirmed) else f"; then {error}"
                raise Unconfirmed(message_id, f"{doubt.reason}{later}") from None

    def _put_durably(self, topic, data, header, message_id, timeout):
        """One try. Raises `_Again` around what passes by itself."""
        # What is raised here was not sent.
        parts, last = self._ask(PUT + topic, data, header, timeout), None
        try:
            for last in parts:
                pass
        except NoResponders as error:
            raise _Again(error) from None
        except (TimedOut, SessionLost) as error:
            raise Unconfirmed(message_id, error) from None
        except RequestFailed as error:
            if error.code in ("dropped", "server_gone"):
                raise _Again(Unconfirmed(message_id, error)) from None
            if error.code == "restarting":
                raise _Again(NotAccepted(error.code, error.text)) from None
            if error.code == "outbox_full":
                figures = last.json() if last else {}
                raise OutboxFull(figures.get("current"), figures.get("max"), error.text) from None
            raise NotAccepted(error.code, error.text) from None
        if last is None:
            raise Unconfirmed(message_id, "the answer is empty")
        answer = last.json()
        return Accepted(uuid.UUID(answer["id"]), answer["number"], answer["again"])

    def consume(self, pattern, handler=None, *, inbox=None, concurrency=1, outbox="outbox", timeout=WRITE_SECONDS):
        """Consumes what is published durably on topics that match, as the consumer of this session's name.

        `handler(delivery)` says what became of each (see `Delivery`), on a thread of its own; up to `concurrency` at a time.
        Without a handler a `Consumer` to iterate over is returned. What `inbox` knows is acknowledged and not given out.
        Deliveries are taken from the peer `outbox` and from nobody else.
        """
        _check_handler(handler, or_none=True)
        _whole("concurrency", concurrency, 1, (1 << 31) - 1)
        if inbox is not None and not isinstance(inbox, Inbox):
            raise Misuse(f"`inbox` is {inbox!r}; give an `Inbox`")
        _utf8(pattern), _utf8(outbox)
        consumer = Consumer(self) if handler is None else None
        handler = handler or consumer._take
        prefix, in_hand, places = f"{INBOX}{self.name}/", {}, threading.Semaphore(concurrency)

        def done_with(request):
            with self._lock:
                if in_hand.get(request.id) is request:
                    del in_hand[request.id]

        def take(request):
            if request._mark is None or request.origin != outbox:
                return request.fail("not_the_outbox", f"deliveries are taken from `{outbox}` only")
            with self._lock:
                if request.id in in_hand:
                    return request.fail("in_hand", "an earlier attempt of it is still in hand")
                in_hand[request.id] = request
            let_go = functools.partial(done_with, request)
            try:
                with places:
                    if not request.cancelled:
                        _deliver(Delivery(request, request.topic.removeprefix(prefix), inbox, let_go), handler)
            finally:
                let_go()

        self.serve(prefix + pattern, take, timeout=timeout)
        try:
            self.request(CONSUME, timeout=timeout)
        except NoResponders:
            pass  # an outbox that starts later asks everybody
        except (Denied, RequestFailed, TimedOut) as error:
            log.warning("the outbox was not told that `%s` serves, and finds out at its next sweep: %s", self.name, error)
        return consumer

    def wait(self):
        """Until the session ends, which raises `SessionLost`; returns after `close`."""
        with self._lock:
            self._lock.wait_for(lambda: self._lost)
        if not self._closing:
            raise self._lost

    def close(self):
        """Sends what waits, says goodbye, and ends the session."""
        try:
            self._put(struct.pack("<B", GOODBYE) + _text8("closing") + _text16(""))
        except BusError:
            pass  # it is over already
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # Sending: any thread

    def _number(self):
        with self._lock:
            return next(self._numbers)

    def _publish(self, topic, payload, flags, timeout, answer):
        deadline = time.monotonic() + _seconds(timeout)
        _utf8(topic)
        with self._lock:
            released = self._lock.wait_for(lambda: self._lost or topic not in self._held, timeout)
            if not released:
                raise Full(f"`{topic}` is held: a subscriber that makes publishers wait was full for {timeout} s")
            reference = self._sequence + 1
            record = struct.pack("<B", PUBLISH) + _block(flags, topic, payload, reference, 0)
            self._sequence = reference
            if answer:
                self._waiting["publish", reference] = answer
            self._put(record, timeout=max(0.0, deadline - time.monotonic()))
        return reference

    def _subscribe(self, number, flags, overflow, bounds, pattern, group, timeout):
        try:
            _seconds(timeout)
            record = struct.pack("<BIBBII", SUBSCRIBE, number, flags, overflow, *bounds)
            record += _text8(pattern) + _text8(group)
            answer = self._waiting["subscribe", number] = queue.SimpleQueue()
            self._put(record)
            self._answer(("subscribe", number), answer, timeout, f"subscription to `{pattern}`")
        except BusError:
            self._subscriptions.pop(number, None)
            self._handlers.pop(number, None)
            raise

    def _answer(self, key, answer, timeout, what):
        try:
            said = answer.get(timeout=timeout)
        except queue.Empty:
            self._waiting.pop(key, None)
            raise TimedOut(f"the broker did not answer the {what} within {timeout} s") from None
        if isinstance(said, BusError):
            raise said
        return said

    def _put(self, record, is_control=False, timeout=WRITE_SECONDS):
        with self._lock:
            def is_over_or_has_room():
                return self._lost or self._outgoing_bytes < OUTGOING_BYTES

            # The thread that empties the queue must never wait for it; what it sends is small and bounded.
            if not is_control and threading.current_thread() is not self._thread:
                if not self._lock.wait_for(is_over_or_has_room, timeout):
                    raise Full(f"the broker took nothing for {timeout} s; {self._outgoing_bytes} bytes wait")
            if self._lost:
                if is_control:
                    return
                raise self._lost
            self._outgoing.append(record)
            self._outgoing_bytes += len(record)
            was_awake, self._awake = self._awake, True
        if not was_awake:
            self._wake()

    def _wake(self):
        try:
            self._wake_write.send(b"\0")
        except OSError:
            pass  # a full pipe wakes as well; a closed one belongs to a session that is over

    # The thread with the socket

    def _run(self):
        try:
            for record in self._records(self._rest):
                self._take(record)
            self._loop()
            reason = SessionLost("the session was closed")
        except BusError as error:
            reason = error
        except Exception as error:  # a record that cannot be read; say so instead of hanging
            reason = SessionLost(f"the broker's records cannot be read: {error!r}")
        self._end(reason)

    def _loop(self):
        poller, pending = zmq.Poller(), collections.deque()
        for readable in (self._socket, self._monitor, self._wake_read):
            poller.register(readable, zmq.POLLIN)
        blocked_since = None
        while True:
            self._gather(pending)
            while pending and self._try_send(pending[0]):
                pending.popleft()
                blocked_since = None
                self._gather(pending)
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if pending else 0))
            if pending:
                blocked_since = blocked_since or time.monotonic()
                if time.monotonic() - blocked_since > WRITE_SECONDS:
                    raise SessionLost(f"the broker took nothing for {WRITE_SECONDS} s")
            elif self._closing:
                return
            for ready, _ in poller.poll(1000 if pending else None):
                if ready is self._socket:
                    self._receive()
                elif ready is self._monitor:
                    self._watch(parse_monitor_message(self._monitor.recv_multipart()))
                else:
                    self._wake_read.recv(4096)

    def _gather(self, pending):
        """Batches of what waits, if the socket has taken those before."""
        if pending:
            return
        with self._lock:
            batch, size = [], 0
            while self._outgoing and not pending:
                record = self._outgoing.popleft()
                self._outgoing_bytes -= len(record)
                if len(record) > RECORD_BYTES_MAX:
                    if batch:
                        pending.append(b"".join(batch))
                        batch = []
                    pending.extend(_fragments(record))
                    break
                batch += (struct.pack("<I", len(record)), record)
                size += len(record) + 4
                if size >= BATCH_BYTES:
                    break
            if batch:
                pending.append(b"".join(batch))
            self._awake = bool(pending)
            self._lock.notify_all()

    def _try_send(self, batch):
        try:
            self._socket.send(batch, zmq.NOBLOCK)
            return True
        except zmq.Again:
            return False

    def _receive(self):
        while True:
            try:
                batch = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            for record in self._records(batch):
                self._take(record)

    def _watch(self, event):
        if event["event"] == zmq.EVENT_DISCONNECTED:
            # The broker's last word, with its reason, may still lie in the socket.
            while self._socket.poll(int(LAST_WORD_SECONDS * 1000)):
                self._receive()
            raise SessionLost("the session with the broker was lost")

    def _records(self, batch):
        at = 0
        while at < len(batch):
            (length,) = struct.unpack_from("<I", batch, at)
            record = batch[at + 4 : at + 4 + length]
            at += 4 + length
            if record[0] != FRAGMENT:
                yield record
                continue
            self._fragments += record[2:]
            if record[1]:
                yield bytes(self._fragments)
                self._fragments.clear()

    def _take(self, record):
        take = self._TAKE.get(record[0])
        if take:  # a kind that we do not know belongs to a later version: skip it
            take(self, _Fields(record[1:]))

    def _on_deliver(self, fields):
        numbers = [fields.take("I") for _ in range(fields.take("B"))]
        _, message = self._message(fields, Message)
        found = [self._subscriptions[number] for number in numbers if number in self._subscriptions]
        # The first one carries the credit, when all have consumed it.
        first, left = self._subscriptions.get(numbers[0]), [len(found)]

        def settle():
            left[0] -= 1
            if left[0] == 0 and first:
                first._consumed(len(message.payload))

        for subscription in found:
            subscription._items.put((message, settle))

    def _on_request(self, fields):
        number, subscription, window = fields.take("QII")
        probed = self._subscriptions.get(subscription)
        if probed:
            # A request to a subscription is a probe: answered when what came before it has been taken.
            def settle():
                probed._consumed(0)
                self._put(struct.pack("<BQB", REPLY_END, number, DONE) + _text8("") + _text16("") + b"\0\0", True)

            return probed._items.put((None, settle))
        handler = self._handlers.get(subscription)
        deadline_ms, request = self._message(fields, Request, self, number, window)
        if handler is None:
            return request.fail("not_served", f"`{request.topic}` is not served any more")
        handler[1] += 1
        self._put(struct.pack("<BBQQ", CREDIT, OF_SUBSCRIPTION, subscription, handler[1]), True)
        if len(self._requests) >= REQUESTS_MAX:
            return request.fail("busy", f"{REQUESTS_MAX} requests are in hand already")
        self._requests[number] = request
        with self._lock:
            needs_worker = self._idle_workers == 0
            self._idle_workers -= not needs_worker
        self._work.put((handler[0], request))
        if needs_worker:
            worker = threading.Thread(target=self._answer_requests, name="interlock-worker", daemon=True)
            self._workers.append(worker)
            worker.start()

    def _message(self, fields, kind, *first):
        flags, topic_bytes, header_bytes, origin, sequence, deadline_ms = fields.take("BBHIQQ")
        topic = fields.bytes(topic_bytes).decode()
        header, payload = fields.bytes(header_bytes), fields.rest()
        if kind is Request:
            first += (deadline_ms,)
        origin = self._origins.get(origin, "")
        return deadline_ms, kind(*first, topic, origin, sequence, header, payload, bool(flags & RETAIN))

    def _on_reply(self, fields):
        stream = self._streams.get(fields.take("Q"))
        if stream:
            stream._items.put(_part_of(fields, stream._topic))

    def _on_reply_end(self, fields):
        number, status = fields.take("QB")
        code, text = fields.text8(), fields.text16()
        stream = self._streams.pop(number, None)
        if not stream:
            return
        last = _part_of(fields, stream._topic)
        if last:
            stream._items.put(last)
        stream._items.put({
            DONE: lambda: None,
            NO_RESPONDERS: lambda: NoResponders(text or f"nobody serves `{stream._topic}`"),
            STATUS_DENIED: lambda: Denied(code or "not_permitted", stream._topic, text),
            TIMED_OUT: lambda: TimedOut(text or f"no answer on `{stream._topic}` within the time"),
            CANCELLED: lambda: Cancelled(f"the request on `{stream._topic}` was cancelled"),
            SERVER_GONE: lambda: RequestFailed("server_gone", text or "the server's session ended"),
            BUSY: lambda: RequestFailed("busy", text or "the server's queue is full"),
        }.get(status, lambda: RequestFailed(code, text))())

    def _on_cancel(self, fields):
        request = self._requests.pop(fields.take("Q"), None)
        if request:
            request._cancel()

    def _on_credit(self, fields):
        scope = fields.take("B")
        if scope == OF_REQUEST:
            number, parts = fields.take("QQ")
            request = self._requests.get(number)
            if request:
                request._credit(parts)
        elif scope == OF_TOPIC:
            granted, topic = fields.take("B"), fields.text8()
            with self._lock:
                self._held.discard(topic) if granted else self._held.add(topic)
                self._lock.notify_all()

    def _on_ping(self, fields):
        number, is_answer = fields.take("QB")
        if not is_answer:
            self._put(struct.pack("<BQB", PING, number, 1), True)

    def _on_denied(self, fields):
        operation, reference = fields.take("BQ")
        denial = Denied(fields.text8(), fields.text8(), fields.text16())
        operation = OPERATIONS[operation] if operation < len(OPERATIONS) else "other"
        waiting = self._waiting.pop(("publish" if operation == "publish" else "subscribe", reference), None)
        if waiting:
            waiting.put(denial)
        else:
            self.denied += 1
            log.warning("%s: %s", operation, denial)

    def _on_gap(self, fields):
        number, count = fields.take("IQ")
        subscription = self._subscriptions.get(number)
        if subscription:
            unknown = (1 << 64) - 1
            subscription._items.put((Gap(None if count == unknown else count, fields.text8()), None))

    def _on_accepted(self, fields):
        reference, subscribers, dropped = fields.take("QII")
        waiting = self._waiting.pop(("publish", reference), None)
        if waiting:
            waiting.put(Acknowledgement(subscribers, dropped))

    def _on_subscribed(self, fields):
        number, since = fields.take("IQ")
        waiting = self._waiting.pop(("subscribe", number), None)
        if waiting:
            waiting.put(since)

    def _on_origin(self, fields):
        number = fields.take("I")
        self._origins[number] = fields.text8()

    def _on_goodbye(self, fields):
        code, text = fields.text8(), fields.text16()
        raise SessionLost(f"the broker says goodbye ({code}): {text}", code)

    _TAKE = {
        SUBSCRIBED: _on_subscribed, DELIVER: _on_deliver, REQUEST: _on_request, REPLY: _on_reply,
        REPLY_END: _on_reply_end, CANCEL: _on_cancel, CREDIT: _on_credit, PING: _on_ping,
        DENIED: _on_denied, GAP: _on_gap, GOODBYE: _on_goodbye, ORIGIN: _on_origin, ACCEPTED: _on_accepted,
    }

    def _end(self, reason):
        """Everything in hand hears why. Nobody is left waiting."""
        with self._lock:
            self._lost = reason
            self._outgoing.clear()
            self._outgoing_bytes = 0
            self._lock.notify_all()
        for subscription in list(self._subscriptions.values()):
            subscription._items.put((reason, None))
        for stream in list(self._streams.values()):
            stream._items.put(reason)
        for waiting in list(self._waiting.values()):
            waiting.put(reason)
        for request in list(self._requests.values()):
            request._cancel()
        for _ in self._workers:
            self._work.put(None)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=1000)

    # The threads with the handlers

    def _answer_requests(self):
        while work := self._work.get():
            handler, request = work
            try:
                _answer_one(handler, request)
            except (Cancelled, SessionLost):
                pass  # nobody is left to be told
            except Exception as error:  # the handler's mistake ends its request, not the program
                log.exception("the handler of `%s` failed", request.topic)
                try:
                    request.fail("handler_failed", str(error))
                except BusError:
                    pass  # the session is over, and so is the request
            self._requests.pop(request._number, None)
            with self._lock:
                self._idle_workers += 1


def _answer_one(handler, request):
    answer = handler(request)
    if hasattr(answer, "__next__"):
        try:
            for part in answer:
                request.reply(part)
        finally:
            if hasattr(answer, "close"):  # a generator's
                answer.close()
        answer = None
    request.end(answer)


def _deliver(delivery, handler):
    """Until it was said what became of it: by the handler, or in its place."""
    try:
        if delivery._inbox and delivery._inbox.seen(delivery.id):
            return delivery.ack()
        handler(delivery)
        problem = "nothing was said of it"
    except Seen:
        return
    except (Cancelled, SessionLost):
        raise
    except Exception as error:  # the handler's mistake costs an attempt, not the program
        log.exception("the handler of `%s` failed", delivery.topic)
        problem = f"{type(error).__name__}: {error}"
    if not delivery._said.is_set():
        delivery.retry(problem)


# ------------------------------------------------------------------------------------- connecting


def connect(credentials=None, *, program=None, timeout=30.0):
    """Connects, and returns a `Bus` when the broker has said hello, or raises what is wrong.

    `credentials` is a file as `interlock keys issue` writes it. `None` takes what the runtime gives its
    children: a descriptor, which can be read once, or the file named in INTERLOCK_CREDENTIALS.
    """
    deadline = time.monotonic() + _seconds(timeout)
    known = load_credentials(credentials)
    endpoints, program = known["endpoints"], program or os.path.basename(sys.argv[0])
    while True:
        for endpoint in endpoints:
            bus = _try_endpoint(known, endpoint, program, deadline)
            if bus:
                return bus
        if time.monotonic() + RETRY_SECONDS >= deadline:
            raise Unreachable(f"no broker answered at {', '.join(endpoints)} within {timeout} s; is it running?")
        time.sleep(RETRY_SECONDS)


def load_credentials(path=None):
    """The content of a credentials file: see `connect`."""
    path = path or os.environ.get("INTERLOCK_CREDENTIALS")
    descriptor = os.environ.pop("INTERLOCK_CREDENTIALS_FD", None)
    if not path and not descriptor:
        raise Refused("no credentials: name a file, or let the runtime start this program")
    with open(path, "rb") if path else os.fdopen(int(descriptor), "rb") as file:
        return tomllib.load(file)


def _try_endpoint(known, endpoint, program, deadline):
    """A `Bus`, or `None` if nothing listens there or the time is over."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.METADATA, b"X-Interlock:1")
    socket.curve_publickey = known["public_key"].encode()
    socket.curve_secretkey = known["secret_key"].encode()
    socket.curve_serverkey = known["broker_key"].encode()
    # A short queue in the socket, so that batches fill while it is busy.
    socket.sndhwm, socket.rcvhwm, socket.linger = 4, 16, 0
    # A session is one connection. `immediate` would not do: it throws away what was received and not yet read when the
    # connection ends, and with it the broker's last word.
    socket.reconnect_ivl = NEVER_MS
    monitor = socket.get_monitor_socket()
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    failed = (zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_CLOSED, zmq.EVENT_DISCONNECTED)
    try:
        socket.connect(endpoint)
        while (left := deadline - time.monotonic()) > 0:
            for ready, _ in poller.poll(left * 1000):
                if ready is socket:
                    hello, rest = _hello(socket.recv())
                    bus = Bus(socket, monitor, hello, rest)
                    socket = None
                    return bus
                event = parse_monitor_message(monitor.recv_multipart())
                if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    record = struct.pack("<BHH", HELLO, MAJOR, MINOR) + _text8(program) + _text8("") + bytes(16)
                    socket.send(struct.pack("<I", len(record)) + record)
                elif event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    raise Refused(
                        f"the broker at `{endpoint}` does not hold the key in the credentials"
                        if event["value"] == 500
                        else f"the broker at `{endpoint}` refuses this key: it is unknown, revoked or without rights"
                    )
                elif event["event"] in failed:
                    return None
        return None
    finally:
        if socket:
            socket.disable_monitor()
            monitor.close(linger=0)
            socket.close(linger=0)


def _hello(batch):
    (length,) = struct.unpack_from("<I", batch)
    fields = _Fields(batch[4 : 4 + length])
    kind = fields.take("B")
    if kind == GOODBYE:
        raise Refused(f"the broker says goodbye ({fields.text8()}): {fields.text16()}")
    major, _minor = fields.take("HH")
    if kind != HELLO or major != MAJOR:
        raise Refused(f"the broker speaks version {major} of the protocol, this module version {MAJOR}")
    _program, name = fields.text8(), fields.text8()
    return (name, fields.bytes(16).hex()), batch[4 + length :]


# ------------------------------------------------------------------- what a supervised program says


def ready(status=""):
    """Tells the runtime that this program is ready. Does no harm if nobody wants to know."""
    if descriptor := os.environ.get("INTERLOCK_READY_FD"):
        os.write(int(descriptor), b"\n")
    _notify("READY=1" + (f"\nSTATUS={status}" if status else ""))


def status(text):
    """What this program does now, for `interlock status`; counts as progress while it starts."""
    _notify(f"STATUS={text}")


def extend(seconds):
    """Asks for so many seconds more to get ready, or to stop."""
    micros = int(_seconds(seconds, "seconds") * 1_000_000)
    _notify(f"EXTEND_TIMEOUT_USEC={micros}")


def heartbeat():
    """Says that this program lives. To be called at least every `heartbeat_seconds()`, if that is given."""
    _notify("WATCHDOG=1")


def heartbeat_seconds():
    """How often the runtime wants a heartbeat, half its limit; `None` if it wants none."""
    limit = os.environ.get("WATCHDOG_USEC")
    return int(limit) / 2_000_000 if limit else None


def _notify(text):
    if address := os.environ.get("NOTIFY_SOCKET"):
        with unix.socket(unix.AF_UNIX, unix.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(_utf8(text))


# ------------------------------------------------------------------------------------ the encoding


class _Fields:
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

    def rest(self):
        return self.bytes(len(self.data) - self.at)

    def text8(self):
        return self.bytes(self.take("B")).decode()

    def text16(self):
        return self.bytes(self.take("H")).decode()


def _utf8(text):
    """The bytes of a text."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Misuse(f"{text[:40]!r} is no text that can be sent: {error.reason} at {error.start}") from None
    except AttributeError:
        raise Misuse(f"{text!r} is a {type(text).__name__}; give text") from None


def _seconds(value, name="timeout"):
    """The value, if it is a time in seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= SECONDS_MAX:
        raise Misuse(f"`{name}` is {value!r}; give seconds, from 0 to {SECONDS_MAX:.0f}")
    return value


def _whole(name, value, least, most):
    """The value, if it is a number within these bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Misuse(f"`{name}` is {value!r}; give a whole number from {least} to {most}")
    return value


def _check_handler(handler, or_none=False):
    if not callable(handler) and not (or_none and handler is None):
        raise Misuse(f"`handler` is {handler!r}; give a function of one argument")


def _text8(text):
    data = _utf8(text)
    if len(data) > 255:
        raise Misuse(f"`{text[:40]}...` has {len(data)} bytes; at most 255 fit")
    return bytes([len(data)]) + data


def _text16(text):
    # What an exception says goes through whatever it is.
    data = str(text).encode(errors="replace")[:65535].decode(errors="ignore").encode()
    return struct.pack("<H", len(data)) + data


def _encoded(payload):
    """Bytes and content type."""
    if isinstance(payload, str):
        data, content_type = _utf8(payload), TEXT
    elif isinstance(payload, (bytes, bytearray, memoryview)):
        data, content_type = bytes(payload), BYTES
    else:
        try:
            # Neither NaN nor half a surrogate pair, of which JSON knows nothing.
            data, content_type = json.dumps(payload, allow_nan=False, ensure_ascii=False).encode(), JSON
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(payload).__name__
            raise Misuse(f"a payload is text, bytes or what JSON can say, and this {kind} is none: {error}") from None
    if len(data) > PAYLOAD_BYTES_MAX:
        raise Misuse(f"the payload has {len(data)} bytes; at most {PAYLOAD_BYTES_MAX} are taken")
    return data, content_type


def _header(content_type, message_id=None, key=None):
    """Message id (UUIDv7, RFC 9562), time, and facts: the content type unless it is plain bytes, the ordering key."""
    now = time.time_ns()
    if message_id is None:
        number = (now // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
        number = number & ~(0xF << 76) | 7 << 76
        number = number & ~(3 << 62) | 2 << 62
        message_id = uuid.UUID(int=number)
    facts = [(1, content_type)] if content_type else []
    if key is not None:
        facts.append((KEY_FACT, key))
    header = message_id.bytes + struct.pack("<QQ", now, len(facts))
    for tag, text in facts:
        data = _utf8(text)
        header += struct.pack("<HQ", tag, len(data)) + data
    return header


def _header_of(data):
    """Id, time, content type, ordering key, and what an outbox says; `None`, 0, "", `None`, `None` if there is no header."""
    if not data:
        return None, 0, BYTES, None, None
    fields, content_type, key, mark = _Fields(data), BYTES, None, None
    message_id, (published_at, count) = uuid.UUID(bytes=fields.bytes(16)), fields.take("QQ")
    for _ in range(count):
        tag, length = fields.take("HQ")
        value = fields.bytes(length)
        if tag == 1:
            content_type = value.decode()
        elif tag == KEY_FACT:
            key = value.decode()
        elif tag == DELIVERY_FACT:
            said = _Fields(value)
            mark = (*said.take("QIQ"), said.text8())
    return message_id, published_at, content_type, key, mark


def _block(flags, topic, payload, sequence, deadline_ms):
    data, content_type = _encoded(payload)
    return _block_of(flags, topic, _header(content_type), data, sequence, deadline_ms)


def _block_of(flags, topic, header, data, sequence, deadline_ms):
    name = _utf8(topic)
    if len(name) > 255:
        raise Misuse(f"the topic has {len(name)} bytes; at most 255 fit")
    prefix = struct.pack("<BBHIQQ", flags, len(name), len(header), 0, sequence, deadline_ms)
    return b"".join((prefix, name, header, data))


def _part(payload):
    data, content_type = _encoded(payload)
    header = _header(content_type)
    return struct.pack("<H", len(header)) + header + data


def _part_of(fields, topic):
    """A part as a message; `None` if there is none."""
    header_bytes = fields.take("H")
    header, payload = fields.bytes(header_bytes), fields.rest()
    return Message(topic, "", 0, header, payload) if header_bytes else None


def _fragments(record):
    for at in range(0, len(record), RECORD_BYTES_MAX):
        piece = record[at : at + RECORD_BYTES_MAX]
        is_last = at + len(piece) == len(record)
        yield struct.pack("<IBB", len(piece) + 2, FRAGMENT, is_last) + piece
