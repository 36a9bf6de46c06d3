"""Chromium through chromedriver, with the standard library alone."""
import base64, json, os, re, subprocess, tempfile, time, urllib.error, urllib.request

DEADLINE_S = 40
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"


class Browser:
    def __init__(self, width=1280, height=900):
        self.process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                self.base = f"http://127.0.0.1:{found[1]}"
                break
        self.profile = tempfile.TemporaryDirectory()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
                 "--disable-sync", f"--window-size={width},{height}", f"--user-data-dir={self.profile.name}"]
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

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, what, script, *arguments):
        """Waits until the script returns something true, and returns that."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if value := self.run(script, *arguments):
                return value
            time.sleep(0.05)
        self.shot("failed")
        raise SystemExit(f"{what} did not happen; the page says: {self.run('return document.body.innerText')}")

    def find(self, selector):
        self.until(f"`{selector}`", "const one = document.querySelector(arguments[0]); return one && one.checkVisibility()", selector)
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def find_all(self, selector):
        found = self.call("POST", "/elements", {"using": "css selector", "value": selector})
        return [next(iter(one.values())) for one in found]

    def type(self, selector, text):
        self.call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def fill(self, selector, text):
        self.run("const one = document.querySelector(arguments[0]); one.value = ''; one.focus()", selector)
        self.type(selector, text)

    def click(self, selector):
        self.call("POST", f"/element/{self.find(selector)}/click", {})

    def press(self, *keys):
        """Presses keys where the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector):
        return self.run("const one = document.querySelector(arguments[0]); return one ? one.innerText : ''", selector)

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def errors(self):
        """What the page has written to its console as errors, and not yet told."""
        log = self.call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def shot(self, name):
        """A picture of the page, if INTERLOCK_SCREENSHOTS names a directory for it."""
        if directory := os.environ.get("INTERLOCK_SCREENSHOTS"):
            with open(os.path.join(directory, f"{name}.png"), "wb") as file:
                file.write(base64.b64decode(self.call("GET", "/screenshot")))

    def close(self):
        self.call("DELETE", "")
        self.process.terminate()
