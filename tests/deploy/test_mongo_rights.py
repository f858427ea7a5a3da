"""
What MongoDB refuses: to strangers everything, to the ledger's own user whatever would change what the log says.

Each line of the tables is one operation, tried on a real mongod.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo import IndexModel
from pymongo.database import Database
from pymongo.errors import OperationFailure

from deploy.identities import MONGO_RIGHTS, SERVICES, Identities
from deploy.servers import DATABASE, HOST, MongoServer

UNAUTHORIZED, AUTHENTICATION_FAILED = 13, 18
Data = Database[dict[str, Any]]
Doing = Callable[[Data], object]


@pytest.fixture(scope="module")
def ledger(mongo_server: MongoServer) -> Iterator[Data]:
    with pymongo.MongoClient[dict[str, Any]](mongo_server.admin_uri) as admin:
        admin[DATABASE]["events"].replace_one({"_id": 7}, {"_id": 7, "b": b"leaf"}, upsert=True)
    with pymongo.MongoClient[dict[str, Any]](mongo_server.uri) as client:
        yield client[DATABASE]


@pytest.fixture(scope="module")
def auditor(mongo_server: MongoServer) -> Iterator[Data]:
    with pymongo.MongoClient[dict[str, Any]](mongo_server.auditor_uri) as client:
        yield client[DATABASE]


def _refused(database: Data, doing: Doing) -> int | None:
    with pytest.raises(OperationFailure) as caught:
        doing(database)
    return caught.value.code


FORBIDDEN_TO_THE_LEDGER: dict[str, Doing] = {
    "updates_a_leaf": lambda d: d["events"].update_one({"_id": 7}, {"$set": {"b": b"forged"}}),
    "replaces_a_leaf": lambda d: d["events"].replace_one({"_id": 7}, {"b": b"forged"}, upsert=True),
    "finds_and_modifies_a_leaf": lambda d: d["events"].find_one_and_update({"_id": 7}, {"$set": {"b": b"forged"}}),
    "deletes_a_leaf": lambda d: d["events"].delete_one({"_id": 7}),
    "deletes_every_leaf": lambda d: d["events"].delete_many({}),
    "drops_the_log": lambda d: d["events"].drop(),
    "renames_the_log_away": lambda d: d["events"].rename("events_old"),
    "renames_another_collection_over_the_log": lambda d: d["proj_cases"].rename("events", dropTarget=True),
    "writes_over_the_log_by_an_aggregation": lambda d: d["proj_cases"].aggregate([{"$out": "events"}]),
    "merges_into_the_log_by_an_aggregation": lambda d: d["proj_cases"].aggregate([{"$merge": {"into": "events"}}]),
    "caps_the_log": lambda d: d.command("convertToCapped", "events", size=4096),
    "changes_the_log's_options": lambda d: d.command("collMod", "events", validationLevel="off"),
    "drops_an_index_of_the_log": lambda d: d["events"].drop_indexes(),
    "deletes_what_was_rejected": lambda d: d["rejects"].delete_many({}),
    "rewrites_a_checkpoint": lambda d: d["checkpoints"].update_one({}, {"$set": {"size": 0}}, upsert=True),
    "rewrites_a_tile": lambda d: d["tiles"].update_one({}, {"$set": {"b": b""}}, upsert=True),
    "deletes_a_cosignature": lambda d: d["cosigs"].delete_many({}),
    "drops_its_database": lambda d: d.client.drop_database(DATABASE),
    "makes_a_collection_of_another_name": lambda d: d["elsewhere"].insert_one({}),
    "reads_another_database": lambda d: d.client["elsewhere"]["x"].find_one(),
    "reads_the_admin_database": lambda d: d.client["admin"]["system.users"].find_one(),
    "reads_the_oplog": lambda d: d.client["local"]["oplog.rs"].find_one(),
    "makes_a_user": lambda d: d.command("createUser", "mallory", pwd="x", roles=["dbOwner"]),
    "gives_itself_a_role": lambda d: d.command("grantRolesToUser", "ledger", roles=["dbOwner"]),
    "widens_its_role": lambda d: d.command("updateRole", "ledger", roles=["readWrite"]),
    "changes_its_password": lambda d: d.command("updateUser", "ledger", pwd="x"),
    "stops_the_server": lambda d: d.client.admin.command("shutdown"),
    "reconfigures_the_replica_set": lambda d: d.client.admin.command("replSetStepDown", 1),
    "sees_what_others_do": lambda d: list(d.client.admin.aggregate([{"$currentOp": {"allUsers": True}}])),
}


FORBIDDEN_TO_REPAIRS: dict[str, Doing] = {
    "updates_a_leaf": FORBIDDEN_TO_THE_LEDGER["updates_a_leaf"],
    "adds_a_leaf": lambda d: d["events"].insert_one({"_id": 8}),
    "deletes_a_leaf": FORBIDDEN_TO_THE_LEDGER["deletes_a_leaf"],
    "drops_the_log": FORBIDDEN_TO_THE_LEDGER["drops_the_log"],
    "drops_the_tiles": lambda d: d["tiles"].drop(),
    "deletes_a_tile": lambda d: d["tiles"].delete_one({}),
    "adds_a_checkpoint": lambda d: d["checkpoints"].insert_one({"_id": 9}),
    "rewrites_a_checkpoint": FORBIDDEN_TO_THE_LEDGER["rewrites_a_checkpoint"],
    "reads_what_was_rejected": lambda d: d["rejects"].find_one(),
}


@pytest.mark.parametrize("operation", FORBIDDEN_TO_REPAIRS)
def test_it_is_refused_that_who_repairs(mongo_server: MongoServer, operation: str) -> None:
    with pymongo.MongoClient[dict[str, Any]](mongo_server.repair_uri) as client:
        assert _refused(client[DATABASE], FORBIDDEN_TO_REPAIRS[operation]) == UNAUTHORIZED


@pytest.mark.parametrize("operation", FORBIDDEN_TO_THE_LEDGER)
def test_it_is_refused_that_the_ledger(ledger: Data, operation: str) -> None:
    assert _refused(ledger, FORBIDDEN_TO_THE_LEDGER[operation]) == UNAUTHORIZED
    assert ledger["events"].find_one({"_id": 7}) == {"_id": 7, "b": b"leaf"}


def test_the_ledger_may_let_the_log_grow_and_fold_it(ledger: Data) -> None:
    for log in ("events", "rejects", "tiles", "checkpoints", "cosigs"):
        ledger[log].insert_one({"n": 1})
        assert ledger[log].find_one({"n": 1})
        ledger[log].create_indexes([IndexModel("n")])
    for folded in ("proj_cases", "proj_cases_rebuilt", "proj_state"):
        ledger[folded].replace_one({"_id": 1}, {"n": 2}, upsert=True)
    ledger["proj_cases_rebuilt"].rename("proj_cases", dropTarget=True)
    ledger["proj_cases_rebuilt"].drop()


FORBIDDEN_TO_THE_AUDITOR: dict[str, Doing] = {
    "inserts_a_leaf": lambda d: d["events"].insert_one({"_id": 8}),
    "updates_a_leaf": lambda d: d["events"].update_one({"_id": 7}, {"$set": {"b": b"forged"}}),
    "deletes_a_leaf": lambda d: d["events"].delete_one({"_id": 7}),
    "changes_a_projection": lambda d: d["proj_cases"].update_one({"_id": 1}, {"$set": {"n": 3}}),
    "makes_an_index": lambda d: d["events"].create_index("b"),
    "makes_a_user": lambda d: d.command("createUser", "mallory", pwd="x", roles=["read"]),
    "reads_the_admin_database": lambda d: d.client["admin"]["system.users"].find_one(),
}


@pytest.mark.parametrize("operation", FORBIDDEN_TO_THE_AUDITOR)
def test_it_is_refused_that_the_auditor(auditor: Data, ledger: Data, operation: str) -> None:
    assert _refused(auditor, FORBIDDEN_TO_THE_AUDITOR[operation]) == UNAUTHORIZED


def test_the_auditor_reads_every_collection(auditor: Data, ledger: Data) -> None:
    assert auditor["events"].find_one({"_id": 7})
    for collection in MONGO_RIGHTS:
        auditor[collection].find_one()


STRANGERS = {
    "somebody_unknown": "mallory:guessed",
    "the_ledger_with_a_wrong_password": "ledger:guessed",
    **{service: f"{service}:{service}" for service in SERVICES if service != "ledger"},
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_does_not_log_in(mongo_server: MongoServer, who: str) -> None:
    with pymongo.MongoClient[dict[str, Any]](
        f"mongodb://{STRANGERS[who]}@{HOST}:{mongo_server.port}/{DATABASE}"
    ) as client:
        assert _refused(client[DATABASE], lambda d: d["events"].find_one()) == AUTHENTICATION_FAILED


def test_nobody_reads_without_a_user(mongo_server: MongoServer) -> None:
    with pymongo.MongoClient[dict[str, Any]](HOST, mongo_server.port) as client:
        assert _refused(client[DATABASE], lambda d: d["events"].find_one()) == UNAUTHORIZED
        assert _refused(client[DATABASE], lambda d: d.command("createUser", "m", pwd="m", roles=[])) == UNAUTHORIZED


def test_another_service_s_user_reads_nothing_here(mongo_server: MongoServer, mongo_database: str) -> None:
    with pymongo.MongoClient[dict[str, Any]](mongo_server.admin_uri) as admin:
        admin[mongo_database].command("createUser", "maps", pwd="maps", roles=["dbOwner"])
    try:
        uri = f"mongodb://maps:maps@{HOST}:{mongo_server.port}/{mongo_database}"
        with pymongo.MongoClient[dict[str, Any]](uri) as client:
            client[mongo_database]["tiles"].insert_one({})
            assert _refused(client[DATABASE], lambda d: d["events"].find_one()) == UNAUTHORIZED
            assert _refused(client[DATABASE], lambda d: d["events"].insert_one({})) == UNAUTHORIZED
    finally:
        with pymongo.MongoClient[dict[str, Any]](mongo_server.admin_uri) as admin:
            admin[mongo_database].command("dropUser", "maps")


def test_a_folder_from_before_gets_today_s_rights(tmp_path: Path, identities: Identities) -> None:
    with MongoServer(tmp_path / "mongo", identities) as server:
        with pymongo.MongoClient[dict[str, Any]](server.admin_uri) as admin:
            admin[DATABASE].command("updateUser", "ledger", roles=[{"role": "readWrite", "db": DATABASE}])
            admin[DATABASE].command("dropUser", "auditor")
            admin[DATABASE].command("dropRole", "ledger")
        server.stop()
        server.start()
        with pymongo.MongoClient[dict[str, Any]](server.uri) as client:
            client[DATABASE]["events"].insert_one({"_id": 1})
            assert _refused(client[DATABASE], lambda d: d["events"].delete_many({})) == UNAUTHORIZED
        with pymongo.MongoClient[dict[str, Any]](server.auditor_uri) as client:
            assert client[DATABASE]["events"].count_documents({}) == 1
