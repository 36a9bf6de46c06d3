"""Every ZeroMQ socket type against a running broker. Usage: socket_table.py SCENARIO CREDENTIALS...; prints one JSON object a line.

The credentials are those of publisher, subscriber and requester, in this order. Where a scenario waits, it waits for a fact the broker tells."""
import json, sys, time
import zmq
from stock import DEADLINE_MS, connect, connected, credentials, say, wait_for


class Observer:
    """Asks the broker what it sees."""

    def __init__(self, creds):
        self.socket = connect(zmq.REQ, creds)

    def ask(self, topic):
        self.socket.send_multipart([topic.encode(), b""])
        status, payload = self.socket.recv_multipart()
        assert status == b"final", (status, payload)
        return json.loads(payload)

    def until(self, topic, holds):
        deadline = time.monotonic() + DEADLINE_MS / 1000
        while time.monotonic() < deadline:
            answer = self.ask(topic)
            if holds(answer):
                return answer
        raise SystemExit(f"{topic} never became so: {answer}")

    def subscribed(self, *filters):
        return self.until("$sys/broker/subscriptions", lambda rows: sorted(row["filter"] for row in rows if not row["serve"]) == sorted(filters))


def texts(socket, last="end"):
    """Messages until one ends with `last`."""
    messages = []
    while True:
        frames = [frame.decode() for frame in socket.recv_multipart()]
        messages.append(frames)
        if frames[-1] == last:
            return messages


def silent(socket):
    return socket.poll(0) == 0


def publish_and_subscribe(publisher, subscriber, requester):
    observer = Observer(requester)
    sub = connected(zmq.SUB, subscriber)
    for prefix in (b"a/", b"a/", b"a/b"):
        sub.subscribe(prefix)
    xsub = connected(zmq.XSUB, subscriber)
    xsub.send(b"\x01a/b")
    everything = connected(zmq.SUB, subscriber)
    everything.subscribe(b"")
    observer.subscribed('"a/"* "a/b"*', '"a/b"*', '""*')

    xpub = connected(zmq.XPUB, publisher)
    say(subscription=xpub.recv().hex())
    send = lambda *frames: xpub.send_multipart(list(frames))
    send(b"a/b", b"one")
    send(b"a/b")
    send(b"a/b", b"two", b"", b"parts")
    for topic in (b"\xff\xfe", b"", b"a//b", b"a/+", b"a/b c"):
        send(topic, b"invalid")
    send(b"a/c", b"only for the first")
    send(b"a/b", b"end")
    say(sub=texts(sub), xsub=texts(xsub), everything=texts(everything))

    sub.unsubscribe(b"a/")
    sub.unsubscribe(b"a/")
    observer.subscribed('"a/b"*', '"a/b"*', '""*')
    send(b"a/c", b"not for it")
    send(b"a/b", b"end")
    say(after_unsubscribe=texts(sub))

    plain = connected(zmq.PUB, publisher)
    deadline = time.monotonic() + DEADLINE_MS / 1000
    # libzmq drops what a PUB sends before the broker's subscription has come.
    while silent(xsub) or b"plain" not in xsub.recv_multipart():
        plain.send_multipart([b"a/b", b"plain"])
        assert time.monotonic() < deadline, "nothing of a plain PUB arrives"
    denials = observer.until("$sys/broker/denials", lambda rows: sum(row["count"] for row in rows) >= 5)
    say(denied=sorted([row["operation"], row["code"], row["count"]] for row in denials))
    rows = observer.until("$sys/broker/ledger", lambda rows: all(row["queued"] == 0 for row in rows))
    written = all(row["written"] == row["delivered"] for row in rows) and any(row["written"] for row in rows)
    say(balances=all(row["balances"] for row in rows), written=written)


def reserved(publisher, subscriber, requester):
    """`$` topics come only for prefixes that begin with `$`; what is refused shows on `$sys/denied`."""
    observer = Observer(requester)
    everything = connected(zmq.SUB, subscriber)
    everything.subscribe(b"")
    events = connected(zmq.SUB, subscriber)
    events.subscribe(b"$sys/denied")
    observer.subscribed('""*', '"$sys/denied"*')
    xpub = connected(zmq.XPUB, publisher)
    xpub.recv()
    xpub.send_multipart([b"forbidden", b"x"])
    topic, payload = events.recv_multipart()
    event = json.loads(payload)
    say(topic=topic.decode(), event={key: event[key] for key in ("peer", "operation", "topic", "code", "count")})
    # A topic the subscriber may not have: left out, and said.
    xpub.send_multipart([b"secret", b"x"])
    topic, payload = events.recv_multipart()
    event = json.loads(payload)
    say(topic=topic.decode(), event={key: event[key] for key in ("peer", "operation", "topic", "code")})
    xpub.send_multipart([b"a/b", b"end"])
    say(everything=texts(everything))
    rows = observer.ask("$sys/broker/ledger")
    say(ledger_denied=sorted([row["topic"], row["subscriber"], row["denied"]] for row in rows if row["denied"]))


def requesters(publisher, subscriber, requester):
    """`count` is served with the parts 1, 2 and the end 3."""
    def asked(kind, *frames):
        socket = connected(kind, requester)
        socket.send_multipart(list(frames))
        answers = []
        while True:
            answers.append([frame.decode() for frame in socket.recv_multipart()])
            if answers[-1][-2] != "more":
                return answers
    say(req=asked(zmq.REQ, b"count", b"x"))
    say(dealer=asked(zmq.DEALER, b"count", b"x"))
    say(delimiter=asked(zmq.DEALER, b"", b"count", b"x"))
    say(envelope=asked(zmq.DEALER, b"id", b"more of it", b"", b"count", b"x"))
    say(topic_alone=asked(zmq.DEALER, b"count"))
    say(denied=asked(zmq.REQ, b"forbidden", b"x"))
    say(denied_dealer=asked(zmq.DEALER, b"id", b"", b"forbidden", b"x"))
    say(invalid=asked(zmq.REQ, b"a//b", b"x"))
    say(not_text=asked(zmq.REQ, b"\xff\xff", b"x"))
    # A REQ goes on after each answer.
    socket = connected(zmq.REQ, requester)
    for _ in range(3):
        socket.send_multipart([b"count", b"x"])
        assert socket.recv_multipart() == [b"final", b"3"]
    say(again=True)


def refused(publisher, subscriber, requester):
    outcomes = {}
    for kind in ("REP", "ROUTER", "PUSH", "PULL", "PAIR"):
        socket, events = connect(getattr(zmq, kind), requester, monitor=True)
        event = wait_for(events, zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
                         zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_SUCCEEDED)
        outcomes[kind] = [event["event"].name, event["value"]]
    say(outcomes=outcomes)
    refusals = Observer(requester).ask("$sys/broker/refusals")
    say(counted=refusals["counts"], texts=[refusal["text"] for refusal in refusals["last"]])


def revoked_while_connected(publisher, subscriber, requester):
    """Says `connected`, then what the socket's monitor says when its key is revoked: the connection ends and the way back is refused."""
    socket, events = connect(zmq.SUB, subscriber, monitor=True, reconnect_ivl=10)
    wait_for(events, zmq.EVENT_HANDSHAKE_SUCCEEDED)
    say(state="connected")
    event = wait_for(events, zmq.EVENT_DISCONNECTED)
    say(event=event["event"].name)
    event = wait_for(events, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    say(event=event["event"].name, value=event["value"])


if __name__ == "__main__":
    scenario, *paths = sys.argv[1:]
    globals()[scenario](*map(credentials, paths))
