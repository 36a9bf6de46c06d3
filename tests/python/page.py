"""Drives the chat page in Chromium through chromedriver. Usage: page.py URL TOKEN TEXT...; prints JSON lines."""
import json, re, subprocess, sys, tempfile, time, urllib.error, urllib.request

DEADLINE_S = 30


def say(**fields):
    print(json.dumps(fields), flush=True)


class Driver:
    def __init__(self):
        self.process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                self.base = f"http://127.0.0.1:{found[1]}"
                break
        self.profile = tempfile.TemporaryDirectory()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
                 "--disable-sync", f"--user-data-dir={self.profile.name}"]
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.base += f"/session/{answer['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"chromedriver: {json.load(error)['value']['message']}")

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, what, script, *arguments):
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if value := self.run(script, *arguments):
                return value
        raise SystemExit(f"{what} did not happen; the page says: {self.run('return document.body.innerText')}")

    def find(self, selector):
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def close(self):
        self.call("DELETE", "")
        self.process.terminate()


def main(url, token, *texts):
    driver = Driver()
    try:
        driver.call("POST", "/url", {"url": f"{url}/"})
        driver.until("the question for a token", "return !document.getElementById('token-form').hidden")
        say(state="asks for the token")
        element = driver.find("#token")
        driver.call("POST", f"/element/{element}/value", {"text": token + "\ue007"})
        for number, text in enumerate(texts):
            driver.until("the message field", "return !document.getElementById('text').disabled")
            element = driver.find("#text")
            driver.call("POST", f"/element/{element}/value", {"text": text + "\ue007"})
            driver.until("the answer", """
                const children = document.querySelectorAll('#messages > :not(#empty)');
                const stop = document.getElementById('stop');
                return children.length >= 2 * (arguments[0] + 1) && stop.hidden
                    && children[children.length - 1].innerText.trim().length > 3""", number)
        say(messages=driver.run("return document.getElementById('messages').innerText"),
            notice=driver.run("return document.getElementById('notice').innerText"),
            problem=driver.run("return document.getElementById('problem').innerText"),
            address=driver.run("return location.href"))
        log = driver.call("POST", "/se/log", {"type": "browser"})
        say(console=[entry["message"] for entry in log if entry["level"] == "SEVERE"])
    finally:
        driver.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
