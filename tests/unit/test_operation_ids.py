"""The ids of operations: clients are generated from them, in many languages."""

import keyword
import re
from collections.abc import Iterator

import api.config
from api.contract import openapi
from api.contract.operations import OPERATIONS
from tests.support.api_alone import NOWHERE

VERBS = (
    "add",
    "append",
    "create",
    "diff",
    "download",
    "drop",
    "get",
    "list",
    "open",
    "remove",
    "retract",
    "set",
    "stream",
    "validate",
)
_WORDS = """
abstract alias any arguments as asm associatedtype async await base become begin bool boolean box break byte
callable case catch chan char checked class clone companion const constructor continue crate data debugger
decimal declare decorator def default defer delegate delete deinit die do double dyn echo elif else elseif
empty end ensure enum eval event exit explicit export extends extension extern fallthrough false fileprivate
final finally fixed float fn for foreach friend from fun func function get global go goto guard if impl
implements implicit import in indirect infix init inline inout instanceof int interface internal is isset it
lateinit lazy let lock long loop macro map match mod module move mut namespace native new next nil none not
null number object of open operator optional out override package params parse part pass print priv private
proc protected protocol pub public raise range readonly receiver record redo ref register repeat require
required rescue rethrow retry return sbyte sealed select self set short sizeof stackalloc static string
struct subscript super suspend switch symbol synchronized tailrec template this throw throws trait transient
true try type typealias typedef typeof uint ulong unchecked undef undefined union unique unless unknown
unsafe unset unsized until use ushort using val value var vararg virtual void volatile weak when where while
with yield
"""
"""The words that some language takes for itself: JavaScript and TypeScript, Java and Kotlin, C#, Go, Rust,
Ruby, PHP and Swift; and names of Python's own."""
RESERVED = frozenset((*keyword.kwlist, *keyword.softkwlist, *_WORDS.split()))


def operation_ids() -> Iterator[str]:
    document = openapi.document(api.config.load({"DATABASE_URL": NOWHERE}).ranges)
    for of in document["paths"].values():
        for about in of.values():
            yield about["operationId"]


def test_every_operation_id_is_a_verb_with_its_object_in_camel_case() -> None:
    found = list(operation_ids())
    assert len(found) == len(OPERATIONS)
    for name in found:
        verb, rest = re.fullmatch(r"([a-z]+)((?:[A-Z][a-z]+)+)", name).groups()  # type: ignore[union-attr]
        assert verb in VERBS, f"{name} begins with no verb that we know"
        assert rest


def test_no_language_reserves_an_operation_id_in_any_case_that_clients_write() -> None:
    for name in operation_ids():
        snake = re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()
        for spelled in (name, snake, name.lower(), name[0].upper() + name[1:]):
            assert spelled not in RESERVED
    assert {"export", "import", "class", "None", "delete"} <= RESERVED, "so the test can fail"


def test_links_lead_to_operations_that_there_are() -> None:
    known = set(operation_ids())
    linked = [link["operationId"] for one in OPERATIONS for link in (one.links or {}).values()]
    assert linked
    assert set(linked) <= known
