"""Calls every operation of the gateway's own description, and holds each answer against it.

Usage: document.py URL TOKEN. Prints a line for each operation, then `done COUNT`; says what differs and ends otherwise."""
import json, sys, urllib.error, urllib.parse, urllib.request

import jsonschema

TIMEOUT_S = 60
METHODS = ["post", "put", "get", "patch", "delete"]


def place(operation):
    """What makes something goes before what shows, changes and deletes it; what ends everything at the end."""
    method, path = operation
    makes_nothing = not path.startswith("/v1/conversations")
    return (path == "/v1/admin/stop", "/components/" in path and method == "post", makes_nothing,
            METHODS.index(method), path)


class Document:
    def __init__(self, url, token):
        self.url, self.token = url, token
        status, kind, body = self.send("GET", "/openapi.json", token=None)
        assert (status, kind) == (200, "application/json"), (status, kind)
        self.all = json.loads(body)
        assert self.all["openapi"].startswith("3.1."), self.all["openapi"]

    def send(self, method, path, body=None, token="", accept=None, kind="application/json"):
        headers = {} if token is None else {"Authorization": f"Bearer {token or self.token}"}
        if body is not None:
            headers["Content-Type"] = kind
        if accept:
            headers["Accept"] = accept
        request = urllib.request.Request(self.url + path, body, headers, method=method.upper())
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            kind = (answer.headers.get("Content-Type") or "").split(";")[0]
            # Of a stream the first event says enough; a turn or a request ends by itself.
            body = self.first_event(answer) if kind == "text/event-stream" else answer.read()
            return answer.status, kind, body

    @staticmethod
    def first_event(answer):
        lines = []
        for line in answer:
            lines.append(line)
            if line == b"\n" and any(one.startswith((b"data:", b": ")) for one in lines):
                break
        return b"".join(lines)

    def resolve(self, value):
        while "$ref" in value:
            found = self.all
            for step in value["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            value = found
        return value

    def example(self, schema):
        """A valid value: the schema's own example, or the least there may be."""
        if "example" in schema:
            return schema["example"]
        if "examples" in schema:
            return schema["examples"][0]
        schema = self.resolve(schema)
        if "example" in schema:
            return schema["example"]
        if "enum" in schema:
            return schema["enum"][0]
        for choice in ("oneOf", "anyOf"):
            if choice in schema:
                return self.example(next(one for one in schema[choice] if one.get("type") != "null"))
        if "allOf" in schema:
            return {name: value for part in schema["allOf"] for name, value in self.example(part).items()}
        kind = schema.get("type", "object")
        kind = kind if isinstance(kind, str) else next(one for one in kind if one != "null")
        if kind == "object":
            needed = schema.get("required", [])
            parts = schema.get("properties", {})
            return {name: self.example(part) for name, part in parts.items() if name in needed or "example" in part}
        if kind == "array":
            return [self.example(schema["items"])] if schema.get("minItems") else []
        return {"string": "x", "integer": schema.get("minimum", 1), "number": schema.get("minimum", 1), "boolean": False}[kind]

    def request(self, path, operation):
        query = []
        for parameter in map(self.resolve, operation.get("parameters", [])):
            name, where = parameter["name"], parameter["in"]
            has_example = "example" in parameter or "example" in parameter["schema"]
            if where == "path":
                value = parameter["example"] if "example" in parameter else self.example(parameter["schema"])
                path = path.replace("{%s}" % name, urllib.parse.quote(str(value)))
            elif where == "query" and (has_example or parameter.get("required")):
                value = parameter["example"] if "example" in parameter else self.example(parameter["schema"])
                for one in value if isinstance(value, list) else [value]:
                    query.append((name, str(one).lower() if isinstance(one, bool) else str(one)))
        if query:
            path += "?" + urllib.parse.urlencode(query)
        body, kind = None, "application/json"
        if "requestBody" in operation:
            content = self.resolve(operation["requestBody"])["content"]
            kind = "application/json" if "application/json" in content else next(iter(content))
            value = content[kind].get("example") or self.example(content[kind]["schema"])
            body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        return path, body, kind

    def check(self, what, operation, status, kind, body):
        responses = operation["responses"]
        response = responses.get(str(status)) or responses.get(f"{status // 100}XX") or responses.get("default")
        assert response, f"{what}: {status} is not described; {body[:300]}"
        content = self.resolve(response).get("content", {})
        if not content:
            assert body == b"", f"{what}: {status} has a body that is not described: {body[:300]}"
            return
        assert kind in content, f"{what}: {status} is `{kind}`, described is {list(content)}; {body[:300]}"
        if kind != "application/json":
            return
        schema = {**content[kind]["schema"], "components": self.all["components"]}
        try:
            jsonschema.Draft202012Validator(schema).validate(json.loads(body))
        except jsonschema.ValidationError as error:
            raise SystemExit(f"{what}: {status} {error.json_path}: {error.message}")

    def operations(self):
        found = [(method, path) for path, item in self.all["paths"].items() for method in METHODS if method in item]
        return sorted(found, key=place)

    def walk(self):
        operations = self.operations()
        names = {self.all["paths"][path][method]["operationId"] for method, path in operations}
        assert len(names) == len(operations), "two operations have one name"
        for method, path in operations:
            operation, what = self.all["paths"][path][method], f"{method.upper()} {path}"
            assert operation.get("description") or operation.get("summary"), f"{what} says nothing of itself"
            target, body, kind = self.request(path, operation)
            if {} not in operation.get("security", self.all["security"]):
                status, *answer = self.send(method, target, body, token=None, kind=kind)
                assert status == 401, f"{what} without a token: {status}"
                self.check(f"{what} without a token", operation, status, *answer)
                assert self.send(method, target, body, token="0" * 64, kind=kind)[0] == 401, what
        for method, path in operations:
            operation, what = self.all["paths"][path][method], f"{method.upper()} {path}"
            target, body, kind = self.request(path, operation)
            status, *answer = self.send(method, target, body, kind=kind)
            expected = operation.get("x-example-status")
            succeeded = str(status) in operation["responses"] and status < 400
            assert status == expected if expected else succeeded, f"{what} as in the example ({target} {body}): {status} {answer}"
            self.check(what, operation, status, *answer)
            if method == "get" and answer[0] != "text/event-stream" and path != "/v1/socket":
                head, kind, body = self.send("HEAD", target)
                assert (head, kind, body) == (status, answer[0], b""), f"HEAD {path}: {head} {kind} {body}"
            print(what, status, flush=True)
        print("done", len(operations), flush=True)


if __name__ == "__main__":
    Document(*sys.argv[1:]).walk()
