"""Uses the console as a person does. Usage: console.py URL TOKEN; prints a JSON line after each thing that it saw."""
import json, os, signal, sys, urllib.request

from browser import ENTER, ESCAPE, Browser

VIEWS = ["chat", "start", "topics", "messages", "actors", "logs", "peers", "letters"]


def say(**fields):
    print(json.dumps(fields), flush=True)


def row(browser, view, name):
    """The cells of the row of `name`, once it is there."""
    return browser.until(f"the row of {name} in {view}", """
        const lines = [...document.querySelectorAll('section.' + arguments[0] + ' tbody tr')];
        const line = lines.find((one) => [...one.children].some((cell) => cell.innerText.trim() === arguments[1]));
        return line && [...line.children].map((cell) => cell.innerText.trim())""", view, name)


def converse(browser, number, text):
    browser.type("#text", text + ENTER)
    browser.until("the answer", """
        const articles = document.querySelectorAll('#messages article');
        return articles.length >= 2 * (arguments[0] + 1) && document.getElementById('stop').hidden
            && articles[articles.length - 1].innerText.trim().length > 12""", number)


def go(browser, view):
    browser.press(str(VIEWS.index(view) + 1))
    browser.until(f"the view {view}", "return document.querySelector('section.view.' + arguments[0])", view)
    if view == "chat":
        browser.until("the message field's focus", "return document.activeElement.id === 'text'")
    browser.run("document.activeElement.blur()")


def status_of(url, token, name):
    request = urllib.request.Request(f"{url}/v1/status", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as answer:
        children = json.load(answer)["tree"]["children"]
    return next(child for child in children if child["name"] == name)


def unnamed(browser):
    """Controls of the present view without an accessible name, and table cells that are wider than their region."""
    found = []
    for element in browser.find_all("button, input, select, textarea, a, [role=region], svg[role=img]"):
        if browser.call("GET", f"/element/{element}/displayed") and not browser.call("GET", f"/element/{element}/computedlabel"):
            found.append(browser.call("GET", f"/element/{element}/property/outerHTML"))
    return found


def main(url, token):
    browser = Browser()
    try:
        browser.open(f"{url}/")
        browser.type("#token", "not-the-token" + ENTER)
        refusal = browser.until("the refusal of a bad token", "return document.getElementById('problem').innerText")
        say(saw="a bad token is refused", text=refusal, asks=browser.run("return !document.getElementById('token-form').hidden"))
        browser.errors()  # The browser itself notes each answer of 401.

        browser.type("#token", token + ENTER)
        converse(browser, 0, "My name is Ada.")
        converse(browser, 1, "What is my name?")
        browser.shot("chat")
        say(saw="a conversation", messages=browser.text("#messages"), notice=browser.text("#notice"),
            problem=browser.text("#problem"), address=browser.run("return location.href"))

        browser.press(ESCAPE)
        go(browser, "topics")
        topic = row(browser, "topics", "conversation/turn/final/v1")
        browser.click("section.topics tbody tr")
        browser.until("what there is to say of a topic", "return document.querySelector('section.topics .card h3')")
        browser.shot("topics")
        say(saw="topics", row=topic, line=browser.run("return document.querySelector('.spark polyline').getAttribute('points').length"),
            detail=browser.text("section.topics .card"))

        go(browser, "messages")
        browser.until("the watch", "return document.querySelector('section.messages [role=status]').innerText.startsWith('watching')")
        browser.run("""const [token, text] = arguments; fetch('/v1/chat', { method: 'POST', body: text, headers: { Authorization: 'Bearer ' + token } })""", token, "Hello again.")
        browser.until("the decoded messages of a turn", """
            const text = document.querySelector('section.messages .stream').innerText;
            return text.includes('conversation/turn/final/v1') && text.includes('"text"')""")
        browser.run("document.querySelector('section.messages details').open = true")
        browser.fill("section.messages form:last-of-type input", "console/test")
        browser.click("section.messages form:last-of-type button")
        published = browser.until("the publication", "return document.querySelector('section.messages form:last-of-type [role=status]').innerText")
        browser.shot("messages")
        say(saw="messages", summary=browser.text("section.messages [role=status]"), published=published)

        browser.press(ESCAPE)
        go(browser, "actors")
        before = row(browser, "actors", "model")
        process = status_of(url, token, "model")["load"]["process"]
        os.kill(process, signal.SIGKILL)
        after = browser.until("the model's return", """
            const line = [...document.querySelectorAll('section.actors tbody tr')].find((one) => one.children[1].innerText === 'model');
            return line.children[4].innerText === arguments[0] && line.children[2].innerText === 'running' && [...line.children].map((cell) => cell.innerText.trim())""", str(int(before[4]) + 1))
        browser.shot("actors")
        say(saw="a killed actor comes back", before=before, after=after)
        restarts = int(row(browser, "actors", "conversation")[4])
        browser.click("[aria-label='Restart conversation']")
        browser.until("the question before a restart", "return document.getElementById('ask').open")
        browser.click("#ask-yes")
        browser.until("the ordered restart", """
            const line = [...document.querySelectorAll('section.actors tbody tr')].find((one) => one.children[1].innerText === 'conversation');
            return line.children[4].innerText === arguments[0] && line.children[2].innerText === 'running'""", str(restarts + 1))
        say(saw="an actor restarted by its button", problem=browser.text("#problem"))

        go(browser, "logs")
        browser.press("/")
        browser.press(*"model", ENTER)
        browser.until("the records of the search", """
            const records = [...document.querySelectorAll('section.logs .stream li')];
            return records.length > 0 && records.every((one) => one.innerText.toLowerCase().includes('model'))""")
        browser.shot("logs")
        say(saw="a search in the logs", first=browser.text("section.logs .stream li"))
        browser.press(ESCAPE)

        go(browser, "peers")
        peer = row(browser, "peers", "model")
        browser.fill("section.peers form input[placeholder]", "greetings/hello" + ENTER)
        browser.until("the steps of why", "return document.querySelectorAll('section.peers .steps li').length > 3")
        browser.shot("peers")
        say(saw="peers", row=peer, why=browser.text("section.peers .steps"), refused=browser.text("section.peers"))

        browser.press(ESCAPE)
        go(browser, "letters")
        letter = row(browser, "letters", "orders/new")
        browser.shot("letters")
        say(saw="a dead letter", row=letter)
        browser.click("section.letters tbody button[aria-label^=Drop]")
        browser.click("#ask-yes")
        browser.until("the dropped letter's end", "return !document.querySelector('section.letters tbody tr')")

        go(browser, "start")
        row(browser, "start", "gateway")
        browser.shot("start")
        say(saw="readiness", headline=browser.text("section.start .headline"), facts=browser.text("section.start .facts"))

        nameless = {}
        for view in VIEWS:
            go(browser, view)
            browser.until("the content of the view", "return document.querySelector('section.view').children.length > 0")
            if found := unnamed(browser):
                nameless[view] = found
        browser.devtools("Emulation.setDeviceMetricsOverride", width=390, height=780, deviceScaleFactor=1, mobile=True)
        browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        wide = []
        for view in VIEWS:
            go(browser, view)
            if browser.run("return document.documentElement.scrollWidth > innerWidth || document.querySelector('main').scrollWidth > document.querySelector('main').clientWidth"):
                wide.append(view)
            browser.shot(f"phone-{view}")
        ground = browser.run("return getComputedStyle(document.documentElement).backgroundColor")
        browser.press("?")
        keys = browser.text("#keys")
        say(saw="names, a phone in the dark, keys", nameless=nameless, wide=wide, ground=ground, keys=keys)
        say(console=[error for error in browser.errors() if "status of 503" not in error])
    finally:
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
