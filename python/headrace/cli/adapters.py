# SPDX-License-Identifier: Apache-2.0
"""`headrace adapters`: a store of personal adapters, from the shell."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from .. import models
from ..adapters import AdapterStore, Gate, Revision, modules_of
from .fail import one_line_errors


def add(parser: argparse.ArgumentParser) -> None:
    """The actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text)
        made.add_argument("--store", required=True, metavar="DIR", help="the store's folder")
        one_line_errors(made)
        return made

    p = action("base", "make a base model known; a new store begins with it")
    p.add_argument("name")
    p.add_argument("model", help="a packaged model or the path of a safetensors file")
    p.add_argument("--known-as", action="append", default=[], help="what adapters' files call it")
    p = action("add", "register folders of the peft package")
    p.add_argument("folders", nargs="+", metavar="FOLDER")
    p.add_argument("--base", help="a known base; else the one that the folder names")
    p.add_argument("--name", help="a new name for it")
    p.add_argument("--owner")
    p.add_argument("--parent", action="append", default=[], help="a revision it came from")
    p.add_argument("--data", help="what it was trained on")
    p.add_argument("--trainer", help="what it was trained by")
    p = action("list", "revisions, those with the greatest --metric first")
    for option in ("--owner", "--base", "--parent", "--metric"):
        p.add_argument(option)
    p.add_argument("--at-least", type=float, metavar="X")
    p.add_argument("--at-most", type=float, metavar="X")
    p.add_argument("--limit", type=int, default=100)
    p.add_argument("--json", action="store_true")
    p = action("show", "all that is known of a revision")
    p.add_argument("revision", help="a name, a digest, or its first 8 digits or more")
    p.add_argument("--json", action="store_true")
    p = action("evaluate", "record a measurement of a revision")
    p.add_argument("revision")
    p.add_argument("metric")
    p.add_argument("value", type=float)
    p.add_argument("--data", help="what it was measured on")
    p = action("promote", "point a name at a revision, if that passes the rule given")
    p.add_argument("name")
    p.add_argument("revision")
    _add_gate(p)
    p = action("rollback", "point a name at what it had before, by a rule the latest that passes")
    p.add_argument("name")
    _add_gate(p)
    p = action("merge", "register the weighted sum of adapters, reading no more than allowed")
    p.add_argument("revisions", nargs="+", metavar="REVISION")
    p.add_argument("--weights", type=float, nargs="+", metavar="X", help="else 1 / their number")
    p.add_argument("--io-budget", type=int, metavar="BYTES", help="most bytes of weights to read")
    p.add_argument("--rank", type=int, help="the largest of a module; else those side by side")
    p.add_argument("--name", help="a new name for it")
    p.add_argument("--owner")
    p = action("measure", "read adapters once, so that a merge knows what each module does")
    p.add_argument("revisions", nargs="+", metavar="REVISION")
    p = action("export", "write a revision as a new folder of the peft package")
    p.add_argument("revision")
    p.add_argument("folder")
    p = action("forget", "take a name and its history away")
    p.add_argument("name")
    p = action("remove", "take a revision out of the catalog")
    p.add_argument("revision")
    p = action("verify", "compare every blob with its digest; status 1 for damage")
    p.add_argument("--quick", action="store_true", help="without the tensors")
    p = action("gc", "give back the bytes that no revision uses")
    p.add_argument("--dry-run", action="store_true")
    one_line_errors(parser)


def _add_gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", help="the rule's metric")
    parser.add_argument("--at-least", type=float, metavar="X")
    parser.add_argument("--at-most", type=float, metavar="X")
    parser.add_argument("--better", action="store_true", help="than the one in place")
    parser.add_argument("--lower-is-better", action="store_true")
    parser.add_argument("--why", default="", help="a note for the history")


def run(args: argparse.Namespace) -> int:
    """Does one action; 0, or 1 where a verification finds damage."""
    with AdapterStore(args.store, create=args.action == "base") as store:
        status: int = globals()[f"_{args.action}"](store, args)
        return status


def _base(store: AdapterStore, args: argparse.Namespace) -> int:
    path = Path(args.model)
    if args.model in models.names():
        path = Path(models.__file__).parent / f"{args.model}.safetensors"
    modules = modules_of(path)
    store.add_base(args.name, modules, args.known_as)
    print(f"{args.name}: {len(modules)} modules")
    return 0


def _add(store: AdapterStore, args: argparse.Namespace) -> int:
    if args.name is not None and len(args.folders) > 1:
        raise ValueError(f"add(--name): expected one folder to name, got {len(args.folders)}")
    parents = tuple(store.resolve(p) for p in args.parent)
    about = {"owner": args.owner, "parents": parents, "data": args.data, "trainer": args.trainer}
    for folder in args.folders:
        print(store.add_peft(folder, base=args.base, name=args.name, **about))
    return 0


def _list(store: AdapterStore, args: argparse.Namespace) -> int:
    keys = ("owner", "base", "parent", "metric", "at_least", "at_most", "limit")
    found = store.search(**{key: getattr(args, key) for key in keys})
    if args.json:
        print(json.dumps([dataclasses.asdict(r) for r in found]))
        return 0
    print(f"{'revision':12}  {'base':16}  {'owner':12}  {'rank':>4}  {'bytes':>10}  scores, names")
    for r in found:
        scores = " ".join(f"{k}={v:g}" for k, v in r.scores.items())
        print(
            f"{r.digest[:12]}  {r.base:16}  {r.owner or '-':12}  {r.rank:4}  {r.size:10,}  "
            f"{' '.join([scores, *r.names]).strip()}".rstrip()
        )
    return 0


def _show(store: AdapterStore, args: argparse.Namespace) -> int:
    revision = store.show(args.revision)
    found: dict[str, Any] = dataclasses.asdict(revision)
    found["evaluations"] = store.evaluations(revision.digest)
    found["history"] = {name: store.history(name) for name in revision.names}
    if args.json:
        print(json.dumps(found))
        return 0
    for line in _lines(revision):
        print(line)
    for name, moves in found["history"].items():
        for m in moves:
            print(f"{name}: {m['action']} {m['revision'][:12]} {_when(m['time'])}")
    return 0


def _lines(r: Revision) -> list[str]:
    told = {
        "revision": r.digest,
        "base": r.base,
        "names": ", ".join(r.names),
        "owner": r.owner,
        "parents": ", ".join(p[:12] for p in r.parents),
        "data": r.data,
        "trainer": r.trainer,
        "created": _when(r.created),
        "modules": f"{r.modules}, rank {r.rank} at most, {r.size:,} bytes",
        "scores": ", ".join(f"{k} {v:g}" for k, v in r.scores.items()),
    }
    return [f"{key:9} {value}" for key, value in told.items() if value]


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _evaluate(store: AdapterStore, args: argparse.Namespace) -> int:
    about = {} if args.data is None else {"data": args.data}
    store.evaluate(args.revision, args.metric, args.value, **about)
    return 0


def _gate(args: argparse.Namespace) -> Gate | None:
    if args.metric is None:
        if args.better or args.at_least is not None or args.at_most is not None:
            raise ValueError("gate(--metric): expected the rule's metric, got none")
        return None
    return Gate(args.metric, args.at_least, args.at_most, args.better, args.lower_is_better)


def _promote(store: AdapterStore, args: argparse.Namespace) -> int:
    print(store.promote(args.name, args.revision, gate=_gate(args), why=args.why))
    return 0


def _rollback(store: AdapterStore, args: argparse.Namespace) -> int:
    print(store.rollback(args.name, gate=_gate(args), why=args.why))
    return 0


def _merge(store: AdapterStore, args: argparse.Namespace) -> int:
    weights = args.weights or [1 / len(args.revisions)] * len(args.revisions)
    options = {"io_budget": args.io_budget, "rank": args.rank}
    made = store.merge(args.revisions, weights, **options, name=args.name, owner=args.owner)
    left = "unknown" if made.omitted is None else f"{made.omitted:.3g}"
    print(made.digest)
    print(
        f"read {made.read:,} of {made.total:,} bytes, {made.blocks} of {made.of} modules; norm "
        f"left out {left} at most, lost to the rank {made.truncated:.3g}"
    )
    return 0


def _measure(store: AdapterStore, args: argparse.Namespace) -> int:
    print(f"read {store.measure(args.revisions):,} bytes")
    return 0


def _export(store: AdapterStore, args: argparse.Namespace) -> int:
    store.export_peft(args.revision, args.folder)
    return 0


def _forget(store: AdapterStore, args: argparse.Namespace) -> int:
    store.forget(args.name)
    return 0


def _remove(store: AdapterStore, args: argparse.Namespace) -> int:
    store.remove(args.revision)
    return 0


def _verify(store: AdapterStore, args: argparse.Namespace) -> int:
    found = store.verify(quick=args.quick)
    for problem in found.problems:
        print(problem)
    print(
        f"{found.revisions:,} revisions, {found.names:,} names, {found.bytes:,} bytes: "
        f"{len(found.problems)} problems, {len(found.unused)} unused files"
    )
    return 1 if found.problems else 0


def _gc(store: AdapterStore, args: argparse.Namespace) -> int:
    found = store.gc(dry_run=args.dry_run)
    what = "would give back" if args.dry_run else "gave back"
    print(
        f"{what} {found.bytes:,} bytes: {found.removed} files removed, "
        f"{found.rewritten} written anew"
    )
    return 0
