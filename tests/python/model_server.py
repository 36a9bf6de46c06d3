"""An OpenAI-compatible server as a process of its own, which does what the model that is asked for is called. It speaks
Ollama's own API, too: below /api.

The first line of output is its port; then one JSON object per POST: path, authorization, and the body.

echo      streams "You said", then the last message, word by word
none      lists no model (GET /models alone)
key       answers 401 and repeats the key
busy      answers 429 with Retry-After
busy_later answers 429 with a longer Retry-After
once      answers 429 with Retry-After: 0 once, then as echo
early     the process is gone before the first word
paced     streams a word each half second until nobody listens; then {"words": so many were written}
broken    answers 500 with a page that is no JSON
odd       streams an event that is no chunk, with the key in it
error     streams a word, then an error with the key in it
dies      streams two words; then the process is gone
hangs     streams a word, then nothing
silent    takes the request and says nothing
"""

import json
import os
import select
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

say_lock = threading.Lock()

# Taken by the first request to `once`.
asked_before = threading.Lock()


def say(value):
    with say_lock:
        print(value if isinstance(value, str) else json.dumps(value), flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def key(self):
        return self.headers.get("Authorization", "")

    def answer(self, status, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        models = [] if sys.argv[1:] == ["none"] else [{"id": "echo"}, {"id": "other"}]
        if self.path == "/api/tags":
            return self.answer(200, {"models": [{"name": model["id"]} for model in models]})
        self.answer(200, {"object": "list", "data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        say({"path": self.path, "authorization": self.key(), "body": body})
        if self.path.endswith(("/embeddings", "/embed")):
            return self.embed(body)
        getattr(self, "model_" + body["model"], self.model_unknown)(body)

    def embed(self, body):
        """The vector of a text: a quarter of its length, its first byte, and so on."""
        if body["model"] not in ("echo", "other"):
            return self.model_unknown(body)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        size = body.get("dimensions", 2)
        vectors = [([len(text) / 4, float(text.encode()[0])] * size)[:size] for text in texts]
        if self.path == "/api/embed":
            return self.answer(200, {"model": body["model"], "embeddings": vectors, "prompt_eval_count": 5})
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        self.answer(200, {"object": "list", "model": body["model"], "data": data, "usage": usage})

    def model_unknown(self, body):
        self.answer(404, {"error": {"message": "no model " + body["model"]}})

    def model_key(self, _):
        self.answer(401, {"error": {"message": "the key in " + self.key() + " is not valid"}})

    def model_busy(self, _):
        self.answer(429, {"error": {"message": "quota is used up"}}, Retry_After="7")

    def model_busy_later(self, _):
        self.answer(429, {"error": {"message": "come back"}}, Retry_After="600")

    def model_once(self, body):
        if asked_before.acquire(blocking=False):
            return self.answer(429, {"error": {"message": "not now"}}, Retry_After="0")
        self.model_echo(body)

    def model_early(self, _):
        os._exit(9)

    def model_paced(self, _):
        self.begin()
        words = 0
        while not select.select([self.connection], [], [], 0.5 if words else 0)[0]:
            self.word(f"{words} ")
            words += 1
        say({"words": words})
        self.close_connection = True

    def model_broken(self, _):
        self.answer(500, b"<html>it\nbroke</html>")

    def is_ollama(self):
        return self.path.startswith("/api/")

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson" if self.is_ollama() else "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data):
        data = (f"{data}\n" if self.is_ollama() else f"data: {data}\n\n").encode()
        # Cut in the middle, as networks do.
        for part in (data[:9], data[9:]):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.flush()

    def word(self, text, reason=None):
        if self.is_ollama():
            return self.piece(json.dumps({"model": "echo-1", "message": {"content": text}, "done": False}))
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        self.piece(json.dumps({"model": "echo-1", "choices": [choice]}))

    def finish(self):
        if self.is_ollama():
            end = {"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 4}
            self.piece(json.dumps({"model": "echo-1", "prompt_eval_count": 3, **end}))
            return self.wfile.write(b"0\r\n\r\n")
        self.word("", "stop")
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        self.piece(json.dumps({"choices": [], "usage": usage}))
        self.piece("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def model_echo(self, body):
        self.begin()
        for word in ("You said " + body["messages"][-1]["content"]).split(" "):
            self.word(word + " ")
        self.finish()

    model_other = model_echo

    def model_odd(self, _):
        self.begin()
        self.piece(json.dumps({"choices": self.key()}))
        self.finish()

    def model_error(self, _):
        self.begin()
        self.word("Well ")
        self.piece(json.dumps({"error": {"message": "out of memory, " + self.key()}}))
        self.finish()

    def model_dies(self, _):
        self.begin()
        self.word("One ")
        self.word("two ")
        os._exit(9)

    def model_hangs(self, _):
        self.begin()
        self.word("One ")
        time.sleep(3600)

    def model_silent(self, _):
        time.sleep(3600)


class Server(ThreadingHTTPServer):
    # More than the default of 5 ask at the same time.
    request_queue_size = 1024


server = Server(("127.0.0.1", 0), Handler)
server.daemon_threads = True
say(str(server.server_address[1]))
server.serve_forever()
