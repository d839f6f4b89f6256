"""Bronze: it loads, it can be configured, and it says what it is."""

from __future__ import annotations

import ast
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from syncd.adapter import Adapter
from syncd.suppliers import registry
from syncd.suppliers.conformance.checks import CHECKS, Found, check
from syncd.suppliers.conformance.rig import Kit, Unusable

ALPHABET: Final = re.compile(r"[A-Za-z0-9]{10,}")
_ORDER: Final = {"list_offers", "place_order", "get_order"}
_WATCHED: Final = frozenset({
    "open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir", "os.system", "os.posix_spawn",
    "shutil.copyfile", "socket.connect", "socket.getaddrinfo", "socket.bind", "sqlite3.connect", "subprocess.Popen",
})  # fmt: skip


def _without_code(kit: Kit) -> str:
    return "" if kit.file.suffix == ".py" else "it has no code of its own"


def is_feed_only(kit: Kit) -> str:
    """Why a check of requests says nothing; "" when it does."""
    return "" if kit.verbs & _ORDER else "it sends nothing"


@check("bronze")
def it_loads(kit: Kit) -> Found:
    """A file that does not load keeps the daemon from starting on the configuration that names it."""
    registry.load(kit.place)  # raises what the kit would have raised by now
    yield from ()


@check("bronze", unless=_without_code)
def it_imports_one_module(kit: Kit) -> Found:
    """syncd.adapter is the one module that stays as it is: whatever else an adapter imports of syncd may change."""
    for node in ast.walk(ast.parse(kit.file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"syncd.{one.name}" for one in node.names] if node.module == "syncd" else [str(node.module)]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "syncd" and name != "syncd.adapter":
                yield f"line {node.lineno} imports {name}", "import what you need from syncd.adapter"
            if name.partition(".")[0] in {"httpx", "requests", "urllib3", "aiohttp", "socket"}:
                yield (
                    f"line {node.lineno} imports {name}",
                    "send through self.context.connect(...): limits, TLS, secrets",
                )


@check("bronze")
def it_has_a_title(kit: Kit) -> Found:
    """People choose an adapter by what the supplier's system is called."""
    if not kit.kind.title.strip():
        yield "title is empty", 'write: title = "What the supplier calls itself"'


@check("bronze")
def its_settings_are_documented(kit: Kit) -> Found:
    """Whoever configures it has nothing but these sentences."""
    for name, field in kit.kind.Settings.model_fields.items():
        if not field.description:
            yield f"the setting {name} has no description", 'write a docstring below it: """What it is for."""'


@check("bronze")
def building_it_touches_nothing(kit: Kit) -> Found:
    """`syncd check` loads and builds it while the configuration is read: no network and no file may matter there."""
    with _watched(kit.file.resolve()) as seen:
        registry.load(kit.place)
        with kit.session():
            pass
    for event in dict.fromkeys(seen):
        yield f"{event} while it was loaded and built", "do it in the verb that needs it"


@check("bronze")
def its_capabilities_make_sense(kit: Kit) -> Found:
    """What it can do is seen from its methods: half a set of them is of no use."""
    verbs, promises = kit.verbs, kit.kind.promises
    if "pull_keys" not in verbs and not verbs & _ORDER:
        yield "it implements neither pull_keys nor list_offers, place_order and get_order", "implement one set of them"
    elif verbs & _ORDER and not verbs >= _ORDER:
        yield f"it implements no {', '.join(sorted(_ORDER - verbs))}", "a supplier that sells by order needs all three"
    for verb in sorted(verbs & {"find_order", "fetch_keys", "return_keys", "complain"}):
        if not verbs >= _ORDER:
            yield f"it implements {verb}, but takes no orders", f"remove {verb}, or implement place_order"
    if not 6 <= promises.reference_length <= 19 or not ALPHABET.fullmatch(promises.reference_alphabet):  # noqa: PLR2004
        yield (
            "promises ask for references that syncd cannot make",
            "6 to 19 characters, of 10 or more letters and digits",
        )
    strange = [name for name in vars(kit.kind) if not name.startswith("_") and _near(name)]
    for name in strange:
        yield f"{name} is no verb, but is nearly one", f"did you mean {_near(name)}?"


@check("bronze")
def its_examples_fit(kit: Kit) -> Found:
    """All other checks are made of the examples: what is not in them is not checked."""
    examples = kit.examples
    covered = {verb for one in examples.exchange for verb in (one.verb or kit.verbs)}
    quiet = {"pull_keys", "parse_webhook"}
    for verb in sorted(kit.verbs - covered - quiet):
        yield f"there is no exchange for {verb}", f'add an [[exchange]] with verb = "{verb}"'
    named = {verb for one in examples.exchange for verb in one.verb} | {one.verb for one in examples.situation}
    for verb in sorted(named - kit.verbs):
        yield f"there are examples of {verb}, which is not implemented", "remove them, or implement the verb"
    if "pull_keys" in kit.verbs and examples.feed is None:
        yield "there is no [feed]", "add the files that such a supplier leaves, and what is handed over"
    if "parse_webhook" in kit.verbs and not examples.webhook:
        yield "there is no [[webhook]]", "add a valid one of the supplier's"
    if "place_order" in kit.verbs and examples.order is None:
        yield "there is no [order]", "add the sku of an offer in the listing"
    promises, order = kit.kind.promises, examples.order
    if order and (
        len(order.reference) > promises.reference_length or set(order.reference) - set(promises.reference_alphabet)
    ):
        yield "the [order]'s reference is none that the adapter promises to take", "correct it, or the promises"
    yield from _unused(kit)
    yield from _unread(kit)
    for name, why in examples.exempt.items():
        if name not in CHECKS:
            yield f"[exempt] names {name}, which is no check", "`syncd adapter test` names them"
        elif CHECKS[name].tier == "bronze" or not why.strip():
            yield f"{name} cannot be exempt like this", "bronze never is, and the others need a reason"


def _unused(kit: Kit) -> Found:
    """Exchanges that nothing asks for, of the verbs that work on the examples."""
    used: list[Any] = []
    lame: set[str] = set()
    told: list[str] = []

    def tried(verb: str, *args: Any) -> Any:
        outcome = session.call(verb, *args)
        lame.update({verb} if outcome.error is not None or session.script.unfit else ())
        told.extend(session.script.unfit if verb != "list_offers" else ())  # which has a check of its own
        session.script.unfit.clear()
        return outcome.value

    with kit.session() as session:
        for verb in sorted(kit.verbs & {"check", "get_balance", "list_offers", "get_offer"}):
            try:
                tried(verb, *kit.arguments(verb))
            except Unusable:
                lame.add(verb)
        if "list_offers" in kit.verbs and kit.kind.promises.incremental:
            tried("list_offers", kit.since)
        used += session.script.used
    with kit.session() as session:
        try:
            orders = kit.orders(session)
        except Unusable:
            lame |= kit.verbs
        else:
            arguments = {"find_order": (kit.reference,), "fetch_keys": (orders[-1],)}
            for verb in sorted(kit.verbs & {"find_order", "fetch_keys", "return_keys", "complain"}):
                tried(verb, *(arguments.get(verb) or kit.arguments(verb)))
        used += session.script.used
    yield from ((text, "correct the request, or the exchange") for text in told)
    for number, one in enumerate(kit.examples.exchange, 1):
        asked = set(one.verb or kit.verbs) & kit.verbs
        if one not in used and asked and not asked & lame:
            yield (
                f"exchange[{number}] is of no use: no request of {', '.join(sorted(asked))} is {one.request}",
                "correct the request, in the adapter or here, or take it out",
            )


def _unread(kit: Kit) -> Found:
    """Parts of [expect] that nothing is compared with."""
    readers = {
        "offers": {"list_offers"}, "offer": {"list_offers"}, "order": {"get_order"}, "keys": {"place_order"},
        "balance": {"check", "get_balance"}, "account": {"check"},
    }  # fmt: skip
    for name in sorted(kit.examples.expect.model_fields_set):
        if not readers[name] & kit.verbs:
            verbs = " or ".join(sorted(readers[name]))
            yield f"[expect] has {name}, and there is no {verbs}", f"implement {verbs}, or take it out"


def _near(name: str) -> str:
    """The verb that somebody may have meant."""
    import difflib

    from syncd.adapter import VERBS

    if name in VERBS or hasattr(Adapter, name):
        return ""
    return next(iter(difflib.get_close_matches(name, VERBS, 1, cutoff=0.85)), "")


# --- watching ---------------------------------------------------------------------------------------------------------

_seen: list[str] | None = None
_thread = 0
_allowed: tuple[str, ...] = ()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    """Python's own audit events; an audit hook is for ever, so it is put in once and mostly asleep."""
    if _seen is None or event not in _WATCHED or threading.get_ident() != _thread:
        return
    # "<…>" is where an interpreter's tools look for the source of what has none.
    if event == "open" and (isinstance(args[0], int) or str(args[0]).startswith((*_allowed, "<"))):
        return
    place = str(args[0]) if args and isinstance(args[0], str | os.PathLike) else ""
    _seen.append(f"{event} {place}".strip())


_hooked = False


@contextmanager
def _watched(file: Path) -> Iterator[list[str]]:
    """What this thread opens and connects to within the block, the interpreter's own files and this one left out."""
    global _seen, _thread, _allowed, _hooked  # noqa: PLW0603 - an audit hook has no other state
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    paths = {str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())}
    here = {
        str(Path(__file__).parents[2]),
        str(file),
        str(file.parent / "__pycache__"),
        "/usr/share/zoneinfo",
        "/etc/ssl",
    }
    _allowed, _thread = tuple(paths | here), threading.get_ident()
    seen: list[str] = []
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None
