"""Durable delivery with `examples/python/interlock.py`, through a real broker and a real outbox.

    durable.py PATH_OF_MODULE SHOP.toml BOOKS.toml DIRECTORY

The outbox holds 5 messages and has routes `orders/#` to `books` and `closed/#` to nobody who serves. Prints the name of each
claim that held.
"""

import importlib.util
import os
import sqlite3
import sys
import threading
import uuid

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


def what_is_published_durably_comes_with_its_facts_and_is_finished_by_the_ack(shop, books, _):
    consumer = books.consume("orders/facts")
    accepted = shop.publish_durable("orders/facts", {"a": 1}, key="customer 7")
    delivery = consumer.get(DEADLINE)
    assert (delivery.topic, delivery.origin, delivery.key) == ("orders/facts", "shop", "customer 7"), delivery
    assert (delivery.id, delivery.number, delivery.attempt) == (accepted.id, accepted.number, 1)
    assert delivery.json() == {"a": 1} and not accepted.again
    delivery.ack()
    again = shop.publish_durable("orders/facts", {"a": 1}, key="customer 7", id=accepted.id)
    assert again == (accepted.id, accepted.number, True), again
    error = raises(interlock.NotAccepted, lambda: shop.publish_durable("orders/facts", "other", id=accepted.id))
    assert error.code == "other_content", error


def what_fails_comes_again_and_what_is_rejected_does_not(shop, books, _):
    came, done = [], threading.Event()

    def handle(delivery):
        came.append((delivery.text(), delivery.attempt))
        if delivery.text() == "last":
            delivery.ack()
            done.set()
        elif delivery.text() == "bad":
            delivery.reject("never")
        elif delivery.attempt == 1:
            raise ValueError("not yet")
        elif delivery.attempt == 2:
            delivery.retry("not now")
        elif delivery.attempt > 3:
            delivery.ack()

    books.consume("orders/tries", handle)
    for text in ("flaky", "bad", "last"):
        shop.publish_durable("orders/tries", text)
    assert done.wait(DEADLINE)
    texts = [text for text, _ in came]
    assert texts == ["flaky"] * (len(came) - 2) + ["bad", "last"], came
    # On a busy machine an attempt may be given up before it is handed out.
    attempts = [attempt for text, attempt in came if text == "flaky"]
    assert attempts[0] == 1 and attempts[-1] > 3 and attempts == sorted(set(attempts)), came


def an_effect_and_its_id_are_one_transaction(shop, books, directory):
    path = os.path.join(directory, "orders.db")
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE orders (text)")
    inbox, attempts, done = interlock.Inbox(path), [], threading.Event()

    def handle(delivery):
        attempts.append((delivery.text(), delivery.attempt))
        with inbox.once(delivery) as db:
            db.execute("INSERT INTO orders VALUES (?)", (delivery.text(),))
            if delivery.attempt == 1:
                raise RuntimeError("a crash in the middle of the effect")
            if delivery.attempt == 2 and delivery.text() == "one":
                # The acknowledgement is lost: the id was written, and the outbox is told to try again.
                delivery.ack = lambda: delivery.retry("the answer was lost")
        if delivery.text() == "two":
            done.set()

    books.consume("orders/once", handle, inbox=inbox)
    for text in ("one", "two"):
        shop.publish_durable("orders/once", text)
    assert done.wait(DEADLINE)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT text FROM orders").fetchall() == [("one",), ("two",)]
    # The third attempt of `one` was answered by the inbox and not given out.
    assert attempts == [("one", 1), ("one", 2), ("two", 1), ("two", 2)], attempts
    assert not inbox.seen(uuid.uuid4())


def an_iterator_lets_go_of_what_nothing_was_said_of(shop, books, _):
    consumer = books.consume("orders/silent")
    shop.publish_durable("orders/silent", "one")
    assert consumer.get(DEADLINE).attempt == 1
    second = consumer.get(DEADLINE)
    assert (second.text(), second.attempt) == ("one", 2)
    second.ack()
    raises(interlock.TimedOut, lambda: consumer.get(0.1))


def an_inbox_forgets_the_oldest(shop, books, directory):
    inbox, ids = interlock.Inbox(os.path.join(directory, "small.db"), keep=2), [uuid.uuid4() for _ in range(3)]
    for message_id in (ids[0], ids[1], ids[1], ids[2]):
        inbox.record(message_id)
    assert [inbox.seen(message_id) for message_id in ids] == [False, True, True]


def refusals_are_errors_with_code_and_figures(shop, books, _):
    error = raises(interlock.NotAccepted, lambda: shop.publish_durable("nobody/a", "x"))
    assert (error.code, error.exit_code) == ("no_consumers", 2), error
    raises(interlock.Denied, lambda: books.publish_durable("orders/a", "x"))
    error = raises(interlock.NotAccepted, lambda: shop.publish_durable("orders/a", bytes(20 << 20)))
    assert (error.code, error.exit_code) == ("too_large", 2), error
    # Nil is no id: it gets one of its own.
    assert shop.publish_durable("closed/a", "x", id=uuid.UUID(int=0)).id.int
    for number in range(4):
        shop.publish_durable("closed/a", str(number))
    error = raises(interlock.OutboxFull, lambda: shop.publish_durable("closed/a", "x"))
    assert (error.current, error.max, error.exit_code) == (5, 5, 7), error


def what_cannot_be_sent_is_refused_before_anything_is_sent(shop, books, _):
    sent = shop._sequence, next(shop._numbers)
    for arguments in (
        {"payload": "x", "id": str(uuid.uuid4())},
        {"payload": "x", "id": 7},
        {"payload": "x", "key": 7},
        {"payload": "x", "key": b"bytes"},
        {"payload": object()},
        {"payload": {"a": {1, 2}}},
        {"payload": "x", "topic": 7},
        {"payload": "x", "topic": None},
        {"payload": "x", "key": "k" * 256},
        {"payload": "x", "key": "k" * 100_000},
        {"payload": "x", "key": "\ud800"},
        {"payload": "x", "topic": "orders/\ud800"},
        {"payload": "x", "topic": "orders/" + "x" * 300},
        {"payload": "\ud800"},
        {"payload": ["\ud800"]},
        {"payload": {"a": float("nan")}},
        {"payload": bytes((64 << 20) + 1)},
        {"payload": "x", "timeout": 0},
        {"payload": "x", "timeout": -1},
        {"payload": "x", "timeout": float("nan")},
        {"payload": "x", "timeout": float("inf")},
        {"payload": "x", "timeout": "abc"},
        {"payload": "x", "timeout": None},
    ):
        error = raises(interlock.Misuse, lambda: shop.publish_durable(**({"topic": "orders/kinds"} | arguments)))
        assert isinstance(error, interlock.BusError) and error.exit_code == 2, error
    assert (shop._sequence, next(shop._numbers)) == (sent[0], sent[1] + 1)
    for arguments in (
        {"handler": "no function"},
        {"handler": ""},
        {"pattern": 7},
        {"pattern": "\ud800"},
        {"concurrency": 0},
        {"inbox": "orders.db"},
        {"outbox": None},
        {"timeout": "abc"},
    ):
        raises(interlock.Misuse, lambda: books.consume(**({"pattern": "orders/kinds"} | arguments)))
    assert raises(interlock.Misuse, lambda: interlock.Inbox("never.db", keep=0)).exit_code == 2
    closed = interlock.connect(sys.argv[2])
    closed.close()
    raises(interlock.SessionLost, lambda: closed.publish_durable("orders/kinds", "x"))


def a_delivery_of_somebody_else_than_the_outbox_is_refused(shop, books, _):
    error = raises(interlock.RequestFailed, lambda: shop.request("inbox/books/orders/facts", "forged"))
    assert error.code == "not_the_outbox", error


shop, books = interlock.connect(sys.argv[2]), interlock.connect(sys.argv[3])
for claim in (
    what_is_published_durably_comes_with_its_facts_and_is_finished_by_the_ack,
    what_fails_comes_again_and_what_is_rejected_does_not,
    an_effect_and_its_id_are_one_transaction,
    an_iterator_lets_go_of_what_nothing_was_said_of,
    an_inbox_forgets_the_oldest,
    a_delivery_of_somebody_else_than_the_outbox_is_refused,
    what_cannot_be_sent_is_refused_before_anything_is_sent,
    refusals_are_errors_with_code_and_figures,
):
    claim(shop, books, sys.argv[4])
    print(claim.__name__, flush=True)
shop.close()
books.close()
print("done", flush=True)
