"""Tier 5: the page of quasar-serve, in a headless Chromium in front of the real server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, NO_CHROMIUM, PATIENCE, Browser

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the browser is driven over file descriptors 3 and 4"),
]

QUESTION = "Tom has 9 pens and gives away 3 of them. How many pens are left?"
LONG = "Tell me a long story."
KEY = "open sesame"
GENERATED = "quasar_generation_tokens_total"
LAST = "[...document.querySelectorAll('.answer')].at(-1)"
ENDED = f"{LAST}?.ariaBusy === 'false'"
TEXT = f"{LAST}.querySelector('.text').textContent"


class Server:
    """A running quasar-serve."""

    def __init__(self, url: str) -> None:
        self.url = url

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as response:
            found = re.findall(rf"^{name}{{[^}}]*}} (\S+)$", response.read().decode(), re.MULTILINE)
        assert len(found) == 1, name
        return float(found[0])

    def made(self) -> float:
        """Tokens of all answers, once none is worked on: metrics are reported twice a second."""
        end = time.monotonic() + PATIENCE
        made, before = self.metric(GENERATED), -1.0
        while made != before or self.metric("quasar_num_requests_running"):
            assert time.monotonic() < end, "an answer is still worked on"
            time.sleep(1.2)
            made, before = self.metric(GENERATED), made
        return made


@contextmanager
def serving(bundle: Path, log: Path, *options: str) -> Iterator[Server]:
    """The command, until it listens, and stopped at the end."""
    command = [sys.executable, "-m", "quasar.runtime.serving.openai", str(bundle), "--port", "0", *options]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not (found := re.search(r"http://[\d.]+:\d+", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield Server(found[0])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # batch invariant: a near-tie is decided alike with every chain
    with serving(demo_bundle, tmp_path_factory.mktemp("log") / "serve", "--batch-invariant") as running:
        yield running


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def page(server: Server, browser: Browser) -> Browser:
    """The page, ready to be asked."""
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('chain').value")
    return browser


def ask(page: Browser, question: str) -> str:
    """Type it, press Enter, and wait for the whole answer."""
    begin(page, question)
    page.until(ENDED)
    return str(page.run(TEXT))


def begin(page: Browser, question: str) -> None:
    before = page.run("document.querySelectorAll('.answer').length")
    page.click("#question")
    page.write(question)
    page.press("Enter")
    page.until(f"document.querySelectorAll('.answer').length > {before}")


def choose(page: Browser, chain: str) -> None:
    page.run(f"{{ const field = document.getElementById('chain'); field.value = {json.dumps(chain)}; field.onchange() }}")
    assert page.run("document.getElementById('chain').value") == chain


def marks(page: Browser) -> list[str]:
    """Who drafted each token of the last answer that is marked."""
    titles = page.run(f"[...{LAST}.querySelectorAll('.text .mark')].map(mark => mark.title)")
    return [title.removeprefix("drafted by ") for title in titles]


def keys(page: Browser) -> dict[str, int]:
    """The counts below the last answer, by who made the tokens."""
    shown = f"[...{LAST}.querySelectorAll('.keys > span:not(.acts)')]"
    return {name: int(count) for name, count in page.run(f"{shown}.map(key => [...key.childNodes].map(n => n.textContent))")}


def figures(page: Browser) -> str:
    return str(page.run(f"{LAST}.querySelector('.figures > div:last-child').textContent"))


def errors(page: Browser) -> list[str]:
    return list(page.run(f"[...{LAST}.querySelectorAll('.error')].map(error => error.textContent)"))


def sent(page: Browser) -> list[dict[str, Any]]:
    """Bodies of the chats that were asked for."""
    requests = [event["request"] for event in page.named("Network.requestWillBeSent")]
    return [json.loads(one["postData"]) for one in requests if one["url"].endswith("/v1/chat/completions")]


def complaints(page: Browser) -> list[Any]:
    """What the console shows."""
    names = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event for name in names for event in page.named(name)]


def test_page_loads_without_complaints_and_asks_for_nothing_elsewhere(server: Server, page: Browser) -> None:
    ask(page, QUESTION)
    assert complaints(page) == []
    addresses = [event["request"]["url"] for event in page.named("Network.requestWillBeSent")]
    assert [one for one in addresses if not one.startswith((f"{server.url}/", "data:"))] == []
    assert f"{server.url}/v1/models" in addresses
    assert page.run("fetch('http://127.0.0.2:9/').then(() => 'reached', () => 'forbidden')") == "forbidden"
    assert "Content Security Policy" in str(complaints(page))  # the console is listened to, and the policy holds


def test_enter_streams_an_answer_with_marks(page: Browser) -> None:
    page.run("""
        window.lengths = new Set();
        new MutationObserver(() => lengths.add(document.querySelector('.answer .text').textContent.length))
          .observe(document.getElementById('log'), {childList: true, subtree: true});
    """)
    text = ask(page, QUESTION)
    assert page.run("lengths.size") > 2  # it grew
    origins, counts = marks(page), keys(page)
    assert set(origins) == {"prompt-lookup"}
    assert set(counts) == {"prompt-lookup", "int8 itself"}
    # a token of more than one line has a mark for each, one that is not shown has none
    assert abs(len(origins) - counts["prompt-lookup"]) <= text.count("\n") + 1
    said = figures(page)
    assert said.startswith(f"{sum(counts.values())} tokens \N{MIDDLE DOT} ")
    assert re.search(r" [\d.]+ tokens/s .* \d+ rounds of [\d.]+ tokens .* accepted \d+ of \d+ drafted .* first token after", said)
    assert page.run("document.activeElement.id") == "question"
    assert page.run("document.getElementById('question').value") == ""


def test_shift_and_enter_is_a_new_line(page: Browser) -> None:
    page.click("#question")
    page.write("one")
    page.press("Enter", shift=True)
    page.write("two")
    assert page.run("document.getElementById('question').value") == "one\ntwo"
    assert page.run("document.querySelectorAll('.answer').length") == 0


def test_stop_stops_the_server_and_keeps_what_is_there(server: Server, page: Browser) -> None:
    whole = ask(page, LONG)
    page.click("#new")
    before = server.made()
    page.run("""
        new MutationObserver((_, observer) => {
          if (!document.querySelector('.answer .text')?.textContent) return;
          observer.disconnect();
          document.getElementById('send').click();
        }).observe(document.getElementById('log'), {childList: true, subtree: true});
    """)
    assert ask(page, LONG) == (part := page.run("turns.at(-1).text"))
    assert 0 < len(part) < len(whole)
    assert whole.startswith(part)
    assert figures(page).endswith("stopped")
    assert 0 < server.made() - before < len(whole) / 4  # the rest was not made for nobody
    assert page.run("document.getElementById('send').textContent") == "Send"
    assert ask(page, QUESTION)
    assert [one["role"] for one in sent(page)[-1]["messages"]] == ["user", "assistant", "user"]
    assert sent(page)[-1]["messages"][1]["content"] == part


def test_another_chain_is_sent_and_says_the_same(page: Browser) -> None:
    text = ask(page, QUESTION)
    for chain, origins in (("off", set()), ("suffix > int8", {"suffix"})):
        choose(page, chain)
        page.click(".again")
        page.until(f"{ENDED} && {LAST}.querySelector('.chain').textContent !== 'prompt-lookup > int8'")
        assert page.run(TEXT) == text
        assert set(marks(page)) == origins
    assert [one["speculation"]["chain"] for one in sent(page)] == ["prompt-lookup > int8", "off", "suffix > int8"]
    assert all(len(one["messages"]) == 1 for one in sent(page))


def test_chains_of_the_engines_that_are_there_are_offered(page: Browser) -> None:
    offered = page.run("[...document.getElementById('chain').options].map(option => option.value)")
    assert offered == [
        *("prompt-lookup > int8", "suffix > int8", "int4 > int8", "prompt-lookup > int4 > int8", "off", "other"),
    ]


def test_options_are_sent(page: Browser) -> None:
    values = {"temperature": "0.7", "top_p": "0.9", "top_k": "20", "seed": "5", "max_tokens": "12"}
    page.click("#settings")
    for name, value in values.items():
        page.click(f"[name={name}]")
        page.write(value)
    page.click("#draft")
    page.write("2")
    page.click("#system")
    page.write("Be brief.")
    page.press("Escape")
    assert page.run("!document.querySelector('#options:popover-open')")
    ask(page, LONG)
    body = sent(page)[-1]
    assert {name: body[name] for name in values} == {name: float(value) for name, value in values.items()}
    assert body["speculation"] == {"statistics": True, "chain": "prompt-lookup > int8", "draft_length": 2}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sum(keys(page).values()) == 12
    assert figures(page).endswith("cut at the limit")


def test_an_error_of_the_server_is_shown_and_nothing_is_lost(page: Browser) -> None:
    first = ask(page, QUESTION)
    choose(page, "other")
    page.write("nothing > int8")
    assert ask(page, LONG) == ""
    assert len(errors(page)) == 1
    assert "no engine 'nothing' in this bundle" in errors(page)[0]
    choose(page, "off")
    page.click(".again")
    page.until(f"{ENDED} && {TEXT}")
    assert errors(page) == []
    assert sent(page)[-1]["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": LONG},
    ]


def test_a_server_that_is_gone_is_told_of(demo_bundle: Path, browser: Browser, tmp_path: Path) -> None:
    with serving(demo_bundle, tmp_path / "log", "--chain", "int8", "--drain-seconds", "0") as server:
        browser.open(f"{server.url}/")
        browser.until("document.getElementById('chain').value === 'off'")
        begin(browser, LONG)
        browser.until(TEXT)
    browser.until(ENDED)
    assert browser.run(TEXT)
    assert errors(browser) == ["the connection broke off"]
    browser.click(".again")
    browser.until(f"{ENDED} && {LAST}.querySelector('.error')")
    assert errors(browser) == ["the server cannot be reached; is it running?"]


def test_a_key_is_asked_for(demo_bundle: Path, browser: Browser, tmp_path: Path) -> None:
    shown = "!document.getElementById('key').hidden"
    with serving(demo_bundle, tmp_path / "log", "--chain", "int8", "--api-key", KEY) as server:
        browser.open(f"{server.url}/")
        browser.until(shown)
        for key, name in (("wrong", "Quasar"), (KEY, "demo")):
            browser.click("#secret")
            browser.write(key)
            browser.press("Enter")
            browser.until(f"document.getElementById('name').textContent === '{name}' && ({shown}) === {str(key != KEY).lower()}")
        assert ask(browser, QUESTION)
        browser.run("sessionStorage.setItem(KEY, 'changed')")
        begin(browser, QUESTION)
        browser.until(f"{shown} && {ENDED}")
        assert errors(browser) == ["no valid API key; send Authorization: Bearer KEY"]
        browser.click("#secret")
        browser.write(KEY)
        browser.press("Enter")
        browser.until(f"{ENDED} && {TEXT}")
        assert errors(browser) == []


PARTS: list[tuple[dict[str, str], list[list[str]]]] = [
    ({"reasoning_content": "Hm."}, [["<think>", ""], ["Hm", "int4"], [".", ""]]),  # a special token: no mark
    ({"reasoning_content": " So"}, [[" So", "int4"]]),
    ({"content": "<b>x</b>\n"}, [["<b>", "suffix"], ["x", ""], ["</b>\n", "suffix"]]),
    ({}, [["``", "int4"]]),  # held back, and told with the next part
    ({"content": "```py\n"}, [["`py\n", ""]]),
    ({"content": "1\n```\nend"}, [["1", "int4"], ["\n```\n", ""], ["end", "suffix"], ["<|im_end|>", "suffix"]]),
]


def test_text_is_text_and_marked_only_where_tokens_are_known(page: Browser) -> None:
    events = [
        {
            "choices": [{"delta": delta, "finish_reason": None}],
            "speculation": {"tokens": [token for token, _ in tokens], "origins": [origin for _, origin in tokens]},
        }
        for delta, tokens in PARTS
    ]
    page.run(f"""
        const turn = {{ text: "", chain: "" }}, shown = new Answer(turn);
        document.getElementById("log").append(shown.node);
        for (const event of {json.dumps(events)}) shown.take(event);
        shown.end("");
    """)
    thought, text = (page.run(f"{LAST}.querySelector('{where} > .text').textContent") for where in (".thought", ".answer"))
    assert (thought, text) == ("Hm. So", "<b>x</b>\n```py\n1\n```\nend")
    assert page.run(f"{LAST}.querySelector('.answer > .text').querySelectorAll('b').length") == 0
    assert page.run(f"{LAST}.querySelector('pre').textContent") == "```py\n1\n```\n"
    assert page.run(f"{LAST}.querySelector('.thought').open") is False
    shown = page.run(f"[...{LAST}.querySelectorAll('.text .mark')].map(mark => mark.textContent)")
    assert shown == [" So", "<b>", "</b>\n", "``", "1", "end"]
    assert keys(page) == {"int4": 4, "suffix": 4, "int8 itself": 5}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_can_be_hidden_and_all_fits_a_small_screen(page: Browser, scheme: str) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    choose(page, "other")
    page.write("prompt-lookup > int8")
    ask(page, f"{QUESTION} {'x' * 200}")
    style = f"getComputedStyle({LAST}.querySelector('.text .mark')).backgroundColor"
    marked = page.run(style)
    page.click("#marks")
    assert marked != page.run(style) == "rgba(0, 0, 0, 0)"
    page.click("#settings")
    wide = page.run("[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth).length")
    assert wide == 0
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 24, 28)" if scheme == "dark" else "rgb(254, 254, 253)"
    )
