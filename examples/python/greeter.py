#!/usr/bin/env python3
"""A greeter: a program that is an Interlock actor, with nothing but pyzmq and `interlock.py`.

It serves `greeter/hello/v1`. A request carries a name as text; the answer is a greeting streamed
word by word, as fast as the requester takes it, and stopped when the requester cancels. Each
greeting that was given is published on `greetings/given`.

    interlock keys issue greeter --serve 'greeter/#' --publish 'greetings/#'
    python3 greeter.py --creds path/to/greeter.toml
    bus request greeter/hello/v1 Ada

Supervised by the runtime it needs no arguments: credentials come through a descriptor, and
readiness is declared when the broker has confirmed that requests are routed here. When the session
ends, the program ends too, and its supervisor starts it again.
"""

import argparse
import signal
import sys
import time

import interlock


def main():
    arguments = argparse.ArgumentParser(description="Greets whoever asks, word by word.")
    arguments.add_argument("--creds", help="credentials file, as `interlock keys issue` writes it")
    arguments.add_argument("--pause", type=float, default=0.2, help="seconds between two words")
    arguments = arguments.parse_args()

    def greet(request):
        name = request.text().strip() or "stranger"
        for index, word in enumerate(f"Hello {name}, pleased to meet you.".split(" ")):
            yield word if index == 0 else " " + word
            time.sleep(arguments.pause)
        bus.publish("greetings/given", name)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with interlock.connect(arguments.creds, program="greeter.py") as bus:
            bus.serve("greeter/#", greet)
            interlock.ready("serving greeter/hello/v1")
            print("greeter.py: ready", flush=True)
            bus.wait()
    except KeyboardInterrupt:
        return 0
    except interlock.BusError as error:
        print(f"greeter.py: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
