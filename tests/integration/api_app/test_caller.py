"""Who the server says that the caller is. A page asks this before anything else."""

import pytest

from api.contract.operations import BASE
from tests.support.api_alone import ORG, READER, problem
from tests.support.api_in_process import OTHER, Client

CALLER = f"{BASE}/caller"


async def test_a_caller_of_two_orgs_is_told_its_roles_and_orgs_in_order(gateway: Client) -> None:
    headers = {**READER, "X-Actor-Orgs": f"{OTHER},{ORG}"}
    response = await gateway.get(CALLER, headers=headers)
    assert await response.json() == {
        "subject": "ana",
        "roles": ["analytics:reliability:read", "analytics:usage:read"],
        "orgs": [ORG, OTHER],
        "allOrgs": False,
        "authMode": "gateway",
    }
    assert response.headers["Cache-Control"] == "private, no-cache"


async def test_an_administrator_reaches_every_org_and_owns_its_own(gateway: Client) -> None:
    answer = await (await gateway.get(CALLER, headers={**READER, "X-Actor-Roles": "admin"})).json()
    assert (answer["allOrgs"], answer["orgs"], answer["roles"]) == (True, [ORG], ["admin"])


async def test_where_nobody_signs_in_every_org_is_the_callers(client: Client) -> None:
    answer = await (await client.get(CALLER)).json()
    assert (answer["allOrgs"], answer["orgs"], answer["authMode"]) == (True, None, "none")


@pytest.mark.parametrize("key", ["orgId", "cursor"])
async def test_it_takes_no_parameter(client: Client, key: str) -> None:
    await problem(await client.get(CALLER, params={key: "1"}), 400)
