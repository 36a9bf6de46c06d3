"""An OpenAI-compatible server for very many streams at once: stream_server.py STREAMS WORDS PAUSE.

It holds every stream until STREAMS of them are there, says so ({"there": n}), and then writes WORDS words to each, with
PAUSE seconds between two. The first line of output is its port; at the end of each round it says {"written": n}.
"""

import asyncio
import json
import sys

streams, words, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
there = asyncio.Condition()
present, written = 0, 0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def say(value):
    print(json.dumps(value), flush=True)


async def serve(reader, writer):
    global present, written
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET"):
        body = b'{"data":[{"id":"m"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return await finish(writer)
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    await reader.readexactly(length)
    async with there:
        present += 1
        if present == streams:
            say({"there": present})
            # Time to look at those who wait.
            await asyncio.sleep(2)
            there.notify_all()
        else:
            await there.wait()
    writer.write(HEAD)
    for number in range(words):
        chunk = {"choices": [{"delta": {"content": f"{number} "}}]}
        writer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await writer.drain()
        await asyncio.sleep(pause)
    writer.write(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    written += 1
    if written == streams:
        say({"written": written})
    await finish(writer)


async def finish(writer):
    try:
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        pass


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    say(server.sockets[0].getsockname()[1])
    await server.serve_forever()


asyncio.run(main())
