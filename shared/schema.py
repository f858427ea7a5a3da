"""
The catalogue of facts for other people's programs: JSON Schemas, an AsyncAPI 3 document and a page to read (`paidan schema`).

All of it is generated from `shared/facts.py`. A schema says what a reader may rely on; it permits fields it does not know,
because a later writer of the same version may add some. What would break a reader of a published version is named by
`breaking`, and CI refuses it: such a change is a new version of the fact, beside the old one.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shared import facts
from shared.envelope import CONTENT_TYPE
from shared.facts import CATALOGUE, Fact, InputRefused, Part, TurnCommitted
from shared.problems import PROBLEMS

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENVELOPE = "envelope.v1.json"
ID = r"^[0-9a-f-]{36}$"
SERVICES: Mapping[str, str] = {
    "intake": "Takes residents' requests in.",
    "dispatch": "The desk of each district: matches requests to members, keeps tasks and their clocks.",
    "notify": "Messages people.",
    "ledger": "Keeps every fact, and the register (台账).",
}


def write(folder: Path, check: bool = False, more: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """
    Bring the generated files in a folder (`docs/`) up to date.

    Args:
        check: compare only, change nothing.
        more: files that are made elsewhere, text by name.
    Returns: the names that differ, `schemas/task.offered.v1.json`; empty where all is as generated.
    """
    differ = []
    for name, text in {**documents(), **more}.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            differ.append(name)
            if not check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    return differ


def documents() -> dict[str, str]:
    """Every generated file by its name inside `docs/`."""
    schemas = {ENVELOPE: envelope_schema(), **{f"{versioned(fact)}.json": fact_schema(fact) for fact in CATALOGUE}}
    made = {f"schemas/{name}": schema for name, schema in schemas.items()} | {"asyncapi.json": asyncapi()}
    texts = {name: json.dumps(document, ensure_ascii=False, indent=2) + "\n" for name, document in made.items()}
    return texts | {"facts.md": page()}


def versioned(fact: type[Fact]) -> str:
    """A fact's name with its version: `task.offered.v1`. A fact that several services write has one schema."""
    return f"{fact.name}.v{fact.schema_version}"


# --- JSON Schema ------------------------------------------------------------------------------------------------------


def envelope_schema() -> Schema:
    """What is around every fact: CloudEvents 1.0 with our extensions."""
    return {
        "$schema": DIALECT,
        "title": "Envelope",
        "description": "A CloudEvents 1.0 event in structured JSON (RFC 8785 bytes) with the attributes that Paidan adds.",
        **_envelope(),
    }


def _envelope() -> Schema:
    text = {"type": "string"}
    properties: Schema = {
        "specversion": {"const": "1.0"},
        "id": {
            "type": "string",
            "pattern": ID,
            "description": "Unique for ever; a decision taken again gives the same.",
        },
        "type": {"type": "string", "pattern": r"^cn\.paidan\.[a-z_]+\.[a-z_]+\.v[0-9]+$"},
        "source": {
            "type": "string",
            "pattern": r"^/paidan/\d{6}/[a-z]+$",
            "description": "The district and the writer.",
        },
        "subject": {**text, "description": "The id of the entity that it is about."},
        "time": {"type": "string", "format": "date-time"},
        "data": {"type": "object"},
        "districts": {
            "type": "string",
            "pattern": r"^\d{6}(,\d{6})*$",
            "description": "Who may see it: adcodes, the serving district first.",
        },
        "correlationid": {"type": "string", "pattern": ID, "description": "The request that it is all about."},
        "causationid": {**text, "description": "The fact or command that led to it."},
        "actor": {**text, "description": "`<role>:<id>` where a person's command led to it."},
        "traceparent": {**text, "description": "W3C trace context."},
    }
    required = ["specversion", "id", "type", "source", "subject", "time", "data", "districts"]
    return {"type": "object", "properties": properties, "required": required}


def fact_schema(fact: type[Fact]) -> Schema:
    """A fact in its envelope, in JSON Schema 2020-12."""
    data = fact.model_json_schema()
    definitions = data.pop("$defs", {})
    schema: Schema = {
        "$schema": DIALECT,
        "title": fact.__name__,
        "description": _meaning(fact),
        "$ref": ENVELOPE,
        "properties": {**_particular(fact), "data": _tidy(data, fact)},
    }
    if definitions:
        schema["$defs"] = {name: _tidy(part, _part(name)) for name, part in sorted(definitions.items())}
    return schema


def _particular(fact: type[Fact]) -> Schema:
    """What a fact makes certain about its envelope."""
    writers = sorted({other.service for other in CATALOGUE if other.name == fact.name})
    one = writers[0] if len(writers) == 1 else f"({'|'.join(writers)})"
    return {"type": {"const": fact.type()}, "source": {"type": "string", "pattern": rf"^/paidan/\d{{6}}/{one}$"}}


def _part(name: str) -> type[Part]:
    part: type[Part] = getattr(facts, name)
    return part


def _tidy(schema: Schema, model: type[Part]) -> Schema:
    """pydantic's schema without what readers do not need: titles made from names, null for what is simply left out."""
    tidied: Schema = _simplify(schema)
    tidied.pop("title", None)
    tidied["description"] = _meaning(model)
    said = _said(model)
    for name, field in tidied.get("properties", {}).items():
        if name in said:
            field["description"] = said[name]
    return tidied


def _simplify(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_simplify(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            plain[key] = {name: _without_null(_simplify(field)) for name, field in value.items()}
        elif key not in ("title", "additionalProperties") or not isinstance(value, str | bool):
            plain[key] = value if key in ("default", "enum", "const", "required") else _simplify(value)
    return plain


def _without_null(field: Schema) -> Schema:
    """An optional field is left out where it is absent; it is never null."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if field.get("default", ...) is None:
        field = {key: value for key, value in field.items() if key != "default"}
    if len(kinds) == 1:
        rest = {key: value for key, value in field.items() if key != "anyOf"}
        return {**kinds[0], **rest}
    return field


def _meaning(model: type[Part]) -> str:
    """A docstring's first paragraph."""
    return " ".join((inspect.getdoc(model) or "").split("\n\n")[0].split())


@cache
def _docstrings() -> Mapping[str, Mapping[str, str]]:
    """What `shared/facts.py` says under each field, by class."""
    said: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(facts)).body:
        if isinstance(node, ast.ClassDef):
            said[node.name] = {}
            for statement, after in zip(node.body, node.body[1:], strict=False):
                match statement, after:
                    case (
                        ast.AnnAssign(target=ast.Name(id=field)),
                        ast.Expr(value=ast.Constant(value=str() as text)),
                    ):
                        said[node.name][field] = " ".join(text.split())
    return said


def _said(model: type[Part]) -> Mapping[str, str]:
    """The descriptions of a model's fields, its parents' included."""
    return {
        name: text for base in reversed(model.__mro__) for name, text in _docstrings().get(base.__name__, {}).items()
    }


# --- what breaks a reader ---------------------------------------------------------------------------------------------

_EXACT = ("type", "format", "pattern", "const")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")


def breaking(old: Schema, new: Schema) -> list[str]:
    """
    What in a fact's new schema breaks somebody: a reader of the old one, or the reading of facts that are already stored.

    Args:
        old, new: documents of `docs/schemas`, or parts of them.
    Returns: each with the path of its field, `data.members: type array → string`; empty where the change is harmless.
    """
    return list(_breaking(old, new, old, new, ""))


def _breaking(old: Schema, new: Schema, old_all: Schema, new_all: Schema, path: str) -> Iterator[str]:
    old, new = _resolved(old, old_all), _resolved(new, new_all)
    here = path or "the fact"
    for key in _EXACT:
        if old.get(key) != new.get(key):
            yield f"{here}: {key} {old.get(key)} → {new.get(key)}"
    yield from _narrowed(old, new, here)
    had, has = old.get("properties", {}), new.get("properties", {})
    for name in sorted(had):
        field = f"{path}.{name}".lstrip(".")
        if name not in has:
            yield f"{field}: removed"
        else:
            yield from _breaking(had[name], has[name], old_all, new_all, field)
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"{path}.{name}: now required".lstrip(".")
    for name in sorted(set(old.get("required", ())) - set(new.get("required", ()))):
        if name in has:
            yield f"{path}.{name}: no longer always there".lstrip(".")
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            yield from _breaking(old[key], new[key], old_all, new_all, f"{path}[]")
        elif old.get(key) != new.get(key):
            yield f"{here}: {key} {old.get(key)} → {new.get(key)}"
    for key in ("prefixItems", "anyOf"):
        before, after = old.get(key, []), new.get(key, [])
        if len(before) != len(after):
            yield f"{here}: {key} of {len(before)} → {len(after)}"
        for n, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _breaking(one, other, old_all, new_all, f"{path}[{n}]")


def _narrowed(old: Schema, new: Schema, here: str) -> Iterator[str]:
    """Values that were permitted and are no longer."""
    if "enum" in new:
        gone = [value for value in old.get("enum", ["anything"]) if value not in new["enum"]]
        if gone:
            yield f"{here}: no longer {', '.join(map(str, gone))}"
    elif "enum" in old:
        yield f"{here}: any value, where there were {len(old['enum'])}"
    for keys, narrower in ((_UPPER, int.__lt__), (_LOWER, int.__gt__)):
        for key in keys:
            before, after = old.get(key), new.get(key)
            if after is not None and (before is None or narrower(after, before)):
                yield f"{here}: {key} {before} → {after}"


def _resolved(schema: Schema, whole: Schema) -> Schema:
    """The schema with a reference to its own definitions followed; what stands beside the reference stays."""
    reference = schema.get("$ref", "")
    if reference.startswith("#/$defs/"):
        found: Schema = whole["$defs"][reference.removeprefix("#/$defs/")]
        return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


# --- AsyncAPI 3 -------------------------------------------------------------------------------------------------------


def asyncapi() -> Schema:
    """Who says what where, as an AsyncAPI 3.0 document. Schemas in it are draft-07, which every tool of AsyncAPI reads."""
    channels: Schema = {}
    operations: Schema = {}
    messages: Schema = {}
    schemas: Schema = {"Envelope": _older(_envelope()), **_requests()}
    for fact in CATALOGUE:
        name, channel = versioned(fact), f"{fact.service}.{fact.name}"
        data = fact.model_json_schema()
        for part, schema in data.pop("$defs", {}).items():
            schemas[part] = _older(_tidy(schema, _part(part)))
        schemas[_shared_name(fact)] = _older(_tidy(data, fact))
        messages[name] = {
            "name": name,
            "title": _title(fact),
            "summary": _meaning(fact),
            "contentType": CONTENT_TYPE,
            "correlationId": {"location": "$message.payload#/correlationid"},
            "payload": {"$ref": f"#/components/schemas/{name}"},
        }
        particular = {**_particular(fact), "data": {"$ref": f"#/components/schemas/{_shared_name(fact)}"}}
        schemas[name] = {
            "allOf": [{"$ref": "#/components/schemas/Envelope"}, {"type": "object", "properties": particular}]
        }
        address, parameters = _address(fact)
        channels[channel] = {
            "address": address,
            "title": _title(fact),
            "description": _meaning(fact),
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": {one: {"$ref": f"#/components/parameters/{one}"} for one in parameters},
        }
        operations[f"{fact.service}.commits.{fact.name}"] = {
            "action": "send",
            "title": f"{fact.service}: {fact.name}",
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"}],
            "tags": [{"name": fact.service}],
        }
    _add_requests(channels, operations, messages)
    return {
        "asyncapi": "3.0.0",
        "id": "urn:paidan:bus",
        "info": {
            "title": "Paidan (派单): the bus",
            "version": "1.0.0",
            "description": (
                "Every fact on the bus, and the commands and queries that go over it. Facts are stored in the JetStream stream "
                "EVENTS and republished, once stored, under `live.<address>`: that is what to subscribe to. Operations are "
                "the services' own: `send` is what a service says, `receive` what it answers."
            ),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "tags": [{"name": name, "description": text} for name, text in SERVICES.items()],
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": dict(sorted(schemas.items())),
            "parameters": {
                "district": {"description": "The adcode of the district that serves; `000000` for what concerns all."},
                "area": {"description": "The area's code; `-` where there is none."},
                "request": {"description": "The id of the request: intake fences on this subject."},
                "verb": {
                    "description": "What is asked of the desk, such as `accept`, `decline`, `done`, `offer`, `enrol`."
                },
            },
        },
    }


def _title(fact: type[Fact]) -> str:
    return fact.name.replace(".", " ").replace("_", " ")


def _shared_name(fact: type[Fact]) -> str:
    """The schema's name. Facts of the same name have the same data: notify's marker is the desk's marker."""
    for common in (TurnCommitted, InputRefused):
        if issubclass(fact, common):
            return common.__name__
    return fact.__name__


def _address(fact: type[Fact]) -> tuple[str, tuple[str, ...]]:
    literal = f"evt.{{district}}.{fact.service}.{{area}}.{fact.name}"
    if fact is facts.RequestSubmitted:
        return f"{literal}.{{request}}", ("district", "area", "request")
    if issubclass(fact, TurnCommitted | InputRefused):  # a fence is one literal subject
        return literal.replace("{area}", facts.NOWHERE), ("district",)
    return literal, ("district", "area")


def _requests() -> Schema:
    """What commands and queries, and their answers, look like."""
    text, number = {"type": "string"}, {"type": "integer"}
    problem = {
        "type": "object",
        "description": "RFC 9457, Chinese first; programs branch on `code`.",
        "properties": {
            "type": {"type": "string", "pattern": "^urn:paidan:problem:"},
            "title": text,
            "status": number,
            "detail": text,
            "code": {"type": "string", "enum": sorted(PROBLEMS)},
            "title_en": text,
            "detail_en": text,
            "field": text,
        },
        "required": ["type", "title", "status", "detail", "code", "title_en", "detail_en"],
    }
    refused = {
        "type": "object",
        "properties": {"problem": {"$ref": "#/components/schemas/Problem"}},
        "required": ["problem"],
    }
    done = {
        "type": "object",
        "properties": {
            "ok": {"const": True},
            "fact": {**text, "description": "The name of the first fact it led to."},
            "id": {**text, "description": "That fact's id."},
            "of": {**text, "description": "The entity it is about."},
            "facts": number,
            "position": {**number, "description": "The sequence from which it can be read."},
        },
        "required": ["ok"],
    }
    found = {
        "type": "object",
        "properties": {"case": {"type": "object"}, "as_of": number, "stale": {"type": "boolean"}},
        "required": ["case", "as_of", "stale"],
    }
    missed = {
        "type": "object",
        "properties": {
            "events": {
                "type": "array",
                "items": {"type": "object", "properties": {"sequence": number, "event": {"type": "object"}}},
            },
            "after": {**number, "description": "Where to go on: nothing up to here was left out."},
            "last": {
                **number,
                "description": "The stream's last sequence; there are more pages while `after` is below it.",
            },
        },
        "required": ["events", "after", "last"],
    }
    return {
        "Problem": problem,
        "Command": {
            "type": "object",
            "properties": {
                "id": {
                    **text,
                    "minLength": 8,
                    "maxLength": 100,
                    "description": "The client's own; the same in every repeat.",
                },
                "token": {**text, "description": "A bearer token (JWT)."},
                "data": {"type": "object", "description": "What the verb needs."},
            },
            "required": ["id", "token"],
        },
        "CommandAnswer": {"oneOf": [done, refused]},
        "CaseQuery": {
            "type": "object",
            "description": "Either the id or the tracking code's hash; with a position the answer waits for it, 2 s at most.",
            "properties": {"id": text, "tracking_hash": text, "position": number},
        },
        "CaseAnswer": {"oneOf": [found, refused]},
        "MissedQuery": {
            "type": "object",
            "properties": {
                "after": {**number, "description": "The last sequence that was seen; left out: from now on."},
                "limit": {**number, "minimum": 1, "maximum": 200},
                "types": {**text, "description": "Prefixes, comma-separated: `task.,handover.`"},
                "token": {**text, "description": "A bearer token; `desk.mine` needs one."},
            },
        },
        "MissedAnswer": {"oneOf": [missed, refused]},
    }


def _add_requests(channels: Schema, operations: Schema, messages: Schema) -> None:
    asked: tuple[tuple[str, str, str, tuple[str, ...], str, str, str, str], ...] = (
        ("desk.command", "cmd.{district}.desk.{verb}", "dispatch", ("district", "verb"), "command", "Command",
         "dispatch.answers.command", "A command to a district's desk. Every instance hears it; the leader answers after the commit."),
        ("ledger.case", "qry.{district}.ledger.case", "ledger", ("district",), "case.query", "CaseQuery",
         "ledger.answers.case", "A request and what became of it."),
        ("desk.events", "qry.{district}.desk.events", "dispatch", ("district",), "events.query", "MissedQuery",
         "dispatch.answers.events", "What an office's app has missed, a page at a time; the bus account is its right to ask."),
        ("desk.mine", "qry.{district}.desk.mine", "dispatch", ("district",), "mine.query", "MissedQuery",
         "dispatch.answers.mine", "What the holder of a token has missed: a member their own, others as their office sees it."),
    )  # fmt: skip
    for channel, address, service, parameters, message, schema, operation, says in asked:
        answer = schema.removesuffix("Query") + "Answer"
        reply, replied = f"{channel}.reply", f"{message}.answer"
        messages[message] = {"name": message, "title": message, "payload": {"$ref": f"#/components/schemas/{schema}"}}
        messages[replied] = {"name": replied, "title": replied, "payload": {"$ref": f"#/components/schemas/{answer}"}}
        channels[channel] = {
            "address": address,
            "description": says,
            "messages": {message: {"$ref": f"#/components/messages/{message}"}},
            "parameters": {one: {"$ref": f"#/components/parameters/{one}"} for one in parameters},
        }
        channels[reply] = {
            "address": None,
            "description": "The asker's own inbox.",
            "messages": {replied: {"$ref": f"#/components/messages/{replied}"}},
        }
        operations[operation] = {
            "action": "receive",
            "title": f"{service}: {message}",
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
            "reply": {
                "channel": {"$ref": f"#/channels/{reply}"},
                "messages": [{"$ref": f"#/channels/{reply}/messages/{replied}"}],
            },
            "tags": [{"name": service}],
        }


def _older(schema: Any) -> Any:
    """2020-12 as draft-07 says it: tuples under `items`, definitions beside the others, a reference stands alone."""
    if isinstance(schema, list):
        return [_older(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"].replace("#/$defs/", "#/components/schemas/")}
    older = {key: value if key in ("default", "enum", "const") else _older(value) for key, value in schema.items()}
    if "prefixItems" in older:
        older["items"] = older.pop("prefixItems")
    return older


# --- the page ---------------------------------------------------------------------------------------------------------


def page() -> str:
    """The catalogue to read: docs/facts.md."""
    lines = [
        "# Facts",
        "",
        "<!-- Made by `paidan schema` from shared/facts.py: change it there. -->",
        "",
        "Everything that crosses the bus. A fact is past tense, immutable and complete in itself; times are UTC, coordinates",
        "WGS-84 in 1e-7 degrees, and optional fields are left out where they are absent. Around each lies the",
        f"[envelope](schemas/{ENVELOPE}); `[]` is a list, `?` marks what may be absent.",
    ]
    for service, says in SERVICES.items():
        lines += ["", f"## {service}", "", says]
        for fact in CATALOGUE:
            if fact.service == service:
                lines += _entry(fact)
    lines += ["", "## Values inside facts"]
    for name, part in sorted(_parts().items()):
        lines += ["", f"### {name}", "", _meaning(part), "", *_fields(part)]
    return "\n".join(lines) + "\n"


def _entry(fact: type[Fact]) -> list[str]:
    address, _ = _address(fact)
    schema = f"[schema](schemas/{versioned(fact)}.json)"
    for name in ("district", "area", "request"):
        address = address.replace(f"{{{name}}}", f"<{name}>")
    return [
        "",
        f"### {fact.name}",
        "",
        _meaning(fact),
        "",
        f"`{address}` · v{fact.schema_version} · {schema}",
        "",
        *_fields(fact),
    ]


def _parts() -> dict[str, type[Part]]:
    """Every part that a fact holds."""
    names = {name for fact in CATALOGUE for name in fact.model_json_schema().get("$defs", {})}
    return {name: _part(name) for name in names}


def _fields(model: type[Part]) -> list[str]:
    schema = model.model_json_schema()
    tidied = _tidy({key: value for key, value in schema.items() if key != "$defs"}, model)
    rows = ["| field | type | |", "| --- | --- | --- |"]
    for name, field in tidied.get("properties", {}).items():
        optional = "" if name in tidied.get("required", ()) else "?"
        rows.append(f"| `{name}`{optional} | {_kind(field)} | {field.get('description', '').replace('|', '·')} |")
    return rows if len(rows) > 2 else []


def _kind(field: Schema) -> str:
    """A type in a few words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return " ".join(f"`{value}`" for value in field["enum"])
    shapes: tuple[tuple[str, Callable[[], str]], ...] = (
        ("prefixItems", lambda: f"({', '.join(map(_kind, field['prefixItems']))})"),
        ("items", lambda: f"{_kind(field['items'])}[]"),
        ("additionalProperties", lambda: f"word → {_kind(field['additionalProperties'])}"),
        ("format", lambda: str(field["format"])),
        ("pattern", lambda: f"`{field['pattern']}`"),
    )
    said = next((say() for key, say in shapes if key in field), str(field.get("type", "any")))
    low, high = field.get("minimum"), field.get("maximum")
    return said if low is None or high is None else f"{said} {low}…{high}"
