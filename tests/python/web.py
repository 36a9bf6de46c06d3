"""Uses the bus through the gateway as programs on the web do. Usage: web.py SCENARIO URL TOKEN [ARGUMENT...]; prints JSON lines."""
import base64, json, sys, threading, time, urllib.error, urllib.request

import websockets
from websockets.sync import client

TIMEOUT_S = 60


def say(**fields):
    print(json.dumps(fields), flush=True)


class Gateway:
    def __init__(self, url, token):
        self.url, self.token = url, token

    def open(self, method, path, body=None, accept=None):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        if accept:
            headers["Accept"] = accept
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            return error

    def ask(self, method, path, body=None):
        with self.open(method, path, body) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None

    def events(self, method, path, body=None):
        """Events of a stream as they come: name and data."""
        with self.open(method, path, body, "text/event-stream") as answer:
            if answer.status != 200:
                yield "refused", {"status": answer.status, **json.load(answer)}
                return
            yield from self.parse(answer)

    @staticmethod
    def parse(answer):
        name = None
        for line in answer:
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                yield name, json.loads(line[6:])
            elif line.startswith(b":"):
                yield "alive", None


def without_life_signs(events):
    return ((name, data) for name, data in events if name != "alive")


def each_once(gateway):
    """A subscription that is there gets what is published from then on: each message once, in its order, decoded."""
    events = gateway.events("GET", "/v1/bus/subscribe?filter=weather/%23&filter=weather/now")
    # The stream begins when the subscriptions are in the broker's table: the answer's head is there.
    name, _ = next(events)
    assert name == "alive", name
    for number in range(50):
        status, accepted = gateway.ask("POST", "/v1/bus/publish", {"topic": "weather/now", "payload": {"number": number}, "headers": [["place", "here"]]})
        assert status == 200 and accepted["subscribers"] == 1, (status, accepted)
    gateway.ask("POST", "/v1/bus/publish", {"topic": "weather/text", "payload": "sunny"})
    gateway.ask("POST", "/v1/bus/publish", {"topic": "weather/bytes", "payload_base64": base64.b64encode(b"\xff\x00").decode()})
    came = []
    for name, data in without_life_signs(events):
        assert name == "message", (name, data)
        came.append(data)
        if data["topic"] == "weather/bytes":
            break
    assert [one["payload"]["number"] for one in came[:50]] == list(range(50)), came
    assert came[0]["headers"] == [["place", "here"]] and came[0]["origin"] == "operator" and came[0]["encoding"] == "json"
    assert (came[50]["encoding"], came[50]["payload"]) == ("text", "sunny")
    assert (came[51]["encoding"], base64.b64decode(came[51]["payload_base64"])) == ("base64", b"\xff\x00")
    assert len({one["sequence"] for one in came}) == 52
    say(held="each message came once, in order, decoded")


def flood(gateway, topic, messages, size):
    """Publishes through a socket of its own, and returns when the broker has all."""
    with Socket(gateway) as socket:
        for number in range(messages):
            socket.order(op="publish", id=number, topic=topic, payload=f"{number}:".ljust(size, "x"))
            assert socket.word()["op"] == "published"


def slow_reader(gateway):
    """Who does not read loses what there is no room for, and is told how much; nobody else loses anything."""
    messages, size = 600, 48 << 10
    slow, fast = Socket(gateway), Socket(gateway)
    for socket in (slow, fast):
        socket.order(op="subscribe", id=1, filter="flood/#")
        assert socket.word()["op"] == "subscribed"
    stream = gateway.open("GET", "/v1/bus/subscribe?filter=flood/%23")
    taking = threading.Thread(target=flood, args=(gateway, "flood/a", messages, size))
    taking.start()
    got = [fast.word() for _ in range(messages)]
    assert [int(word["payload"].split(":")[0]) for word in got] == list(range(messages)), "the fast one gets all"
    taking.join()
    flood(gateway, "flood/last", 1, 10)

    def account(words):
        came = lost = 0
        for topic, count in words:
            came, lost = came + (topic == "flood/a"), lost + (count or 0)
            if topic == "flood/last" or came + lost == messages + 1:
                break
        assert lost > 0 and came + lost in (messages, messages + 1), (came, lost)
        return lost

    words = iter(slow.word, None)
    lost = account((word.get("topic"), word.get("count") if word["op"] == "lost" else 0) for word in words)
    say(held="a slow socket is told what it lost", lost=lost)
    events = without_life_signs(gateway.parse(stream))
    lost = account((data.get("topic"), data["count"] if name == "lost" else 0) for name, data in events)
    say(held="a slow stream is told what it lost", lost=lost)


def socket(gateway):
    """The socket: orders, their answers, and what comes."""
    with Socket(gateway) as socket:
        socket.order(op="subscribe", id=1, filter="room/#")
        assert socket.word() == {"op": "subscribed", "id": 1}
        for number in range(30):
            socket.order(op="publish", id=100 + number, topic="room/a", payload=number)
        words = [socket.word() for _ in range(60)]
        assert [word["payload"] for word in words if word["op"] == "message"] == list(range(30))
        assert sorted(word["id"] for word in words if word["op"] == "published") == list(range(100, 130))
        socket.order(op="unsubscribe", id=1)
        assert socket.word() == {"op": "unsubscribed", "id": 1}
        socket.order(op="publish", id=2, topic="room/a", payload="nobody")
        assert socket.word()["subscribers"] == 0
        socket.order(op="request", id=3, topic="modelservice/models/v1")
        assert socket.word()["op"] == "reply" and socket.word() == {"op": "end", "id": 3}
        socket.order(op="request", id=4, topic="nobody/serves/this")
        word = socket.word()
        assert (word["op"], word["id"], word["code"]) == ("error", 4, "no_responders"), word
        socket.order(op="ping", id=5)
        assert socket.word() == {"op": "pong", "id": 5}
    say(held="subscribe, publish, unsubscribe, request, ping")
    with Socket(gateway) as socket:
        for number in range(64):
            socket.order(op="subscribe", id=number, filter=f"many/{number}")
            assert socket.word()["op"] == "subscribed"
        socket.order(op="subscribe", id=64, filter="many/64")
        assert socket.word()["code"] == "busy"
        socket.order(op="subscribe", id=3, filter="many/3")
        assert socket.word()["code"] == "id_in_use"
    say(held="subscriptions of a socket are bounded")
    with Socket(gateway, header=True) as socket:
        socket.order(op="hello", token=gateway.token)
        assert socket.word()["code"] == "bad_request"
    say(held="a greeting is said once")
    for first, code in [({"op": "hello", "token": "0" * 64}, 4401), ({"op": "ping"}, 4401), (b"bytes", 1003)]:
        with Socket(gateway, greet=False) as socket:
            socket.order(**first) if isinstance(first, dict) else socket.send(first)
            assert socket.end() == code, first
    say(held="who has no token is closed")
    status, issued = gateway.ask("POST", "/v1/admin/tokens", {"name": "rightless", "scopes": ["bus"]})
    assert status == 201, issued
    own = Gateway(gateway.url, issued["token"])
    for header in (True, False):
        with Socket(own, greet=False, header=header) as socket:
            if not header:
                socket.order(op="hello", token=own.token)
            assert socket.end() == 4403
    say(held="a token without rights is closed as not good for the bus")
    for who in ("server", "client"):
        # Whoever uses the library waits for the server to end the connection.
        with Socket(gateway, close_timeout=TIMEOUT_S) as socket:
            begun = time.monotonic()
            if who == "server":
                socket.send(b"bytes")
                assert socket.end() == 1003
            else:
                socket.socket.close()
            took = time.monotonic() - begun
            assert took < 3, (who, took)
    say(held="a closed socket ends its connection at once")
    for origin, status in [("http://evil.example", 403), (gateway.url, None)]:
        assert Socket.refused(gateway, origin) == status, origin
    assert Socket.refused(gateway, None, "0" * 64) == 401
    say(held="a page of another origin is refused")


def hostile(gateway):
    """Whatever is sent, the gateway answers with an error or closes, and goes on."""
    deep = b"[" * 10_000 + b"]" * 10_000
    bodies = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"topic":1}', b'{"topic":"a//b"}', b'{"topic":"a","payload":' + deep + b"}",
              b'{"topic":"a","payload_base64":"*"}', b'{"topic":"a","payload":1,"payload_base64":"AA=="}', b'{"topic":"$sys/x","payload":1}',
              b'{"topic":"a","headers":[["x"]]}', b'{"topic":"a","timeout_ms":0}', b'{"topic":"a","wait":-1}', b'{"topic":"a","unknown":1}',
              json.dumps({"topic": "a", "headers": [["h", "x" * 70_000]]}).encode()]
    for path in ["/v1/bus/publish", "/v1/bus/request", "/v1/conversations", "/v1/conversations/a/messages"]:
        for body in bodies:
            status, answer = gateway.ask("POST", path, body)
            assert 400 <= status < 500 or (status, path) == (503, "/v1/bus/request"), (path, body[:80], status, answer)
            assert answer["error"]["message"], answer
    for path in ["/v1/bus/topics?filter=%23/a", "/v1/bus/topics/a//b", "/v1/bus/topics/%ff", "/v1/bus/why?peer=a", "/v1/bus/subscribe",
                 "/v1/logs?grep=(", "/v1/logs?level=loud", "/v1/logs?since=soon", "/v1/logs?limit=0", "/v1/bus/rates?since=-1s",
                 "/v1/bus/topics?filter=a&filter=b", "/v1/bus/peers?x=1", "/v1/conversations/a%2Fb", "/v1/admin/dead-letters/x"]:
        status, answer = gateway.ask("GET", path)
        assert 400 <= status < 500 and answer["error"]["message"], (path, status, answer)
    for path, says in [("/v1/logs?limit=-1", "`limit` is `-1`"), ("/v1/bus/rates?series=yes", "`true` or `false`"), ("/v1/status?x=1", "`x`"),
                       ("/v1/models?x=1", "`x`"), ("/health?x=1", "`x`"), ("/health/ready?x=1", "`x`"), ("/health/live?x=1", "`x`"),
                       ("/v1/admin/tokens?x=1", "`x`")]:
        status, answer = gateway.ask("GET", path)
        assert status == 400 and says in answer["error"]["message"], (path, status, answer)
    assert gateway.ask("GET", "/v1/models?api-version=2026-01-01")[0] == 200
    for kind in ("a/b\r\nX: y", "a\u0000b", "\u007f"):
        status, answer = gateway.ask("POST", "/v1/bus/publish", {"topic": "a", "payload": "x", "content_type": kind})
        assert status == 400 and "content_type" in answer["error"]["message"], (kind, answer)
    for path in ("/v1/bus/publish", "/v1/conversations", "/v1/chat/completions"):
        status, answer = gateway.ask("POST", path, b"[]")
        message = answer["error"]["message"]
        assert status == 400 and "list" in message and "object" in message and "struct" not in message, answer
    say(held="bodies and queries that are wrong are refused and named")
    frames = ["", "{", "[]", "null", '{"op":3}', '{"op":"fly","id":1}', '{"op":"subscribe","id":1}', '{"op":"subscribe","id":-1,"filter":"a"}',
              '{"op":"publish","id":1,"topic":"a","payload":' + "[" * 10_000 + "]" * 10_000 + "}", '{"op":"cancel","id":9}', '{"op":"unsubscribe","id":9}']
    with Socket(gateway) as socket:
        for frame in frames:
            socket.send(frame)
        for _ in frames[1:]:
            word = socket.word()
            assert word["op"] == "error" and word["message"], word
        socket.order(op="ping")
        assert socket.word() == {"op": "pong"}
    with Socket(gateway) as socket:
        socket.send("x" * (4 << 20))
        assert socket.end() == 1009
    say(held="messages that are wrong are refused and named")
    for raw in [b"\x81\x02ab", b"\x8f\x80\x00\x00\x00\x00", b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", b"\x81\x82\x00\x00\x00\x00\xff\xfe"]:
        with Socket(gateway) as socket:
            socket.socket.socket.sendall(raw)
            assert socket.end() != 1000, raw
            say(held="a frame that is none ends its own socket")
    assert gateway.ask("GET", "/health")[0] == 200


def guessing(gateway):
    """Wrong tokens in greetings count as those in headers do, and the right one still comes in."""
    codes = []
    for _ in range(9):
        with Socket(gateway, greet=False) as socket:
            socket.order(op="hello", token="interlock_wrong")
            codes.append(socket.end())
    assert codes[0] == 4401 and codes[-1] == 1013, codes
    status, answer = Gateway(gateway.url, "interlock_wrong").ask("GET", "/v1/conversations")
    assert (status, answer["error"]["code"]) == (429, "rate_limited"), answer
    with Socket(gateway):
        say(held="wrong tokens on sockets are limited")


def conversations(gateway):
    """Beginning, naming, hearing, ending and deleting a conversation."""
    status, begun = gateway.ask("POST", "/v1/conversations", {"id": "kitchen", "title": "The kitchen"})
    assert (status, begun["id"], begun["title"], begun["message_count"]) == (201, "kitchen", "The kitchen", 0), begun
    assert gateway.ask("POST", "/v1/conversations", {"id": "kitchen"})[0] == 409
    assert gateway.ask("POST", "/v1/conversations", {"id": "a/b"})[0] == 400
    status, other = gateway.ask("POST", "/v1/conversations", {})
    assert status == 201 and other["id"] and other["title"] == ""
    assert gateway.ask("PATCH", "/v1/conversations/kitchen", {"title": "A kitchen"})[1]["title"] == "A kitchen"
    assert gateway.ask("PATCH", "/v1/conversations/nowhere", {"title": "x"})[0] == 404
    say(held="begun and named")
    heard = gateway.events("GET", "/v1/conversations/kitchen/events")
    assert next(heard)[0] == "alive"
    said = [name for name, _ in without_life_signs(gateway.events("POST", "/v1/conversations/kitchen/messages", {"text": "hello"}))]
    assert said[0] == "started" and said[-1] == "final" and set(said[1:-1]) == {"delta"}, said
    names = []
    for name, data in without_life_signs(heard):
        assert data["conversation"] == "kitchen", data
        names.append(name)
        if name == "final":
            break
    assert names == said, (names, said)
    say(held="whoever listens hears what is said")
    assert gateway.ask("POST", "/v1/conversations/kitchen/cancel")[0] == 409
    assert gateway.ask("POST", "/v1/conversations/nowhere/cancel")[0] == 404
    assert gateway.ask("DELETE", "/v1/conversations/kitchen")[0] == 204
    # Whoever listens hears of it, and the stream ends.
    assert list(without_life_signs(heard)) == [("deleted", {"conversation": "kitchen"})]
    assert gateway.ask("GET", "/v1/conversations/kitchen")[0] == 404
    assert gateway.ask("DELETE", "/v1/conversations/kitchen")[0] == 404
    say(held="deleted with all that was said")


def limited(gateway):
    """A token is good for its scopes, and its peer for its rights on the bus; the broker decides, and remembers."""
    wanted = {"name": "limited", "scopes": ["bus"], "publish": ["room/#"], "subscribe": ["room/#"]}
    status, issued = gateway.ask("POST", "/v1/admin/tokens", wanted)
    assert status == 201, issued
    own = Gateway(gateway.url, issued["token"])
    for path in ["/v1/bus/topics", "/v1/logs", "/v1/admin/components", "/v1/conversations"]:
        status, answer = own.ask("GET", path)
        assert (status, answer["error"]["code"]) == (403, "forbidden"), (path, answer)
    assert own.ask("POST", "/v1/bus/publish", {"topic": "room/a", "payload": 1})[0] == 200
    for path, body in [("/v1/bus/publish", {"topic": "secret/a", "payload": 1}), ("/v1/bus/request", {"topic": "interlock/runtime/stop/v1"})]:
        status, answer = own.ask("POST", path, body)
        assert (status, answer["error"]["code"]) == (403, "denied"), (path, answer)
    denials = gateway.ask("GET", "/v1/bus/refusals")[1]["denials"]
    mine = {(one["operation"], one["topic"]) for one in denials if one["peer"] == "web-limited"}
    assert {("publish", "secret/a"), ("request", "interlock/runtime/stop/v1")} <= mine, denials
    say(held="what is not permitted is refused by the broker, which remembers it")
    with Socket(own, peer="web-limited") as socket:
        socket.order(op="publish", id=1, topic="secret/a", payload=1)
        assert socket.word()["code"] == "denied"
        socket.order(op="publish", id=2, topic="room/a", payload=1)
        assert socket.word()["op"] == "published"
        assert gateway.ask("DELETE", "/v1/admin/tokens/limited")[0] == 204
        assert socket.end() == 4401
    assert own.ask("POST", "/v1/bus/publish", {"topic": "room/a"})[0] == 401
    say(held="a revoked token closes its socket")


def request(gateway, topic):
    """Prints what comes of a streamed request."""
    for name, data in without_life_signs(gateway.events("POST", "/v1/bus/request", {"topic": topic})):
        say(event=name, data=data)


class Socket:
    """A client of `interlock.v1`."""

    def __init__(self, gateway, header=False, greet=True, origin=None, peer="operator", close_timeout=1):
        headers = {"Authorization": f"Bearer {gateway.token}"} if header else None
        self.connecting = client.connect(gateway.url.replace("http", "ws", 1) + "/v1/socket", subprotocols=["interlock.v1"], origin=origin,
                                     additional_headers=headers, open_timeout=TIMEOUT_S, max_size=None, max_queue=4, compression=None, close_timeout=close_timeout)
        self.socket = self.connecting.__enter__()
        assert self.socket.subprotocol == "interlock.v1"
        if greet:
            if not header:
                self.order(op="hello", token=gateway.token)
            word = self.word()
            assert word == {"op": "welcome", "peer": peer}, word

    @staticmethod
    def refused(gateway, origin, token=None):
        """The status of a refusal, if it is refused."""
        probe = Gateway(gateway.url, token or gateway.token)
        try:
            with Socket(probe, header=token is not None, greet=False, origin=origin):
                return None
        except websockets.exceptions.InvalidStatus as error:
            return error.response.status_code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.send(data)

    def order(self, **fields):
        self.socket.send(json.dumps(fields))

    def word(self):
        return json.loads(self.socket.recv(timeout=TIMEOUT_S))

    def end(self):
        """The code with which the server closes."""
        try:
            while True:
                self.socket.recv(timeout=TIMEOUT_S)
        except websockets.exceptions.ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None


SCENARIOS = [each_once, slow_reader, socket, hostile, guessing, conversations, limited, request]

if __name__ == "__main__":
    scenario, url, token, *rest = sys.argv[1:]
    next(one for one in SCENARIOS if one.__name__ == scenario)(Gateway(url, token), *rest)
    say(held="all")
