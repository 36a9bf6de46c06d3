"""OpenAI's own Python package, unchanged, against the gateway: openai_client.py URL TOKEN STEP [MODEL ...].

Prints one JSON object per thing it saw. Each step is a function below.
"""

import json
import sys

import openai

url, token, step, *more = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key=token, max_retries=0, timeout=60)
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]


def say(**seen):
    print(json.dumps(seen), flush=True)


def chat():
    """A chat, whole and in pieces, and in a conversation that is kept."""
    whole = client.chat.completions.create(model=more[0], messages=HELLO, temperature=0.5, max_tokens=50)
    choice = whole.choices[0]
    say(text=choice.message.content, role=choice.message.role, reason=choice.finish_reason, model=whole.model,
        tokens=whole.usage.total_tokens, object=whole.object, id=whole.id, name=whole.interlock["name"],
        fallback=whole.interlock["fallback"])
    with client.chat.completions.create(
        model=more[0], messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        pieces = list(stream)
    texts = [piece.choices[0].delta.content for piece in pieces if piece.choices]
    say(text="".join(text for text in texts if text), pieces=len(pieces), ids=len({piece.id for piece in pieces}),
        role=pieces[0].choices[0].delta.role, reason=pieces[-2].choices[0].finish_reason,
        tokens=pieces[-1].usage.total_tokens, choices=len(pieces[-1].choices))
    kept = client.chat.completions.create(
        model=more[0], messages=HELLO, stop=["there"], seed=7, top_p=0.5, metadata={"conversation": "kept"}
    )
    say(conversation=kept.interlock["conversation"], text=kept.choices[0].message.content)


def models():
    """All models, one of them, and one that there is not."""
    listed = client.models.list()
    say(ids=[model.id for model in listed], object=listed.object)
    say(one=client.models.retrieve(more[0]).id)
    failing("unknown", lambda: client.models.retrieve("nobody/nothing"))


def embeddings():
    """In base64, which the package asks for by itself, as numbers, and of one text."""
    many = client.embeddings.create(model=more[0], input=["abcd", "e"])
    say(vectors=[item.embedding for item in many.data], tokens=many.usage.prompt_tokens)
    numbers = client.embeddings.create(model=more[0], input=["abcd", "e"], encoding_format="float", dimensions=3)
    say(vectors=[item.embedding for item in numbers.data])
    say(vectors=[item.embedding for item in client.embeddings.create(model=more[0], input="abcd").data])
    failing("none", lambda: client.embeddings.create(model=more[1], input="abcd"))
    failing("tokens", lambda: client.embeddings.create(model=more[0], input=[1, 2, 3]))


def retry_after(error):
    """The header of the answer; none in the middle of a stream."""
    response = getattr(error, "response", None)
    return response.headers.get("retry-after") if response is not None else None


def failing(name, ask):
    try:
        ask()
    except openai.APIError as error:
        status = getattr(error, "status_code", None)
        say(case=name, error=type(error).__name__, status=status, code=error.code, param=error.param,
            kind=error.type, text=error.message, retry=retry_after(error))
    else:
        say(case=name, error=None)


def errors():
    """Each kind of error becomes the package's own exception."""
    ask = lambda **more: client.chat.completions.create(**{"model": "big", "messages": HELLO, **more})
    stranger = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
    failing("key", lambda: stranger.models.list())
    failing("model", lambda: ask(model="huge"))
    failing("many", lambda: ask(n=2))
    failing("tools", lambda: ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]))
    failing("image", lambda: ask(messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:,x"}}]}]))
    failing("logprobs", lambda: ask(logprobs=True))
    failing("hot", lambda: ask(temperature=3))
    failing("nobody", lambda: ask(messages=[{"role": "system", "content": "x"}]))
    failing("busy", lambda: ask(model="busy"))
    failing("broken", lambda: ask(model="broken"))
    failing("large", lambda: ask(messages=[{"role": "user", "content": "x" * 3_000_000}]))
    failing("path", lambda: client.responses.create(model="big", input="x"))
    failing("early", lambda: list(ask(model="broken", stream=True)))
    failing("late", lambda: list(ask(model="error", stream=True)))


def cancel():
    """Takes some pieces, then closes the connection."""
    stream = client.chat.completions.create(model=more[0], messages=HELLO, stream=True)
    for taken, piece in enumerate(stream):
        if taken == 3:
            break
    stream.close()
    client.close()
    say(taken=taken)


def until_revoked():
    """Takes pieces until the stream ends by itself."""
    stream = client.chat.completions.create(model=more[0], messages=HELLO, stream=True)
    say(first=next(iter(stream)).choices[0].delta.role)
    failing("revoked", lambda: list(stream))


def give_up():
    """Asks for a whole answer and closes the connection before it is there."""
    try:
        client.with_options(timeout=2).chat.completions.create(model=more[0], messages=HELLO)
    except openai.APITimeoutError:
        client.close()
        say(given_up=True)


globals()[step]()
