"""A full outbox with the policy `pause`: who publishes waits, and either side is Python.

    durable_pause.py PATH_OF_MODULE OPERATOR.toml

The outbox takes one message; its route `orders/#` goes to `operator`. Prints the name of each claim that held.
"""

import importlib.util
import sys
import threading

spec = importlib.util.spec_from_file_location("interlock", sys.argv[1])
interlock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interlock)

DEADLINE = 30


def who_finds_no_room_until_the_deadline_knows_that_nothing_was_accepted(bus):
    bus.publish_durable("orders/new", "one")
    try:
        bus.publish_durable("orders/new", "late", timeout=2)
    except interlock.OutboxFull as error:
        assert (error.current, error.max, error.exit_code) == (1, 1, 7), error
    else:
        raise AssertionError("a second message was accepted")


def who_waits_is_accepted_when_a_consumer_has_made_room(bus):
    accepted = []
    waiting = threading.Thread(
        target=lambda: accepted.append(bus.publish_durable("orders/new", "two", timeout=DEADLINE)), daemon=True
    )
    waiting.start()
    came = []
    with interlock.connect(sys.argv[2]) as books:
        for delivery in books.consume("orders/#"):
            came.append((delivery.text(), delivery.attempt))
            delivery.ack()
            if delivery.text() == "two":
                break
    waiting.join(DEADLINE)
    assert came == [("one", 1), ("two", 1)], came
    assert accepted and accepted[0].number == 2 and not accepted[0].again, accepted


with interlock.connect(sys.argv[2]) as operator:
    for claim in (
        who_finds_no_room_until_the_deadline_knows_that_nothing_was_accepted,
        who_waits_is_accepted_when_a_consumer_has_made_room,
    ):
        claim(operator)
        print(claim.__name__, flush=True)
print("done", flush=True)
