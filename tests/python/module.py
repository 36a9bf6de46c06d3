"""Everything that `examples/python/interlock.py` offers, between two sessions of it through a real broker.

    module.py PATH_OF_MODULE ALICE.toml BOB.toml

Alice may publish and request `room/#`, bob subscribe and serve it; nobody may do anything on `closed/#`.
Prints the name of each claim that held; then `lost`, after which the broker is to be stopped.
"""

import importlib.util
import sys
import threading
import time

spec = importlib.util.spec_from_file_location("interlock", sys.argv[1])
interlock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interlock)

DEADLINE = 20


def raises(kind, action):
    try:
        action()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")


def published_messages_come_with_origin_header_and_type(alice, bob):
    with_all = bob.subscribe("room/#")
    for payload, content_type in (("text", interlock.TEXT), (b"bytes", ""), ({"a": [1]}, interlock.JSON)):
        acknowledgement = alice.publish_acknowledged("room/a", payload)
        assert acknowledgement == (1, 0), acknowledgement
        message = with_all.get(DEADLINE)
        assert (message.topic, message.origin, message.content_type) == ("room/a", "alice", content_type)
        assert message.id.version == 7 and abs(time.time_ns() - message.published_at_ns) < 60e9
    assert message.json() == {"a": [1]}
    with_all.close()
    # The end of bob's subscription and alice's publish come by different sessions.
    deadline = time.monotonic() + DEADLINE
    while alice.publish_acknowledged("room/a", b"nobody") != (0, 0):
        assert time.monotonic() < deadline, "the subscription did not end"


def order_holds_over_many_credit_windows_and_fragments(alice, bob):
    mine = bob.subscribe("room/#", size=64 << 20)
    large = bytes(range(256)) * 4096  # 1 MiB: four fragments and a bit
    for number in range(12):
        alice.publish(f"room/{number}", large)
    for number in range(3_000):
        alice.publish("room/small", str(number))
    for number in range(12):
        message = mine.get(DEADLINE)
        assert (message.topic, message.payload) == (f"room/{number}", large)
    for number in range(3_000):
        assert mine.get(DEADLINE).text() == str(number)
    mine.close()


def a_probe_comes_back_when_everything_before_it_was_taken(alice, bob):
    mine = bob.subscribe("room/#")
    assert alice.wait_for_subscribers("room/a", timeout=DEADLINE) == ["bob"]
    alice.publish("room/a", b"first")
    raises(interlock.TimedOut, lambda: alice.probe("room/a", "bob", timeout=0.1))
    assert mine.get(DEADLINE).payload == b"first"
    proven = []
    probing = threading.Thread(target=lambda: proven.append(alice.probe("room/a", "bob", timeout=DEADLINE)))
    probing.start()
    while probing.is_alive():
        try:
            assert not mine.get(0.05)
        except interlock.TimedOut:
            pass
    probing.join()
    assert proven == [True]
    mine.close()
    raises(interlock.NoResponders, lambda: [alice.probe("room/a", "nobody", timeout=DEADLINE)])


def overlapping_subscriptions_each_get_the_message_and_credit_goes_on(alice, bob):
    first, second = bob.subscribe("room/+"), bob.subscribe("room/#")
    payload = bytes(100_000)
    for _ in range(100):  # more than twice the broker's window
        alice.publish("room/a", payload)
        assert first.get(DEADLINE).payload == second.get(DEADLINE).payload == payload
    first.close(), second.close()


def what_a_slow_subscriber_lost_is_reported_with_the_count(alice, bob):
    slow = bob.subscribe("room/#", overflow="drop_newest", messages=4)
    dropped = sum(alice.publish_acknowledged("room/a", bytes(10_000)).dropped for _ in range(2_000))
    assert dropped > 0
    came, lost = 0, 0
    while came < 2_000 - dropped:
        item = slow.get(DEADLINE)
        came, lost = (came, lost + item.count) if isinstance(item, interlock.Gap) else (came + 1, lost)
    alice.publish_acknowledged("room/a", b"last")
    while lost < dropped:
        lost += slow.get(DEADLINE).count
    assert slow.get(DEADLINE).payload == b"last" and lost == dropped
    slow.close()


def a_message_on_a_held_topic_is_refused_as_full(alice, bob):
    waiting = bob.subscribe("room/held", overflow="wait", messages=2)
    full = None
    for _ in range(3_000):
        try:
            alice.publish("room/held", bytes(100_000), timeout=0.5)
        except interlock.Full as error:
            full = error
            break
    assert full and "held" in str(full), full
    alice.publish("room/free", b"another topic is free", timeout=0.5)
    # The word that it is free may come behind the last message.
    deadline = time.monotonic() + DEADLINE
    while "room/held" in alice._held:
        assert time.monotonic() < deadline, "the topic stays held"
        try:
            waiting.get(0.05)
        except interlock.TimedOut:
            pass
    alice.publish("room/held", b"released", timeout=DEADLINE)
    waiting.close()


def retained_values_and_groups(alice, bob):
    alice.publish_acknowledged("room/state", "on", retain=True)
    kept = bob.subscribe("room/state", retained=True)
    message = kept.get(DEADLINE)
    assert message.retained and message.text() == "on"
    kept.close()
    one, other = (bob.subscribe("room/work", group="workers") for _ in range(2))
    for number in range(10):
        assert alice.publish_acknowledged("room/work", str(number)).subscribers == 1
    came = one._items.qsize() + other._items.qsize()
    while came < 10:
        came = one._items.qsize() + other._items.qsize()
    assert came == 10
    one.close(), other.close()


def what_is_not_permitted_is_denied(alice, bob):
    error = raises(interlock.Denied, lambda: alice.publish_acknowledged("closed/a", b""))
    assert error.code == "not_permitted" and error.topic == "closed/a" and error.exit_code == 4
    raises(interlock.Denied, lambda: bob.subscribe("closed/a"))
    raises(interlock.Denied, lambda: bob.serve("closed/a", lambda request: None))
    raises(interlock.Denied, lambda: alice.request("closed/a"))
    alice.publish("closed/a", b"")
    alice.publish_acknowledged("room/a", b"")  # the refusal came before this answer
    assert alice.denied == 1


def requests_are_answered_in_every_form(alice, bob):
    raises(interlock.NoResponders, lambda: alice.request("room/nobody"))
    gone = threading.Event()

    def stream(request):
        try:
            for number in range(int(request.text())):
                yield str(number)
        except GeneratorExit:
            gone.set()
            raise

    bob.serve("room/echo", lambda request: request.payload)
    bob.serve("room/json", lambda request: {"was": request.json()})
    bob.serve("room/empty", lambda request: None)
    bob.serve("room/stream", stream)
    bob.serve("room/map", lambda request: map(str, range(3)))
    bob.serve("room/broken", lambda request: 1 / 0)
    bob.serve("room/slow", lambda request: gone.wait(DEADLINE) and None)
    assert alice.request("room/echo", b"x" * 600_000).payload == b"x" * 600_000
    assert alice.request("room/json", [1]).json() == {"was": [1]}
    assert alice.request("room/empty") is None
    parts = [part.text() for part in alice.request_stream("room/stream", "1000")]
    assert parts == [str(number) for number in range(1000)]
    assert [part.text() for part in alice.request_stream("room/map")] == ["0", "1", "2"]
    error = raises(interlock.RequestFailed, lambda: alice.request("room/broken"))
    assert error.code == "handler_failed" and "division" in str(error)
    raises(interlock.TimedOut, lambda: alice.request("room/slow", timeout=0.3))
    cancelled = alice.request_stream("room/stream", "100000")
    next(cancelled)
    cancelled.cancel()
    assert gone.wait(DEADLINE), "the generator was not closed"


def what_cannot_be_sent_is_misuse_and_costs_nothing(alice, bob):
    mine, before = bob.subscribe("room/misuse"), alice._sequence
    nan, half = float("nan"), "\ud800"
    payloads = (nan, {"a": nan}, half, [half], object(), bytes((64 << 20) + 1))
    for action in (alice.publish, alice.publish_acknowledged, alice.set_will, alice.request, alice.request_stream):
        for payload in payloads:
            raises(interlock.Misuse, lambda: action("room/misuse", payload))
        for topic in (half, 7, None, ["room/misuse"], "x" * 256):
            raises(interlock.Misuse, lambda: action(topic, "x"))
        for timeout in ("abc", None, -1, nan, float("inf"), 1e300):
            raises(interlock.Misuse, lambda: action("room/misuse", "x", timeout=timeout))
    assert not alice._streams and not alice._waiting and alice._sequence == before
    for action in (bob.subscribe, lambda pattern, **more: bob.serve(pattern, print, **more)):
        for arguments in ({"pattern": half}, {"pattern": 7}, {"group": 7}, {"group": half}, {"timeout": "abc"}, {"timeout": -1}):
            raises(interlock.Misuse, lambda: action(**({"pattern": "room/other"} | arguments)))
    for arguments in ({"overflow": "no"}, {"overflow": []}, {"messages": -1}, {"messages": "1"}, {"size": 1 << 32}, {"size": 0.5}):
        raises(interlock.Misuse, lambda: bob.subscribe("room/other", **arguments))
    raises(interlock.Misuse, lambda: bob.serve("room/other", "no function"))
    assert len(bob._subscriptions) == 1 and not bob._waiting
    for timeout in ("abc", -1, nan):
        raises(interlock.Misuse, lambda: mine.get(timeout))
        raises(interlock.Misuse, lambda: interlock.connect(sys.argv[2], timeout=timeout))
        raises(interlock.Misuse, lambda: alice.probe("room/misuse", "bob", timeout=timeout))
        raises(interlock.Misuse, lambda: alice.wait_for_subscribers("room/misuse", timeout=timeout))
        raises(interlock.Misuse, lambda: interlock.extend(timeout))
    # A server that answers with such a thing, or fails with one, says so at once.
    bob.serve("room/half", lambda request: half)
    bob.serve("room/parts", lambda request: iter([nan]))

    def fails(request):
        raise ValueError(half)

    bob.serve("room/fails", fails)
    for topic in ("room/half", "room/parts", "room/fails"):
        error = raises(interlock.RequestFailed, lambda: alice.request(topic, timeout=DEADLINE))
        assert error.code == "handler_failed", error
    alice.publish("room/misuse", "well")
    assert mine.get(DEADLINE).text() == "well"
    mine.close()


def an_endpoint_where_nothing_listens_is_passed_over(alice, _):
    known = interlock.load_credentials(sys.argv[2])
    missing = known | {"endpoints": ["ipc:///nowhere/bus.sock", *known["endpoints"]]}
    interlock.load_credentials, load = lambda _: missing, interlock.load_credentials
    with interlock.connect("", timeout=DEADLINE) as bus:
        assert bus.name == "alice"
    missing["endpoints"] = missing["endpoints"][:1]
    raises(interlock.Unreachable, lambda: interlock.connect("", timeout=0.3))
    interlock.load_credentials = load


alice, bob = interlock.connect(sys.argv[2]), interlock.connect(sys.argv[3])
for claim in (
    published_messages_come_with_origin_header_and_type,
    order_holds_over_many_credit_windows_and_fragments,
    a_probe_comes_back_when_everything_before_it_was_taken,
    overlapping_subscriptions_each_get_the_message_and_credit_goes_on,
    what_a_slow_subscriber_lost_is_reported_with_the_count,
    a_message_on_a_held_topic_is_refused_as_full,
    retained_values_and_groups,
    what_is_not_permitted_is_denied,
    requests_are_answered_in_every_form,
    what_cannot_be_sent_is_misuse_and_costs_nothing,
    an_endpoint_where_nothing_listens_is_passed_over,
):
    claim(alice, bob)
    print(claim.__name__, flush=True)

# All that is in hand ends when the session does.
bob.serve("room/for_ever", lambda request: time.sleep(DEADLINE))
answer, idle = alice.request_stream("room/for_ever", timeout=600), bob.subscribe("room/#")
print("lost", flush=True)
for end in (lambda: next(answer), alice.wait, bob.wait, lambda: idle.get(DEADLINE), lambda: alice.publish("room/a", b"")):
    error = raises((interlock.SessionLost, interlock.RequestFailed), end)
    # With the word that the broker has given.
    assert error.code in ("broker_stopping", "server_gone"), (error.code, error)
print("everything in hand ended", flush=True)
