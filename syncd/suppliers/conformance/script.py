"""The supplier of the examples: finds the exchange that fits a request, and answers it, or as a check wants it.

Used by the kit alone. Nothing here touches a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qsl

from syncd.suppliers.client import Cut, Reply, Sent
from syncd.suppliers.conformance.examples import Examples, Exchange, Situation

Change = Callable[[Sent, Exchange | None], Reply | None]
"""Another answer than the documented one; None keeps that. May raise Cut."""


def AS_DOCUMENTED(_sent: Sent, _exchange: Exchange | None) -> None:  # noqa: N802 - a change that is none
    """Every answer as the examples have it."""


ENDLESS: Final = 60
"""Requests of one trial after which nothing is answered any more."""


@dataclass
class Script:
    """One trial's supplier: answers by the examples, and keeps what it was sent."""

    examples: Examples
    change: Change = AS_DOCUMENTED
    sent: list[tuple[Sent, Exchange | None]] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    """What was sent and fits no exchange, in words."""
    _used: dict[int, int] = field(default_factory=dict)

    def play(self, sent: Sent) -> Reply:
        """Answer one request: the client's transport."""
        exchange = self._fitting(sent)
        self.sent.append((sent, exchange))
        if len(self.sent) > ENDLESS:
            raise Cut("refused")
        changed = self.change(sent, exchange)
        if changed is not None:
            return changed
        return documented(exchange) if exchange else Reply(404, {"content-type": "text/plain"}, b"nothing of the kind")

    @property
    def used(self) -> list[Exchange]:
        """The exchanges that requests fitted."""
        return [self.examples.exchange[index] for index in self._used]

    @property
    def endless(self) -> bool:
        """Whether it would have gone on for ever."""
        return len(self.sent) > ENDLESS

    def buying(self) -> list[Sent]:
        """The requests that bought something."""
        return [sent for sent, exchange in self.sent if buys(self.examples, sent, exchange)]

    def _fitting(self, sent: Sent) -> Exchange | None:
        """The exchange that asks for most of those that fit; one with this path alone if none does, told in `unfit`."""
        best: list[tuple[int, int, int]] = []
        near: list[tuple[int, list[str]]] = []
        for index, exchange in enumerate(self.examples.exchange):
            if exchange.verb and sent.verb and sent.verb not in exchange.verb:
                continue
            if (exchange.method, exchange.path) != (sent.method, sent.path) or exchange.host not in sent.url:
                continue
            wrong = differences(exchange, sent)
            near.append((index, wrong))
            if not wrong:
                asked = len(exchange.query) + len(exchange.headers) + leaves(exchange.sends) + bool(exchange.verb)
                best.append((-asked, self._used.get(index, 0), index))
        if best:
            most = min(best)[0]
            equals = [(used, index) for asked, used, index in best if asked == most]
            _, index = next((one for one in equals if not one[0]), equals[-1])
            self._used[index] = self._used.get(index, 0) + 1
            return self.examples.exchange[index]
        told = f"{sent.method} {sent.path}" + (f" in {sent.verb}" if sent.verb else "")
        if not near:
            self.unfit.append(f"{told} fits no exchange")
            return None
        index, wrong = min(near, key=lambda one: len(one[1]))
        self.unfit.append(f"{told}: {'; '.join(wrong[:3])}")
        return self.examples.exchange[index]


def buys(examples: Examples, sent: Sent, exchange: Exchange | None) -> bool:
    """Whether a request buys: it fits the exchange that does, or has its address and nothing else has."""
    buying = examples.buying
    if buying is None:
        return False
    if exchange is not None:
        return exchange is buying
    return (sent.method, sent.path) == (buying.method, buying.path)


def documented(exchange: Exchange | Situation) -> Reply:
    """The answer as the documentation has it."""
    return reply(exchange.body, exchange.status, exchange.reply_headers)


def reply(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """An answer with the content type that its body asks for."""
    kind = "application/json" if tree_of(body) is not None else "text/plain; charset=utf-8"
    return Reply(status, {"content-type": kind, **{k.lower(): v for k, v in (headers or {}).items()}}, body)


def differences(exchange: Exchange, sent: Sent) -> list[str]:
    """What an exchange asks for and the request does not have, in words."""
    wrong = [
        f"the query has {name} = {sent.query.get(name)!r}, documented is {value!r}"
        for name, value in exchange.query.items()
        if str(sent.query.get(name)) != value
    ]
    wrong += [
        f"the header {name} is {sent.headers.get(name.lower())!r}, documented is {value!r}"
        for name, value in exchange.headers.items()
        if sent.headers.get(name.lower()) != value
    ]
    if isinstance(exchange.sends, str):
        if exchange.sends not in sent.body.decode("utf-8", "replace"):
            wrong.append(f"the body does not hold {exchange.sends!r}")
    elif exchange.sends is not None:
        wrong += missing(exchange.sends, body_of(sent), "the body")
    return wrong


def body_of(sent: Sent) -> Any:
    """A request's body: its JSON, its form as a dict, or None."""
    if "x-www-form-urlencoded" in sent.headers.get("content-type", ""):
        return dict(parse_qsl(sent.body.decode("utf-8", "replace"), keep_blank_values=True))
    return tree_of(sent.body)


def missing(wanted: Any, found: Any, where: str) -> list[str]:
    """Where ``found`` does not hold ``wanted``: objects may have more, all else is equal."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return [f"{where} is no object"]
        return [
            text
            for name, value in wanted.items()
            for text in (
                missing(value, found[name], f"{where}'s {name}") if name in found else [f"{where} has no {name}"]
            )
        ]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [
            text
            for n, (one, other) in enumerate(zip(wanted, found, strict=True))
            for text in missing(one, other, f"{where}[{n}]")
        ]
    same = wanted == found and isinstance(wanted, bool) == isinstance(found, bool)
    return [] if same else [f"{where} is {shown(found)}, documented is {shown(wanted)}"]


def shown(value: Any) -> str:
    """A value in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"  # noqa: PLR2004 - a line


def leaves(tree: Any) -> int:
    """How much a pattern asks for."""
    if isinstance(tree, dict):
        return sum(map(leaves, tree.values()))
    return sum(map(leaves, tree)) if isinstance(tree, list) else int(tree is not None)


# --- answers as trees -------------------------------------------------------------------------------------------------

Place = tuple[str | int, ...]


def tree_of(body: bytes) -> Any:
    """The JSON of a body, numbers with a point as Decimal; None when it is none."""
    try:
        return json.loads(body, parse_float=Decimal)
    except ValueError:
        return None


def bytes_of(tree: Any) -> bytes:
    """A tree as a body."""
    return json.dumps(tree, ensure_ascii=False, default=float).encode()


def places(tree: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in a tree with its place, the outer before the inner."""
    yield at, tree
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from places(value, (*at, name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*at, index))


def put(tree: Any, at: Place, value: Any) -> Any:
    """The tree with another value at a place."""
    if not at:
        return value
    first, rest = at[0], at[1:]
    if isinstance(tree, dict):
        return {**tree, first: put(tree.get(first), rest, value)}
    return [put(one, rest, value) if index == first else one for index, one in enumerate(tree)]


def without(tree: Any, at: Place) -> Any:
    """The tree without the value at a place."""
    first, rest = at[0], at[1:]
    if isinstance(tree, dict):
        return {
            name: without(value, rest) if name == first else value
            for name, value in tree.items()
            if rest or name != first
        }
    return [without(one, rest) if index == first else one for index, one in enumerate(tree) if rest or index != first]


def replaced(tree: Any, texts: Mapping[str, str]) -> Any:
    """The tree with texts exchanged wherever they stand in a value."""
    if isinstance(tree, dict):
        return {name: replaced(one, texts) for name, one in tree.items()}
    if isinstance(tree, list | tuple):
        return [replaced(one, texts) for one in tree]
    if isinstance(tree, str):
        for old, new in texts.items():
            tree = tree.replace(old, new)
    return tree


def texts_replaced(tree: Any, texts: Mapping[str, str]) -> Any:
    """The tree with texts exchanged that are a value of their own; if there is none, as `replaced`."""
    whole = [place for place, value in places(tree) if isinstance(value, str) and value in texts]
    if not whole:
        return replaced(tree, texts)
    known = dict(places(tree))
    for place in whole:
        tree = put(tree, place, texts[known[place]])
    return tree
