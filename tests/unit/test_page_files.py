"""The files of the page: vendored ones are what their authors published, and none names another host."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest

from api import page

VENDORED = {
    "uPlot.esm.js": "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE-uPlot": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
OWN = sorted(name for name in page.contents() if name not in VENDORED)
NAMESPACES = ("http://www.w3.org/2000/svg",)


@pytest.mark.parametrize("name", VENDORED)
def test_vendored_files_are_the_published_ones(name: str) -> None:
    body = files("api.page").joinpath("vendor", name).read_bytes()
    assert hashlib.sha256(body).hexdigest() == VENDORED[name]


@pytest.mark.parametrize("name", OWN)
def test_no_file_names_another_host(name: str) -> None:
    text = page.contents()[name].body.decode()
    named = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", text))
    assert named <= set(NAMESPACES)


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith(".js")])
def test_no_script_makes_html_of_text(name: str) -> None:
    text = page.contents()[name].body.decode()
    assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|\beval\(|new Function|DOMParser", text)


def test_the_index_has_no_script_or_style_of_its_own() -> None:
    text = page.contents()["index.html"].body.decode()
    assert re.findall(r"<script[^>]*>", text) == ['<script type="module" src="main.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def test_the_policy_has_no_exception() -> None:
    assert "unsafe" not in page.POLICY
    assert set(re.findall(r"'([\w-]+)'", page.POLICY)) == {"none", "self"}
    assert page.POLICY.startswith("default-src 'none'")


def test_every_module_that_is_imported_is_served() -> None:
    for name in OWN:
        for wanted in re.findall(
            r'from "\./([\w.-]+)"|(?:src|href)="([\w-]+\.[\w.]+)"', page.contents()[name].body.decode()
        ):
            assert "".join(wanted) in page.contents(), (name, wanted)
