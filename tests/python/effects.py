"""A consumer whose effects are rows of a database of its own, killed at any moment by the test.

    effects.py MODULE CREDENTIALS DATABASE FILTER [SECONDS]     handles until it is killed; says `ready`, then `again` or `once`
    effects.py --dump DATABASE                                  the effects in their order, as one line of JSON

SECONDS is how long each effect takes.
"""

import contextlib
import importlib.util
import json
import sqlite3
import sys
import time


def dump(database):
    db = sqlite3.connect(database)
    is_there = db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'effects'").fetchone()[0]
    query = "SELECT id, topic, key, payload FROM effects ORDER BY rowid"
    print(json.dumps(db.execute(query).fetchall() if is_there else []))


def consume(module, credentials, database, pattern, seconds):
    spec = importlib.util.spec_from_file_location("interlock", module)
    interlock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(interlock)
    inbox = interlock.Inbox(database)
    with contextlib.closing(inbox.connect()) as db:
        db.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT, topic TEXT, key TEXT, payload TEXT)")

    def handle(delivery):
        time.sleep(seconds)
        with contextlib.suppress(interlock.Seen), inbox.once(delivery) as db:
            row = (str(delivery.id), delivery.topic, delivery.key, delivery.text())
            db.execute("INSERT INTO effects VALUES (?, ?, ?, ?)", row)

    bus = interlock.connect(credentials)
    bus.consume(pattern, handle)
    print("ready", flush=True)
    bus.wait()


if __name__ == "__main__":
    if sys.argv[1] == "--dump":
        dump(sys.argv[2])
    else:
        consume(*sys.argv[1:5], float(sys.argv[5]) if len(sys.argv) > 5 else 0.0)
