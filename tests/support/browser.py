"""A report's page in a real Chromium without a window: a script acts on the page, and says what it found.

The page is a copy with the script at its end, shown in a frame of the wanted width; what the script returns comes back
as JSON. No driver is needed: Chromium prints the document when the script has ended.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "needs Chromium (Debian: apt install chromium)"
WAIT_S = 60
# What a script may use. `settled` waits until what the page does in the background has been done.
HELPERS = """
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const one = (query) => document.querySelector(query);
const all = (query) => [...document.querySelectorAll(query)];
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const choose = async (name, value) => {
  const box = one(`select[name="${name}"]`);
  box.value = value;
  if (box.value !== value) throw new Error(`${name} has no ${value}`);
  box.dispatchEvent(new Event("change", { bubbles: true }));
  await sleep(300);
};
"""


def act(page: Path, script: str, folder: Path, width: int = 1400, dark: bool = False) -> Any:
    """Returns what `script`, the body of an async function, returns on the page; its errors are AssertionErrors.

    Warnings and errors of the console, and requests of the page, are errors too.
    """
    ends = f"""<script>
addEventListener("error", (event) => parent.postMessage({{ error: event.message }}, "*"));
addEventListener("unhandledrejection", (event) => parent.postMessage({{ error: String(event.reason) }}, "*"));
setTimeout(async () => {{
  {HELPERS}
  try {{
    const found = await (async () => {{ {script} }})();
    const requests = performance.getEntriesByType("resource").map((entry) => entry.name);
    parent.postMessage({{ found, requests }}, "*");
  }} catch (error) {{ parent.postMessage({{ error: String(error.stack ?? error) }}, "*"); }}
}}, 800);
</script>"""
    copy = folder / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{ends}</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(
        f'<!doctype html><title>frame</title><iframe src="page.html" width={width} height=900></iframe>'
        '<pre id="told"></pre>'
        '<script>addEventListener("message", (event) => { if (!told.textContent) told.textContent = '
        "JSON.stringify(event.data); });</script>"
    )
    told = _run(folder, f"--window-size={width + 40},1000", *["--blink-settings=preferredColorScheme=0"] * dark)
    text = re.search(r'<pre id="told">(.*?)</pre>', told.stdout, re.DOTALL)
    assert text is not None and text[1], f"the page said nothing: {told.stderr[-600:]}"
    message = json.loads(html.unescape(text[1]))
    assert "error" not in message, message["error"]
    assert message["requests"] == [], "the page is to load nothing"
    console = [line for line in told.stderr.splitlines() if ":CONSOLE" in line]
    assert not console, console
    return message.get("found")


def _run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs Chromium on the frame in a folder."""
    assert CHROMIUM is not None
    common = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
    ]
    wait = [f"--virtual-time-budget={WAIT_S * 1000}", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [CHROMIUM, *common, *wait, *options, (folder / "frame.html").as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * WAIT_S, check=False, env=environment)
