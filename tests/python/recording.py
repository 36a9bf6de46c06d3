"""Reads a recording with MCAP's own library for Python, as anybody would who has never heard of Interlock.

    recording.py FILE

Prints one JSON object: whether it has an index, and of each message topic, encoding, origin, content type and text.
"""

import json
import sys

from mcap.reader import make_reader

with open(sys.argv[1], "rb") as file:
    reader = make_reader(file, validate_crcs=True)
    summary = reader.get_summary()
    messages = [
        [channel.topic, channel.message_encoding, channel.metadata["origin"], message.data.decode()]
        for _schema, channel, message in reader.iter_messages()
    ]

counted = summary.statistics.message_count if summary and summary.statistics else None
print(json.dumps({"counted": counted, "messages": messages}))
