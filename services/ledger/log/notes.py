"""
Checkpoints and who signed them: the C2SP formats signed-note, tlog-checkpoint, tlog-cosignature and tlog-policy, pure.

A note is a text, an empty line, and a line per signature. A checkpoint is the text that names a log, how many leaves it has and
the root over them. The log signs that text; a witness cosigns it together with the time, having seen that nothing it cosigned
before was changed. Everything here can be checked with other implementations: Go's sumdb/note, OpenSSL.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.ledger.log.tree import HASH_BYTES
from shared.errors import PaidanError

LOG, COSIGNATURE = 0x01, 0x04
"""Types of keys: what they sign is the text itself, or the text and the time."""
SIGNATURE_BYTES = 64
NOTE_BYTES_MAX = 64 * 1024
HEADS = "heads "
"""The extension line that names the root over the districts' counts (`services.ledger.log.heads`)."""
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_DASH = "— "


class NoteError(PaidanError):
    """A note, key or policy that cannot be read, or a signature that is wrong."""


# --- keys -------------------------------------------------------------------------------------------------------------


def key_id(name: str, type: int, public: bytes) -> bytes:
    """The four bytes by which a signature line names its key."""
    return sha256(name.encode() + b"\n" + bytes([type]) + public).digest()[:4]


@dataclass(frozen=True, slots=True)
class Verifier:
    """The public half of a key. `type`: `LOG` or `COSIGNATURE`; `public`: 32 bytes, Ed25519."""

    name: str
    type: int
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature line names this key."""
        return key_id(self.name, self.type, self.public)

    @property
    def text(self) -> str:
        """The vkey: `name+id+key`."""
        return f"{self.name}+{self.id.hex()}+{_base64(bytes([self.type]) + self.public)}"

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """From a vkey. Raises NoteError."""
        name, id_, key = _key_parts(vkey.strip(), "vkey")
        verifier = cls(name, key[0], key[1:])
        if verifier.id.hex() != id_:
            raise NoteError(f"the vkey of {name} is damaged: its id should be {verifier.id.hex()}")
        return verifier

    def verify(self, text: str, signature: bytes) -> int | None:
        """
        Check a signature (as `Signature.blob`) of a note's text.

        Returns: the time of a cosignature, in seconds since 1970; None for a log's signature.
        Raises:
            NoteError: it is not this key's, or not of this text.
        """
        stamp, blob = (None, signature) if self.type == LOG else (int.from_bytes(signature[:8], "big"), signature[8:])
        try:
            if len(blob) != SIGNATURE_BYTES:
                raise InvalidSignature
            Ed25519PublicKey.from_public_bytes(self.public).verify(blob, _message(text, stamp))
        except (InvalidSignature, ValueError):
            raise NoteError(f"the signature of {self.name} is not of this note") from None
        return stamp


@dataclass(frozen=True, slots=True)
class Key:
    """A private key and its name. Ed25519 signatures are deterministic: who signs the same text twice writes the same line."""

    name: str
    type: int
    seed: bytes = field(repr=False)

    @classmethod
    def make(cls, name: str, type: int = LOG) -> Self:
        """A new one. Raises NoteError: no name for a key."""
        if not _NAME.fullmatch(name):
            raise NoteError(f"not a name for a key: {name!r}: no spaces and no plus")
        return cls(name, type, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what `text` gave. Raises NoteError, which never shows the key."""
        prefix = "PRIVATE+KEY+"
        text = text.strip()
        if not text.startswith(prefix):
            raise NoteError("not a private key: it begins with PRIVATE+KEY+")
        name, id_, key = _key_parts(text.removeprefix(prefix), "private key")
        made = cls(name, key[0], key[1:])
        if made.verifier.id.hex() != id_:
            raise NoteError(f"the private key of {name} is damaged")
        return made

    @property
    def text(self) -> str:
        """`PRIVATE+KEY+name+id+seed`, as Go's sumdb/note reads it. A secret."""
        return f"PRIVATE+KEY+{self.name}+{self.verifier.id.hex()}+{_base64(bytes([self.type]) + self.seed)}"

    @property
    def verifier(self) -> Verifier:
        """The public half."""
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        return Verifier(self.name, self.type, public)

    def sign(self, text: str, at: int = 0) -> Signature:
        """Sign a note's text; a cosignature says when, in seconds since 1970."""
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        if self.type == LOG:
            return Signature(self.name, self.verifier.id, private.sign(_message(text, None)))
        return Signature(self.name, self.verifier.id, at.to_bytes(8, "big") + private.sign(_message(text, at)))


def _message(text: str, stamp: int | None) -> bytes:
    return text.encode() if stamp is None else f"cosignature/v1\ntime {stamp}\n{text}".encode()


def _key_parts(text: str, what: str) -> tuple[str, str, bytes]:
    name, _, rest = text.partition("+")
    id_, _, encoded = rest.partition("+")
    key = _unbase64(encoded, what)
    if not _NAME.fullmatch(name) or len(key) != 33 or key[0] not in (LOG, COSIGNATURE):
        raise NoteError(f"not a {what}: it should be name+id+key, Ed25519 of type 1 (log) or 4 (cosignature)")
    return name, id_, key


# --- notes ------------------------------------------------------------------------------------------------------------


class Signature(NamedTuple):
    """One line: whose, by which key, and the bytes behind the key's id."""

    name: str
    id: bytes
    blob: bytes

    @property
    def line(self) -> str:
        """As it stands in a note, with its line feed."""
        return f"{_DASH}{self.name} {_base64(self.id + self.blob)}\n"

    @classmethod
    def parse(cls, line: str) -> Self:
        """From a line, with or without its line feed. Raises NoteError."""
        name, _, encoded = line.removesuffix("\n").removeprefix(_DASH).partition(" ")
        blob = _unbase64(encoded, "signature")
        if not line.startswith(_DASH) or not _NAME.fullmatch(name) or len(blob) < 5:
            raise NoteError(f"not a signature line: {line.strip()[:80]}")
        return cls(name, blob[:4], blob[4:])


@dataclass(frozen=True, slots=True)
class Note:
    """A text, which ends with a line feed, and its signatures in the order of their lines."""

    body: str
    signatures: tuple[Signature, ...] = ()

    @property
    def text(self) -> str:
        """The whole note."""
        return self.body + "\n" + "".join(signature.line for signature in self.signatures)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a whole note. Raises NoteError."""
        body, found, lines = text.rpartition("\n\n")
        if not found or not lines.endswith("\n") or len(text.encode()) > NOTE_BYTES_MAX:
            raise NoteError("not a signed note: a text, an empty line, and a line per signature")
        return cls(body + "\n", tuple(Signature.parse(line) for line in lines.splitlines()))

    def signed(self, more: Iterable[Signature]) -> Note:
        """With these signatures too; one of the same key takes the place of an older one."""
        kept = {signature[:2]: signature for signature in self.signatures}
        kept.update({signature[:2]: signature for signature in more})
        return Note(self.body, tuple(kept.values()))

    def verified(self, verifiers: Iterable[Verifier]) -> dict[Verifier, int | None]:
        """
        Who of these signed it, and when if they say so. Lines of keys that nobody asked for are ignored.

        Raises:
            NoteError: a line names one of these keys and is wrong.
        """
        lines = {signature[:2]: signature for signature in reversed(self.signatures)}
        return {
            verifier: verifier.verify(self.body, lines[verifier.name, verifier.id].blob)
            for verifier in verifiers
            if (verifier.name, verifier.id) in lines
        }


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How long a log is, and the root over all of it. `extensions`: further lines, such as `heads …`."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def body(self) -> str:
        """The text that is signed."""
        return "".join(f"{line}\n" for line in (self.origin, self.size, _base64(self.root), *self.extensions))

    @classmethod
    def parse(cls, body: str) -> Self:
        """From a note's body. Raises NoteError."""
        lines = body.split("\n")
        if len(lines) < 4 or lines.pop() != "" or not all(lines) or not _SIZE.fullmatch(lines[1]):
            raise NoteError("not a checkpoint: origin, size and root, each on a line")
        root = _unbase64(lines[2], "root")
        if len(root) != HASH_BYTES:
            raise NoteError("not a checkpoint: a root has 32 bytes")
        return cls(lines[0], int(lines[1]), root, tuple(lines[3:]))

    @property
    def heads(self) -> bytes | None:
        """The root over the districts' counts, where the log has named it."""
        for line in self.extensions:
            if line.startswith(HEADS):
                return _unbase64(line.removeprefix(HEADS), "heads")
        return None


def checkpoint(origin: str, size: int, root: bytes, heads: bytes) -> Checkpoint:
    """A checkpoint as this ledger writes it."""
    return Checkpoint(origin, size, root, (HEADS + _base64(heads),))


# --- policies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """So many of these, each a witness or another group, by name."""

    needed: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """
    Whose signatures make a checkpoint believable, in the words of tlog-policy.

    Attributes:
        logs: the log's keys; one of them must have signed.
        witnesses: by their name in the policy.
        urls: where a witness answers, for those that say so.
        quorum: the witness or group that has to be satisfied; None: the log alone will do.
    """

    logs: tuple[Verifier, ...] = ()
    witnesses: Mapping[str, Verifier] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    quorum: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        From lines `log VKEY`, `witness NAME VKEY [URL]`, `group NAME any|all|K MEMBER…`, `quorum NAME|none`; `#` begins a comment.

        Raises:
            NoteError: which line, and why.
        """
        logs: list[Verifier] = []
        witnesses: dict[str, Verifier] = {}
        urls: dict[str, str] = {}
        groups: dict[str, Group] = {}
        quorum: str | None = None
        for n, line in enumerate(text.splitlines(), 1):
            try:
                match line.partition("#")[0].split():
                    case []:
                        pass
                    case ["log", vkey, *_]:
                        logs.append(Verifier.parse(vkey))
                    case ["witness", name, vkey, *url] if name not in witnesses and name not in groups:
                        key = Verifier.parse(vkey)
                        if twin := [other for other in witnesses if witnesses[other].public == key.public]:
                            raise NoteError(f"this is the key of {twin[0]}: one key counts once")
                        witnesses[name] = key
                        urls.update({name: url[0]} if url else {})
                    case ["group", name, needed, *members] if members and name not in witnesses and name not in groups:
                        groups[name] = _group(needed, members, {*witnesses, *groups})
                    case ["quorum", name] if quorum is None and (name == "none" or name in witnesses or name in groups):
                        quorum = name
                    case _:
                        raise NoteError("not understood, or a name that is taken or unknown")
            except NoteError as why:
                raise NoteError(f"policy, line {n}: {why}") from None
        return cls(tuple(logs), witnesses, urls, groups, None if quorum == "none" else quorum)

    def satisfied(self, names: Collection[str]) -> bool:
        """Whether these witnesses (by their name in the policy) are enough."""
        return self.quorum is None or self._holds(self.quorum, names)

    def _holds(self, name: str, names: Collection[str]) -> bool:
        group = self.groups.get(name)
        if group is None:
            return name in names
        return sum(self._holds(member, names) for member in group.members) >= group.needed

    def check(self, note: Note) -> list[str]:
        """
        Who cosigned, by their names in the policy.

        Raises:
            NoteError: a signature is wrong, the log's is missing, or the witnesses are not enough.
        """
        if not note.verified(self.logs):
            raise NoteError("none of the log's keys has signed this checkpoint")
        signed = note.verified(self.witnesses.values())
        names = [name for name, verifier in self.witnesses.items() if verifier in signed]
        if not self.satisfied(names):
            raise NoteError(f"not enough witnesses: {', '.join(names) or 'none'}; wanted: {self.quorum}")
        return names


def _group(needed: str, members: Sequence[str], known: Collection[str]) -> Group:
    if unknown := [member for member in members if member not in known]:
        raise NoteError(f"nobody is called {unknown[0]}")
    if len({*members}) < len(members):
        raise NoteError("a member counts once")
    many = {"any": 1, "all": len(members)}.get(needed) or (int(needed) if needed.isdecimal() else 0)
    if not 1 <= many <= len(members):
        raise NoteError(f"{needed} of {len(members)}")
    return Group(many, tuple(members))


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _unbase64(text: str, what: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError(f"{what}: not base64") from None
