"""Very many chats in pieces at once: streams.py URL TOKEN STREAMS. Prints what became of them as one JSON object.

`least` is how many words the slowest stream had when the first one had all of its own.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

url, token, streams = urlsplit(sys.argv[1]), sys.argv[2], int(sys.argv[3])
BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {token}\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
).encode()
words = [0] * streams
first_end = {}


async def chat(place):
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(HEAD + BODY)
    status = (await reader.readline()).split()[1].decode()
    is_done = False
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif line.startswith(b"data: "):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            words[place] += bool(delta.get("content"))
    writer.close()
    if not first_end:
        first_end.update(least=min(words), at=time.monotonic())
    return status, is_done


async def main():
    ended = await asyncio.gather(*(chat(place) for place in range(streams)), return_exceptions=True)
    well = sum(1 for one in ended if one == ("200", True))
    others = sorted({str(one) for one in ended if one != ("200", True)})[:5]
    print(json.dumps({
        "finished": well, "others": others, "words": [min(words), max(words)], "least": first_end["least"],
        "spread_s": round(time.monotonic() - first_end["at"], 3),
    }))


asyncio.run(main())
