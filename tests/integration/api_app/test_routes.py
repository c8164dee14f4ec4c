"""The table of routes is all that the server has, and all that the document describes."""

from dataclasses import fields

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import api
import api.config
import api.handlers
from api.access.guard import ANY_CALLER, Access
from api.app import create_app
from api.contract import openapi
from api.contract.operations import BASE, OPERATIONS, Operation
from tests.support.api_alone import NOWHERE, ORG, problem
from tests.support.api_in_process import Client


async def test_the_server_has_the_routes_of_the_table_and_no_others(client: Client) -> None:
    routes = [
        (route.method, route.resource.canonical) for route in client.app.router.routes() if route.resource
    ]
    stated = [(operation.method, operation.path) for operation in OPERATIONS]
    heads = [("HEAD", path) for method, path in stated if method == "GET"]
    assert sorted(routes) == sorted(stated + heads)


def test_the_document_describes_the_routes_of_the_table_and_no_others() -> None:
    document = openapi.document(api.config.load({"DATABASE_URL": NOWHERE}).ranges)
    described = {
        (method.upper(), path): about
        for path, of in document["paths"].items()
        for method, about in of.items()
    }
    assert described.keys() == {(operation.method, operation.path) for operation in OPERATIONS}
    names = [about["operationId"] for about in described.values()]
    assert len(names) == len(set(names))
    assert all(about["summary"] for about in described.values())
    open_to_all = {key for key, about in described.items() if about["security"] == []}
    assert open_to_all == {(o.method, o.path) for o in OPERATIONS if o.access.public}


@pytest.mark.parametrize("missing", ["access", "handler", "name", "summary", "answer"])
def test_a_route_without_role_handler_or_document_cannot_be_made(missing: str) -> None:
    stated = {field.name: getattr(OPERATIONS[0], field.name) for field in fields(Operation)}
    assert Operation(**stated) == OPERATIONS[0]
    del stated[missing]
    with pytest.raises(TypeError, match=missing):
        Operation(**stated)


def test_an_access_names_a_role_that_there_is() -> None:
    with pytest.raises(TypeError, match="role"):
        Access()  # type: ignore[call-arg]
    for role in ("", "analytics:usage", None):
        with pytest.raises(ValueError, match="no such role"):
            Access(role=role)  # type: ignore[arg-type]


async def test_a_route_beside_the_table_is_refused_and_its_handler_not_called() -> None:
    async def handler(_: web.Request) -> web.Response:
        raise AssertionError("called")

    app = create_app(api.config.load({"DATABASE_URL": NOWHERE}))
    app.router.add_get(f"{BASE}/orgs/{{orgId}}/secrets", handler)
    async with TestClient(TestServer(app)) as client:
        await problem(await client.get(f"{BASE}/orgs/{ORG}/secrets"), 500)


def test_only_two_routes_that_show_no_figures_ask_for_no_role() -> None:
    asks_for_none = {o.name for o in OPERATIONS if o.access.role == ANY_CALLER}
    assert asks_for_none == {"validateEvent", "getCaller"}


def test_only_status_metrics_and_the_document_are_public() -> None:
    assert {operation.path for operation in OPERATIONS if operation.access.public} == {
        f"{BASE}/status/healthz",
        f"{BASE}/status/readyz",
        f"{BASE}/openapi.json",
        f"{BASE}/docs",
        f"{BASE}/app",
        f"{BASE}/app/",
        f"{BASE}/app/{{file}}",  # files without figures: the page asks for those with a credential
        f"{BASE}/exports/{{jobId}}/file",  # its signature is the credential
        "/metrics",
        "/",
    }


async def test_the_address_of_the_server_leads_to_the_page(client: Client) -> None:
    for method in ("GET", "HEAD"):
        assert (await client.request(method, "/", allow_redirects=False)).status == 302
    response = await client.get("/")
    assert (await client.get(f"{BASE}/app")).url.path == f"{BASE}/app/"
    assert (response.status, response.content_type, response.url.path) == (200, "text/html", f"{BASE}/app/")
