#!/usr/bin/env python3
"""
独立核对派单账本 / Audit a Paidan ledger on your own.

只用 Python 标准库与 openssl 命令，不引用派单的任何代码，一小时可读完。
Standard library and the openssl command alone, no code of Paidan's; an hour's reading.

    verify_ledger.py --vkey VKEY replay.ndjson            整个账本的重放 / a replay of the whole log
    verify_ledger.py --vkey VKEY folder/                  瓦片目录（含 tile/entries）/ a folder of tiles and entries
    verify_ledger.py --policy FILE district.ndjson        一个区的全部事件（proof=each）/ all events of one district

公钥与见证策略须从别的途径取得 / Get the vkey and the policy by another way than the files you audit.
退出码 / exit code: 0 无误 / fine · 1 有问题 / something is wrong · 2 读不懂 / unreadable.
"""

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HEADS_EVERY = 65_536
wrong = 0


def say(zh: str, en: str) -> None:
    """Something is wrong."""
    global wrong
    wrong += 1
    if wrong <= 50:
        print(f"✗ {zh}\n    {en}")


def same(index: int, what: str, expected: object, found: object) -> None:
    """A leaf must say what is expected."""
    if expected != found:
        say(
            f"第 {index} 片叶子的 {what}：应为 {expected}，却是 {found}",
            f"leaf {index}: {what} should be {expected} and is {found}",
        )


def give_up(why: str) -> None:
    print(f"读不懂 / unreadable: {why}", file=sys.stderr)
    sys.exit(2)


# --- 默克尔树 / the Merkle tree, RFC 9162 §2.1 ---------------------------------------------------------------------------


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The roots of the perfect subtrees, largest first; enough to grow and to give the root."""

    def __init__(self) -> None:
        self.size, self.subtrees = 0, []

    def append(self, leaf: bytes) -> None:
        count = self.size
        while count % 2:  # as often as there is a subtree of the same size on the left
            leaf, count = node_hash(self.subtrees.pop(), leaf), count // 2
        self.subtrees.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        if not self.subtrees:
            return hashlib.sha256(b"").digest()
        root = self.subtrees[-1]
        for left in reversed(self.subtrees[:-1]):
            root = node_hash(left, root)
        return root


def root_by_path(leaf: bytes, index: int, size: int, path: list) -> bytes:
    """The root that an inclusion proof leads to, RFC 9162 §2.1.3.2; b"" where it does not fit."""
    last, root = size - 1, leaf
    for sibling in path:
        if last == 0:
            return b""
        if index % 2 or index == last:
            root = node_hash(sibling, root)
            while index and not index % 2:
                index, last = index // 2, last // 2
        else:
            root = node_hash(root, sibling)
        index, last = index // 2, last // 2
    return root if last == 0 else b""


# --- 检查点与签名 / checkpoints and signatures, C2SP signed-note · tlog-checkpoint · tlog-cosignature · tlog-policy -----


def key_of(vkey: str) -> tuple:
    """(name, key id, type, public key) of `name+id+key`."""
    name, _, rest = vkey.strip().partition("+")
    given, _, encoded = rest.partition("+")
    key = base64.b64decode(encoded)
    key_id = hashlib.sha256(name.encode() + b"\n" + key).digest()[:4]
    if key_id.hex() != given or len(key) != 33 or key[0] not in (1, 4):
        give_up(f"vkey of {name}")
    return name, key_id, key[0], key[1:]


def openssl_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Ed25519, by the openssl command: the key goes in as DER (RFC 8410)."""
    with tempfile.TemporaryDirectory() as folder:
        parts = {"pub.der": bytes.fromhex("302a300506032b6570032100") + public, "text": message, "sig": signature}
        for name, data in parts.items():
            (Path(folder) / name).write_bytes(data)
        command = "openssl pkeyutl -verify -rawin -pubin -keyform DER -inkey pub.der -in text -sigfile sig"
        return subprocess.run(command.split(), cwd=folder, capture_output=True, check=False).returncode == 0


def signed_by(note: str, key: tuple) -> bool:
    """Whether a note carries this key's signature; a line that names the key and is wrong is a finding."""
    name, key_id, kind, public = key
    text, _, lines = note.rpartition("\n\n")
    text += "\n"
    for line in lines.splitlines():
        dash, signer, blob = [*line.split(" "), "", ""][:3]
        raw = base64.b64decode(blob)
        if (dash, signer, raw[:4]) != ("—", name, key_id):
            continue
        message, signature = text.encode(), raw[4:]
        if kind == 4:  # a cosignature: eight bytes of time, which are signed as well
            time = int.from_bytes(signature[:8], "big")
            message, signature = f"cosignature/v1\ntime {time}\n{text}".encode(), signature[8:]
        if openssl_verifies(public, message, signature):
            return True
        say(f"{name} 的签名无效", f"the signature of {name} is wrong")
    return False


def read_policy(text: str) -> tuple:
    """(keys of the log, witnesses by name, groups by name, quorum)."""
    logs, witnesses, groups, quorum = [], {}, {}, "none"
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if words[0] == "log":
            logs.append(key_of(words[1]))
        elif words[0] == "witness":
            key = key_of(words[2])
            if any(other[3] == key[3] for other in witnesses.values()):
                give_up(f"policy: the key of {words[1]} is there already, and counts once")
            witnesses[words[1]] = key
        elif words[0] == "group":
            needed = {"any": 1, "all": len(words) - 3}.get(words[2]) or int(words[2])
            groups[words[1]] = needed, {*words[3:]}
        elif words[0] == "quorum":
            quorum = words[1]
    return logs, witnesses, groups, quorum


def checkpoint(note: str, policy: tuple) -> tuple:
    """(origin, size, root, root over the districts' counts) of a note, its signatures checked."""
    logs, witnesses, groups, quorum = policy
    origin, size, root, *rest = note.partition("\n\n")[0].split("\n")
    heads = next((line[6:] for line in rest if line.startswith("heads ")), "")
    signers = [key[0] for key in logs if signed_by(note, key)]
    if not signers:
        say("检查点没有可信的账本签名", "no trusted key of the log has signed the checkpoint")
    cosigners = {name for name, key in witnesses.items() if signed_by(note, key)}

    def satisfied(name: str) -> bool:
        if name in groups:
            needed, members = groups[name]
            return sum(map(satisfied, members)) >= needed
        return name in cosigners

    if quorum != "none" and not satisfied(quorum):
        say(f"见证不足：{sorted(cosigners)}", f"not enough witnesses: {sorted(cosigners)} of {quorum}")
    print(f"检查点 / checkpoint  {origin}  {size}  {root}")
    print(f"签名 / signed by     {' '.join(signers) or '–'}；会签 / witnesses: {' '.join(sorted(cosigners)) or '–'}")
    return origin, int(size), base64.b64decode(root), base64.b64decode(heads)


# --- 叶子 / leaves -----------------------------------------------------------------------------------------------------


def once(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def never(text: str) -> float:
    raise ValueError(f"a fraction, or no number: {text}")


def parse(data: bytes, at: object) -> dict:
    """The leaf, whose bytes must be the canonical form (RFC 8785) of what they say."""
    try:
        leaf = json.loads(data, object_pairs_hook=once, parse_float=never, parse_constant=never)
        if json.dumps(leaf, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() != data:
            say(f"第 {at} 片叶子不是规范形式", f"leaf {at} is not in canonical form")
        return leaf if isinstance(leaf, dict) else {}
    except (ValueError, RecursionError) as why:
        say(f"第 {at} 片叶子读不懂：{why}", f"leaf {at} cannot be read: {why}")
        return {}


def heads_root(scopes: dict) -> bytes:
    """Over (district, last leaf, number of events), by the district's code."""
    tree = Tree()
    for district, (n, last) in sorted(scopes.items()):
        tree.append(leaf_hash(f'{{"d":"{district}","last":{last},"n":{n}}}'.encode()))
    return tree.root()


class Log:
    """The whole log, leaf by leaf: each must follow from those before it."""

    def __init__(self, origin: str) -> None:
        self.origin, self.tree = origin, Tree()
        self.created, self.epoch, self.sequence, self.newest = None, 0, 0, ""
        self.scopes, self.cases, self.events, self.kinds = {}, {}, {}, {}

    def take(self, data: bytes) -> None:
        index = self.tree.size
        self.tree.append(leaf_hash(data))
        try:
            self.look(index, parse(data, index))
        except (KeyError, TypeError, AttributeError) as why:
            say(f"第 {index} 片叶子缺少 {why}", f"leaf {index} lacks {why}")

    def look(self, index: int, leaf: dict) -> None:
        kind, source, recorded = leaf["kind"], leaf["src"], leaf["recorded"]
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        for name, expected in (("v", "paidan/leaf/1"), ("log", self.origin), ("index", index)):
            same(index, name, expected, leaf[name])
        same(index, "late", recorded < self.newest, leaf.get("late", False))
        due = index > 0 and (index % HEADS_EVERY == 0 or recorded[:10] > self.newest[:10])
        same(index, "heads", due, kind == "heads")
        self.newest = max(self.newest, recorded)
        # 来源连续 / the source goes on without a hole
        if self.created is None:
            self.created = source["created"]
        if kind == "reset":
            old = {"created": self.created, "seq": self.sequence} | ({"epoch": self.epoch} if self.epoch else {})
            same(index, "reset", old, leaf["reset"])
            self.epoch, self.created, self.sequence = self.epoch + 1, source["created"], source["seq"]
        else:
            same(index, "src.seq", self.sequence + (kind != "heads"), source["seq"])
            self.sequence = source["seq"]
        same(index, "src", (self.created, self.epoch), (source["created"], source.get("epoch", 0)))
        # 各类叶子 / kind by kind
        if kind == "gap":
            same(index, "gap.from", self.sequence, leaf["gap"]["from"])
            same(index, "gap.to ≥ gap.from", True, leaf["gap"]["to"] >= leaf["gap"]["from"])
            self.sequence = leaf["gap"]["to"]
        elif kind in ("dup", "conflict"):
            same(index, "first", self.events.get(leaf["id"]), leaf["first"])
        elif kind == "heads":
            same(index, "heads.root", heads_root(self.scopes).hex(), leaf["heads"]["root"])
        elif kind == "event":
            self.event(index, leaf, leaf["event"])
        elif kind not in ("reject", "reset"):
            same(index, "kind", "event dup conflict reject gap reset heads", kind)

    def event(self, index: int, leaf: dict, event: dict) -> None:
        same(index, f"event {event['id']} first at", None, self.events.get(event["id"]))
        self.events[event["id"]] = index
        districts = list(dict.fromkeys(event["districts"].split(","))) if event["districts"] else []
        expected = [{"d": district, "n": self.scopes.get(district, (0,))[0] + 1} for district in districts]
        same(index, "scopes", expected, leaf["scopes"])
        for scope in expected:
            self.scopes[scope["d"]] = scope["n"], index
        case = event.get("correlationid")
        if case is not None:
            self.cases[case] = self.cases.get(case, 0) + 1
        same(index, "case", {"id": case, "n": self.cases[case]} if case is not None else None, leaf.get("case"))

    def against(self, size: int, root: bytes, heads: bytes) -> None:
        if self.tree.size != size:
            say(
                f"检查点有 {size} 片叶子，这里有 {self.tree.size}",
                f"the checkpoint has {size} leaves and there are {self.tree.size} here: cut off, or not the same log",
            )
        elif self.tree.root() != root:
            say("叶子的根不是检查点的根：有叶子被改动", "the leaves' root is not the checkpoint's: a leaf was changed")
        elif heads and heads_root(self.scopes) != heads:
            say("各区计数与检查点不符", "the districts' counts are not the checkpoint's")
        print(f"叶子 / leaves        {self.tree.size}  {self.kinds}")
        print(f"根 / root            {base64.b64encode(self.tree.root()).decode()}")


# --- 一个区的重放 / one district's replay ---------------------------------------------------------------------------------


class Part:
    """All events of a district, or of all: ordinals without a hole, up to the counts that lie under the checkpoint."""

    def __init__(self, header: dict, found: tuple) -> None:
        self.header, (_, self.size, self.root, self.heads) = header, found
        chosen = header["filter"]
        self.wanted = [chosen["district"]] if "district" in chosen else chosen.get("scopes")
        if chosen.keys() - {"district", "scopes", "kinds"} or chosen.get("kinds") != ["event"] or self.wanted == []:
            give_up(f"only all events of a district, or of all, can be counted; this is {chosen}")
        if header["from"] or header.get("proof") != "each":
            give_up("ask for proof=each, from the first leaf on")
        print(f"过滤 / filter        {chosen}")
        self.scopes, self.at, self.hidden = {}, -1, 0

    def take(self, line: bytes) -> None:
        said = json.loads(line)
        index = said["s"]
        if said.get("withheld"):  # what an agreement has closed: its place, ordinal and hash are shown
            hash_, scopes = bytes.fromhex(said["hash"]), {said["d"]: said["n"]}
            self.hidden += 1
            same(index, "closed by an agreement", bool(self.header["withheld"]), True)
        else:
            data = line[line.index(b'"leaf":') + 7 :].rpartition(b',"proof":')[0]
            leaf, hash_ = parse(data, index), leaf_hash(data)
            scopes = {scope["d"]: scope["n"] for scope in leaf.get("scopes", [])}
            same(index, "log, index", (self.header["log"], index), (leaf.get("log"), leaf.get("index")))
        if not self.at < index < self.size:
            say(f"第 {index} 片叶子次序不对", f"leaf {index} is out of order")
        self.at = index
        if root_by_path(hash_, index, self.size, list(map(base64.b64decode, said["proof"]))) != self.root:
            say(f"第 {index} 片叶子不是签名时的叶子", f"leaf {index} is not the one that was signed")
        for district, n in scopes.items():
            due = self.scopes.get(district, (0,))[0] + 1
            if n != due and district in (self.wanted or scopes):
                say(f"{district} 的第 {due} 件被扣下", f"number {due} of {district} was withheld: {n} follows")
            self.scopes[district] = n, index

    def against(self) -> None:
        if self.wanted is None and heads_root(self.scopes) != self.heads:
            say("各区计数与检查点不符", "the districts' counts are not the checkpoint's: withheld, or cut short")
        for district in self.wanted or []:
            head, (n, last) = self.header["heads"].get(district), self.scopes.get(district, (0, None))
            if head is None:
                if n:
                    say(f"首行没有 {district} 的计数", f"the header has no head of {district}")
                print(f"未核对 / not looked at: {district} 是否确无事件，无从证明 / no proof that it has no events")
                continue
            path = list(map(bytes.fromhex, head["hashes"]))
            leaf = leaf_hash(f'{{"d":"{district}","last":{head["last"]},"n":{head["n"]}}}'.encode())
            if not self.heads or root_by_path(leaf, head["position"], head["size"], path) != self.heads:
                say(f"{district} 的计数不在检查点之下", f"the head of {district} does not lie under the checkpoint")
            if (head["n"], head["last"]) != (n, last):
                say(f"{district} 被截短", f"{district} is cut short: event {head['n']} at {head['last']} is its last")
            print(f"行政区 / district    {district}  {n} / {head['n']}")
        if self.hidden:
            print(f"未核对 / not looked at: {self.hidden} 片只给出哈希 / leaves by hash only")


# --- 文件 / files --------------------------------------------------------------------------------------------------------


def number_path(number: int, width: int) -> str:
    """1234067 is x001/x234/067; a tile that is not full ends in .p/<width>."""
    text = str(number)
    text = text.zfill(-(-len(text) // 3) * 3)
    groups = [text[at : at + 3] for at in range(0, len(text), 3)]
    return "/".join([*("x" + group for group in groups[:-1]), groups[-1]]) + (f".p/{width}" if width < 256 else "")


def bundles(folder: Path, size: int) -> list:
    """The contents of every bundle of 256 entries; the last may have fewer."""
    widths = [min(256, size - at) for at in range(0, size, 256)]
    return [(folder / "tile" / "entries" / number_path(n, width)).read_bytes() for n, width in enumerate(widths)]


def audit_folder(folder: Path, policy: tuple) -> None:
    origin, size, root, heads = checkpoint((folder / "checkpoint").read_text(), policy)
    log = Log(origin)
    for bundle in bundles(folder, size):
        at = 0
        while at < len(bundle):  # each entry behind its length in two bytes
            end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
            log.take(bundle[at + 2 : end])
            at = end
    log.against(size, root, heads)


def audit_replay(file: Path, policy: tuple) -> None:
    with file.open("rb") as lines:
        header = json.loads(next(lines))
        if header.get("checkpoint") is None:
            give_up("the header carries no checkpoint")
        found = checkpoint(header["checkpoint"], policy)
        if (header["log"], header["size"]) != found[:2]:
            say("首行与检查点不符", "the header is not that of its checkpoint")
        whole = not header["filter"] and header["from"] == 0 and "proof" not in header
        log, count, trailer = Log(header["log"]) if whole else Part(header, found), 0, None
        for line in lines:
            if not line.startswith(b'{"s":') and b'"withheld"' not in line:
                trailer = json.loads(line) if line.endswith(b"\n") else None
                break
            count += 1
            if not whole:
                log.take(line)
                continue
            if int(line[5 : line.index(b",")]) != log.tree.size:
                say(f"缺少第 {log.tree.size} 片叶子", f"leaf {log.tree.size} is missing")
            log.take(line.rstrip(b"\n")[line.index(b'"leaf":') + 7 : -1])
    log.against(*(found[1:] if whole else ()))
    if trailer is None or trailer.get("end") is not True:
        say("没有末行：重放被截短", "there is no last line: the replay was cut short")
    elif trailer["count"] != count or trailer.get("next"):
        say(
            f"末行说 {trailer['count']} 行，却有 {count} 行",
            f"the last line says {trailer['count']}, there are {count}",
        )


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", type=Path, help="重放文件或瓦片目录 / a replay, or a folder of tiles")
    words.add_argument("--vkey", action="append", default=[], help="账本公钥 / the log's vkey")
    words.add_argument("--policy", type=Path, help="见证策略 / a policy")
    asked = words.parse_args()
    try:
        logs, *rest = read_policy(asked.policy.read_text()) if asked.policy else ([], {}, {}, "none")
        policy = logs + [key_of(vkey) for vkey in asked.vkey], *rest
        if not policy[0]:
            give_up("--vkey or --policy, please")
        if asked.what.is_dir():
            audit_folder(asked.what, policy)
        else:
            audit_replay(asked.what, policy)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, StopIteration, RecursionError) as why:
        give_up(f"{type(why).__name__}: {why}")
    print(f"有问题 / something is wrong: {wrong}" if wrong else "无误 / nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
