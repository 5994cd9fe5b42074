"""The page of a running server in a browser, for the tests of the page."""

import pytest


@pytest.fixture(scope="module")
def browser():
    from page_case import chromium

    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server():
    from page_case import page_server

    with page_server() as one:
        yield one


@pytest.fixture(scope="module")
def window(browser, server):
    from page_case import Visit

    with Visit(browser, server.url) as one:
        yield one


@pytest.fixture
def visit(window):
    return window.again().ready()
