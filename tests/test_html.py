"""--report: one page that needs nothing else, says what the command says, and runs nothing that a file holds."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import save_file

from .pace import HANG_SECONDS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
HOSTILE = '<img src=x onerror=alert(1)></script><script>fetch("http://example.com")</script>\x1b[2J"\'&'


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def reports(fixtures, tmp_path, paramcli):
    """A report of each kind: one that holds, one that differs, one with structure, one of spectra."""
    source = fixtures / "silero_vad_16k.safetensors"
    paramcli(
        "add",
        source,
        "-t",
        "lstm_cell.weight_hh",
        "--view",
        "blocks=4",
        "--chain",
        "skew,cayley",
        "-o",
        tmp_path / "p.safetensors",
    )
    made = {name: tmp_path / f"{name}.html" for name in ("verify", "diff", "discover", "spectrum")}
    paramcli("verify", tmp_path / "p.safetensors", "--report", made["verify"])
    paramcli("diff", source, tmp_path / "p.safetensors", "--report", made["diff"], code=1)
    save_file({"s": torch.eye(6) * 2, HOSTILE: torch.eye(4), "z": torch.zeros(3)}, tmp_path / "s.safetensors")
    paramcli("discover", tmp_path / "s.safetensors", "--report", made["discover"])
    paramcli("spectrum", tmp_path / "s.safetensors", "-t", "*", "--report", made["spectrum"])
    return made


def test_a_report_says_what_the_command_says(reports):
    """Tensor, constraint, verdict and numbers are in the page, as are the plots."""
    verify, diff, discover, spectrum = (
        Page(reports[name].read_text()) for name in ("verify", "diff", "discover", "spectrum")
    )
    assert {"lstm_cell.weight_hh", "skew,cayley", "special_orthogonal (blocks=4)", "holds"} <= set(verify.text)
    assert verify.tags.count("svg") == 2 and "eigenvalues block 3 value" in verify.text
    assert "DIFFERENT: plain / parametrized" in diff.text and "conv1.bias" in diff.text
    assert "special_orthogonal" in discover.text and any("onerror" in words for words in discover.text)
    assert (
        "2 tensors: singular values from 1 to 2" in spectrum.text
        and spectrum.tags.count("svg") == 2
        and "sigma max" in spectrum.text
    )


# What differs from run to run.
RUN = re.compile("<dt>(command|date)</dt><dd>[^<]*</dd>")


def test_nothing_of_a_file_is_markup(reports):
    """A tensor named like markup, a script and an escape sequence is text, and the page has one script: ours."""
    for path in reports.values():
        text = path.read_text()
        page = Page(text)
        assert page.tags.count("script") == 1 and "img" not in page.tags and "\x1b" not in text
        assert not any(name.startswith("on") or name in ("style", "href", "src") for name, _ in page.attributes)


def test_the_policy_allows_the_page_and_nothing_else(reports):
    """default-src none, and hashes of exactly the style and script that are there."""
    import base64
    import hashlib

    text = reports["verify"].read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_report_is_there_whole_or_not_at_all(reports, tmp_path, paramcli):
    """An existing report needs --force; another ending is refused before any work; but for its run it says the same
    again.
    """
    before = RUN.sub("", reports["verify"].read_text())
    assert "exists" in paramcli("verify", tmp_path / "p.safetensors", "--report", reports["verify"], code=4).err
    paramcli("verify", tmp_path / "p.safetensors", "--report", reports["verify"], "-f")
    assert RUN.sub("", reports["verify"].read_text()) == before
    assert (
        "does not end in .html"
        in paramcli("verify", tmp_path / "p.safetensors", "--report", tmp_path / "r.pdf", code=2).err
    )


def test_a_failed_check_is_written_too(fc_checkpoint, tmp_path, paramcli):
    """Exit 1 and a report that says which; NaN sorts as the worst."""
    save_file({"w": torch.full((3, 3), float("nan")), "v": torch.eye(3) * 2}, tmp_path / "n.safetensors")
    paramcli(
        "verify",
        tmp_path / "n.safetensors",
        "-t",
        "*",
        "--constraint",
        "orthogonal",
        "--report",
        tmp_path / "r.html",
        code=1,
    )
    text = (tmp_path / "r.html").read_text()
    assert "2 tensors of 2: the constraint does not hold" in text and 'data-value="1e+308"' in text


def browse(page, tmp_path, *flags):
    """Open a page in Chromium, off line; returns (stdout, console messages, addresses that the page asked for)."""
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path}/profile",
            "--enable-logging=stderr",
            f"--log-net-log={log}",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    events = [e["params"] for e in json.loads(log.read_text())["events"] if isinstance(e.get("params"), dict)]
    # What the browser asks of its maker by itself has no origin; what a page asks for has the page's.
    asked = {e["url"] for e in events if "url" in e and e.get("initiator", "not an origin") != "not an origin"}
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line], asked


@needs_chromium
@pytest.mark.parametrize("name", ["verify", "diff", "discover", "spectrum"])
def test_a_browser_has_nothing_to_complain_of_and_nothing_to_fetch(name, reports, tmp_path):
    """No message in the console and no request: not for a font, an icon or anything."""
    dom, console, asked = browse(reports[name], tmp_path, "--dump-dom")
    assert "<h1>" in dom and console == []
    assert asked == set()


@needs_chromium
def test_a_page_that_fetches_is_noticed(reports, tmp_path):
    """An image from elsewhere is refused by the policy, and without it is seen by the test above."""
    text = reports["verify"].read_text().replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>')
    page = tmp_path / "img.html"
    page.write_text(text)
    _, console, asked = browse(page, tmp_path, "--dump-dom")
    assert len(console) == 1 and "Content Security Policy" in console[0] and asked == set()
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    assert browse(page, tmp_path, "--dump-dom")[2] == {"http://127.0.0.1:9/x.png"}


@needs_chromium
def test_tables_sort_by_a_click(reports, tmp_path):
    """The page's own script, clicked by one that only this test lets in: numbers by value, both ways."""
    click = (
        "const b = document.querySelectorAll('th')[2].firstChild; b.click(); "
        "const up = document.querySelector('td').textContent; b.click(); document.title = up + '|' + "
        "document.querySelector('td').textContent + '|' + b.parentNode.ariaSort"
    )
    text = reports["diff"].read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace(
        "</body>", f"<script>{click}</script></body>"
    )
    page = tmp_path / "click.html"
    page.write_text(text)
    dom, console, _ = browse(page, tmp_path, "--dump-dom")
    assert (
        console == []
        and re.search(r"<title>(.*?)</title>", dom)[1] == "stft_conv.weight|lstm_cell.weight_hh|descending"
    )
