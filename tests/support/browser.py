"""A real headless Chromium, driven over its DevTools protocol: what it shows, complains of, and does when clicked.

Pages are read and clicked through the DOM and input domains, which need no script: so they can be tried without any.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.documented import commands
from support.gateway import DEADLINE
from support.operator_tools import tool

ARTEFACTS = Path(__file__).parents[2] / "artefacts"
"""Screenshots of the last run; not in git."""
POLICIES = Path("/etc/chromium/policies/managed")

_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


class Page:
    """One tab. ``complaints``: errors of the console, breaches of the content security policy, what did not load."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._frame = self._loader = ""
        self.complaints: list[str] = []

    async def read(self) -> None:
        """Until the browser ends."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
                continue
            self._complain(told)
            self._events.put_nowait(told)

    def _complain(self, told: dict[str, Any]) -> None:
        params = told["params"]
        match told["method"]:
            case "Log.entryAdded" if params["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(f"{params['entry']['source']}: {params['entry']['text']}")
            case "Runtime.exceptionThrown" | "Audits.issueAdded" | "Network.loadingFailed":
                self.complaints.append(json.dumps(told))
            case "Network.responseReceived" if params["response"]["status"] >= 400:
                self.complaints.append(f"{params['response']['status']} for {params['response']['url']}")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session is not None else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        answer = await asyncio.wait_for(self._answers[number], DEADLINE)
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def attach(self) -> None:
        (target,) = [each for each in (await self.call("Target.getTargets"))["targetInfos"] if each["type"] == "page"]
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "DOM", "Log", "Runtime", "Network", "Audits"):
            await self.call(f"{domain}.enable")
        await self.call("Page.setLifecycleEventsEnabled", enabled=True)

    async def _loaded(self, loader: str | None = None) -> None:
        """Until the document of this loader, or of any but the last one, is there.

        An earlier navigation of a script can end in the midst of this one, and its document goes again at once.
        """
        while True:
            event = await asyncio.wait_for(self._events.get(), DEADLINE)
            params = event["params"]
            if event["method"] != "Page.lifecycleEvent" or (params["name"], params["frameId"]) != ("load", self._frame):
                continue
            if params["loaderId"] != self._loader and loader in {None, params["loaderId"]}:
                self._loader = params["loaderId"]
                return

    async def open(self, url: str) -> str:
        """The text that is there then."""
        self._events = asyncio.Queue()
        self._frame = (navigation := await self.call("Page.navigate", url=url))["frameId"]
        await self._loaded(navigation["loaderId"])
        return await self.html()

    async def run(self, script: str) -> Any:
        """The value of an expression of the page, awaited where it is a promise."""
        ran = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in ran, ran
        return ran["result"].get("value")

    async def without_scripts(self) -> None:
        await self.call("Emulation.setScriptExecutionDisabled", value=True)

    async def html(self) -> str:
        document = await self.call("DOM.getDocument")
        return str((await self.call("DOM.getOuterHTML", nodeId=document["root"]["nodeId"]))["outerHTML"])

    async def attributes(self, selector: str) -> list[dict[str, str]]:
        """Of each element that this CSS selector finds."""
        found = []
        for node in await self._nodes(selector):
            flat = (await self.call("DOM.getAttributes", nodeId=node))["attributes"]
            found.append(dict(zip(flat[::2], flat[1::2], strict=True)))
        return found

    async def _nodes(self, selector: str) -> list[int]:
        document = await self.call("DOM.getDocument")
        found = await self.call("DOM.querySelectorAll", nodeId=document["root"]["nodeId"], selector=selector)
        return list(found["nodeIds"])

    async def click(self, selector: str) -> str:
        """With the mouse, on the one element that this finds; the document that this leads to."""
        (node,) = await self._nodes(selector)
        await self.call("DOM.scrollIntoViewIfNeeded", nodeId=node)
        corners = (await self.call("DOM.getContentQuads", nodeId=node))["quads"][0]
        place = {"x": sum(corners[::2]) / 4, "y": sum(corners[1::2]) / 4, "button": "left", "clickCount": 1}
        self._events = asyncio.Queue()
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, **place)
        await self._loaded()
        return await self.html()

    async def narrow(self, width: int) -> None:
        """A window of so many CSS pixels, as a telephone's."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )

    async def widths(self) -> tuple[float, float]:
        """(of the document, of the window) in CSS pixels."""
        metrics = await self.call("Page.getLayoutMetrics")
        return metrics["cssContentSize"]["width"], metrics["cssLayoutViewport"]["clientWidth"]

    async def spans(self, selector: str) -> list[tuple[float, float]]:
        """Left and right edges of each element that this CSS selector finds; it fails where one is not rendered."""
        found = []
        for node in await self._nodes(selector):
            xs = (await self.call("DOM.getContentQuads", nodeId=node))["quads"][0][::2]
            found.append((min(xs), max(xs)))
        return found

    async def screenshot(self, name: str) -> bytes:
        """The whole page, kept among the artefacts."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        image = base64.b64decode(shot["data"])
        ARTEFACTS.mkdir(exist_ok=True)
        (ARTEFACTS / name).write_bytes(image)
        return image


def home_with_certificate(home: Path, files: Path, name: str) -> Path:
    """``home``, with an NSS database that trusts the CA of ``files`` and holds NAME.pem, by the documents' recipe."""
    database = home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    bundle = home / f"{name}.p12"
    (documented,) = commands("docs/clients.md", "openssl pkcs12")
    command = documented.replace("certs/", f"{files}/").replace("alice.p12", str(bundle)).replace("alice", name)
    _made(*shlex.split(command), "-passout", "pass:p12")
    _made("certutil", "-d", f"sql:{database}", "-N", "--empty-password")
    _made("certutil", "-d", f"sql:{database}", "-A", "-n", "site CA", "-t", "C,,", "-i", files / "ca.pem")
    _made("pk12util", "-d", f"sql:{database}", "-i", bundle, "-W", "p12", "-K", "")
    return home


def _made(program: str, *arguments: str | Path) -> None:
    done = subprocess.run([tool(program), *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def certificate_selected_for(*origins: str) -> Iterator[None]:
    """By the policy AutoSelectCertificateForUrls: without one a browser would ask a person, who is not there.

    It is the whole machine's; so it names these origins alone, in a file of its own that is gone afterwards. Of several
    files one counts, so that tests that run at the same time wait for each other.
    """
    if not os.access(next(each for each in (POLICIES, *POLICIES.parents) if each.exists()), os.W_OK):
        pytest.skip(f"{POLICIES} may not be written")
    with Path(tempfile.gettempdir(), "tlsproxy-test-policy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = [each for each in (POLICIES, *POLICIES.parents) if not each.exists()]
        POLICIES.mkdir(parents=True, exist_ok=True)
        policy = POLICIES / f"tlsproxy-test-{os.getpid()}.json"
        try:
            rules = [json.dumps({"pattern": origin, "filter": {}}) for origin in origins]
            policy.write_text(json.dumps({"AutoSelectCertificateForUrls": rules}))
            yield
        finally:
            policy.unlink(missing_ok=True)
            for directory in made:
                with suppress(OSError):  # another's policy is there
                    directory.rmdir()


@asynccontextmanager
async def chromium(home: Path) -> AsyncIterator[Page]:
    """The NSS database with its certificates is in ``home``.

    Its own files are in a directory with a short name: it makes a unix socket there, whose path may have 107 bytes.
    """
    scratch = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
    process = await asyncio.create_subprocess_exec(
        tool("chromium"),
        *_OPTIONS,
        f"--user-data-dir={scratch.name}/profile",
        "--window-size=1280,1400",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "HOME": str(home), "TMPDIR": scratch.name},
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        address = await asyncio.wait_for(_devtools(process.stderr), DEADLINE)
        drained = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            page = Page(socket)
            reading = asyncio.create_task(page.read())
            await page.attach()
            yield page
            reading.cancel()
            drained.cancel()
            await asyncio.gather(reading, drained, return_exceptions=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: it and all of its helpers
        await process.wait()
        scratch.cleanup()


async def _devtools(stderr: asyncio.StreamReader) -> str:
    said = ""
    while line := (await stderr.readline()).decode(errors="replace"):
        said += line
        if found := re.match(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise AssertionError(f"the browser ended before it could be driven:\n{said}")


def browsing(home: Path, scenario: Callable[[Page], Any]) -> None:
    """Runs this coroutine function with a browser of its own."""

    async def run() -> None:
        async with chromium(home) as page:
            await scenario(page)

    asyncio.run(run())
