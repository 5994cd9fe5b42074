"""The files of the page as a server has them, without a browser."""

import re
from pathlib import Path

import pytest

from zoo.serving.page_files import FOLDER, PAGE_HEADERS, page_files

ROOT = Path(__file__).resolve().parents[3]
FILES = page_files()
TEXTS = {path: file.content.decode("utf-8") for path, file in FILES.items()}


def test_the_page_is_at_the_root_and_its_files_have_the_types_that_browsers_ask_for():
    assert FILES["/"].media_type == "text/html; charset=utf-8"
    assert FILES["/page/page.js"].media_type == "text/javascript; charset=utf-8"
    assert FILES["/page/page.css"].media_type == "text/css; charset=utf-8"


def test_every_file_that_the_page_names_is_served_and_every_file_is_named():
    named = {f"/{name}" for name in re.findall(r'(?:src|href)="(page/[^"]+)"', TEXTS["/"])}
    for path, text in TEXTS.items():
        if path.endswith(".js"):
            named |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
        if path.endswith(".css"):
            named |= {f"/page/{name}" for name in re.findall(r"url\(([^)]+)\)", text)}
    assert named == FILES.keys() - {"/"}


@pytest.mark.parametrize("path", sorted(TEXTS))
def test_no_file_names_an_outside_address(path):
    assert re.findall(r"(?:https?:)?//(?!www\.w3\.org/)[\w-]+\.[\w.]+", TEXTS[path]) == []


@pytest.mark.parametrize("path", [path for path in sorted(TEXTS) if path.endswith(".js")])
def test_nothing_is_set_as_markup(path):
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", TEXTS[path]
    )


def test_the_page_has_no_script_or_style_that_its_policy_would_refuse():
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", TEXTS["/"])
    assert "unsafe" not in PAGE_HEADERS["Content-Security-Policy"]


def test_the_wheel_has_the_files():
    from hatchling.builders.wheel import WheelBuilder

    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"zoo/serving/page/{path.name}" for path in FOLDER.iterdir()} <= packed
