"""Notes, keys and policies: what one side writes the other reads, and nothing else is believed."""

from __future__ import annotations

import pytest

from services.ledger.log.notes import COSIGNATURE, Checkpoint, Key, Note, NoteError, Policy, Verifier, checkpoint
from services.ledger.log.tree import EMPTY

ORIGIN = "ledger.example/main/1"
LOG = Key.make(ORIGIN)
WITNESSES = {name: Key.make(f"witness.{name}.example", COSIGNATURE) for name in ("a", "b", "c")}
BODY = checkpoint(ORIGIN, 70_000, EMPTY, EMPTY).body
POLICY = "\n".join(
    [
        f"log {LOG.verifier.text}",
        *(f"witness {name} {key.verifier.text}" for name, key in WITNESSES.items()),
        "group offices 2 a b c  # any two",
        "quorum offices",
    ]
)


def note(*names: str) -> Note:
    return Note(BODY).signed([LOG.sign(BODY), *(WITNESSES[name].sign(BODY, 1_800_000_000) for name in names)])


def test_keys_and_notes_are_read_as_they_were_written() -> None:
    assert Key.parse(LOG.text) == LOG
    assert Verifier.parse(LOG.verifier.text) == LOG.verifier
    signed = note("a")
    assert Note.parse(signed.text) == signed
    assert Checkpoint.parse(signed.body) == checkpoint(ORIGIN, 70_000, EMPTY, EMPTY)
    assert Checkpoint.parse(signed.body).heads == EMPTY
    assert signed.verified([LOG.verifier, WITNESSES["a"].verifier, WITNESSES["b"].verifier]) == {
        LOG.verifier: None,
        WITNESSES["a"].verifier: 1_800_000_000,
    }


def test_the_vkey_of_the_specification_s_example_is_read() -> None:
    # Of golang.org/x/mod/sumdb/note: its public test key.
    example = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert Verifier.parse(example).text == example


def test_a_private_key_is_in_no_representation() -> None:
    assert LOG.seed.hex() not in repr(LOG)
    assert repr(LOG.seed) not in repr(LOG)


def test_a_changed_size_is_noticed() -> None:
    changed = Note(BODY.replace("70000", "70001"), note("a").signatures)
    with pytest.raises(NoteError, match="not of this note"):
        changed.verified([LOG.verifier])
    with pytest.raises(NoteError, match=r"witness\.a\.example"):
        changed.verified([WITNESSES["a"].verifier])


def test_a_newer_signature_of_the_same_key_takes_the_place_of_the_older() -> None:
    again = note("a").signed([WITNESSES["a"].sign(BODY, 1_800_000_060)])
    assert len(again.signatures) == 2
    assert again.verified([WITNESSES["a"].verifier]) == {WITNESSES["a"].verifier: 1_800_000_060}


def test_a_policy_wants_the_log_and_so_many_witnesses() -> None:
    policy = Policy.parse(POLICY)
    assert policy.check(note("a", "c")) == ["a", "c"]
    with pytest.raises(NoteError, match="not enough witnesses: b"):
        policy.check(note("b"))
    unsigned = Note(BODY).signed([WITNESSES[name].sign(BODY, 1) for name in "abc"])
    with pytest.raises(NoteError, match="log's keys"):
        policy.check(unsigned)
    assert Policy.parse(f"log {LOG.verifier.text}\nquorum none").check(note()) == []


def test_groups_of_groups() -> None:
    policy = Policy.parse(POLICY.replace("quorum offices", "group both all offices c\nquorum both"))
    assert policy.satisfied(["b", "c"])
    assert not policy.satisfied(["a", "b"])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("group x 3 a b", "3 of 2"),
        ("group x any d", "nobody is called d"),
        ("group x 2 a a", "counts once"),
        ("witness a " + WITNESSES["b"].verifier.text, "taken"),
        ("witness again " + WITNESSES["b"].verifier.text, "key of b: one key counts once"),
        ("quorum nobody", "unknown"),
        ("log nonsense", "base64|vkey"),
        ("frobnicate", "not understood"),
    ],
    ids=["too many", "unknown member", "twice", "name taken", "key again", "unknown quorum", "no vkey", "no word"],
)
def test_a_bad_policy_names_the_line(line: str, why: str) -> None:
    with pytest.raises(NoteError, match=f"line 7: .*({why})"):
        Policy.parse(
            f"{POLICY}\n{line}" if "quorum" not in line else POLICY.replace("quorum offices", f"# none\n{line}")
        )


@pytest.mark.parametrize(
    "body",
    [
        "",
        "x\n",
        "x\n1\nAAAA\n",
        f"x\n01\n{BODY.splitlines()[2]}\n",
        f"x\n1\n{BODY.splitlines()[2]}",
        "x\n-1\n*\n",
        f"x\n1\n{BODY.splitlines()[2]}\n\n",
    ],
)
def test_what_is_no_checkpoint(body: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(body)


@pytest.mark.parametrize("text", ["", "a\n\nb\n", "a\n\n— x AAAA", "a\n\n— x AAAA\n", BODY])
def test_what_is_no_note(text: str) -> None:
    with pytest.raises(NoteError):
        Note.parse(text)
