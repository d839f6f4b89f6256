"""The configuration: one TOML file and `conf.d/*.toml` beside it, read whole or refused whole.

`load` names every problem at once, each with its file, its path in it and what to do. The models below are the table of
options; docs/configuration.md describes each of them. Relative paths are relative to the configuration file's folder.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo

from syncd.errors import ConfigError, Problem, StartError, nearest
from syncd.model import NAME_PATTERN, SKU_PATTERN, Money, SecretText

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZES: Final = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SECRET_WORDS: Final = re.compile(r"kek|secret|password|token|key$", re.IGNORECASE)
DEFAULT_TIMEZONE: Final = "Asia/Shanghai"
PROSE: Final = "prose"
"""The built-in format of goods that are text; a product gets it by ``allow_prose`` alone."""
MAX_QUANTITY: Final = 1000
"""Keys of one delivery, at most."""
MAX_HOLD_S: Final = 3600
"""The longest time for which a reservation holds keys."""
MAX_WAIT_S: Final = 30
"""The longest time for which a request waits for its keys."""
RESERVED_SHOP: Final = "operator"
USUAL_MOST: Final = 200
"""Keys that are held of a popular product, unless its ``cache.max`` says otherwise: a strange peak costs no more."""
_LIVE: Final = {"daemon.log_level", "daemon.adapters", "daemon.formats", "daemon.products_csv", "daemon.max_body"}
"""Of [daemon], what a reload takes over."""


def _duration(value: object) -> float:
    if isinstance(value, float | int) and not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 - pydantic takes ValueError for a wrong value
            f'a duration needs a unit: write "{value}s" for seconds, or "10m", "2h", "7d"'
        )
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError('this is not a duration: write a number and a unit, such as "30s", "10m", "2h" or "7d"')
    return float(found[1]) * _UNITS[found[2]]


def _positive(value: object) -> float:
    seconds = _duration(value)
    if seconds <= 0:
        raise ValueError('this is no time at all: write "5s" or more')
    return seconds


def _rate(value: object) -> tuple[int, float]:
    found = re.fullmatch(r"([1-9]\d{0,4})/(s|m|h)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError('this is not a rate: write a number of requests and a unit, such as "5/s", "60/m" or "500/h"')
    return int(found[1]), float(_UNITS[found[2]])


def _proxy(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^/@\s]+/?", value):
        raise ValueError('this is not a proxy: write "http://HOST:PORT", without a user and a password')
    return value


def _size(value: object) -> int:
    found = re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError('this is not a size: write a number and a unit, such as "64KiB" or "1MiB"')
    return int(found[1]) * _SIZES[found[2]]


def _money(value: object) -> Money:
    if isinstance(value, Money):
        return value
    if not isinstance(value, str):
        raise ValueError('an amount needs its currency: write "9.90 CNY", in quotes')  # noqa: TRY004 - for pydantic
    return Money.parse(value)


def _exchange(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) or not Decimal(value):
        raise ValueError(
            'this is not a rate: write what one unit costs in the base currency, in quotes, such as "7.12"'
        )
    return Decimal(value)


def _offers(value: object) -> object:
    """A cell of the products' table: ``wang:1001 li:STEAM-50``."""
    if not isinstance(value, str):
        return value
    parts = [part.partition(":") for part in value.split()]
    if not all(colon and supplier and sku for supplier, colon, sku in parts):
        raise ValueError('these are not offers: write SUPPLIER:SKU, with blanks between, such as "wang:1001 li:S-50"')
    return [{"supplier": supplier, "sku": sku} for supplier, _, sku in parts]


def _cache(value: object) -> object:
    """A cell of the products' table: ``popular``, ``popular:0..50``, ``fixed:20`` or ``fixed:20..50``."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([a-z]+)(?::(\d+)(?:\.\.(\d+))?)?", value)
    if not found:
        raise ValueError('this is not a cache: write "popular", "popular:0..50", "fixed:20", "fixed:20..50" or "none"')
    return {"mode": found[1]} | {
        name: int(number) for name, number in zip(("min", "max"), found.groups()[1:], strict=True) if number
    }


def _zone(value: object) -> str:
    if not isinstance(value, str) or value not in available_timezones():
        near = difflib.get_close_matches(str(value), available_timezones(), 1)
        raise ValueError("this is not an IANA time zone" + (f": did you mean {near[0]!r}?" if near else ""))
    return value


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("this is not a path: write it in quotes")
    base: Path = (info.context or {}).get("base", Path())
    return Path(os.path.normpath(base / Path(value).expanduser()))


def _listen(value: object) -> tuple[str, int]:
    if isinstance(value, tuple):
        return value
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the highest port
        raise ValueError('this is not HOST:PORT: write "127.0.0.1:8750"')
    return host.strip("[]"), int(port)


Duration = Annotated[float, BeforeValidator(_duration)]
Timeout = Annotated[float, BeforeValidator(_positive)]
Rate = Annotated[tuple[int, float], BeforeValidator(_rate)]
Proxy = Annotated[str, BeforeValidator(_proxy)]
Size = Annotated[int, BeforeValidator(_size)]
Price = Annotated[Money, BeforeValidator(_money)]
Percent = Annotated[float, Field(ge=0, le=100)]
Factor = Annotated[float, Field(gt=1)]
Exchange = Annotated[Decimal, BeforeValidator(_exchange)]
Zone = Annotated[str, BeforeValidator(_zone)]
PathText = Annotated[Path, BeforeValidator(_path)]
Listen = Annotated[tuple[str, int], BeforeValidator(_listen)]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )


class SecretRef(_Table):
    """Where a secret lies: exactly one of a systemd credential, a file, or an environment variable."""

    credential: str | None = Field(None, description="Name of a file in $CREDENTIALS_DIRECTORY, which systemd fills.")
    file: PathText | None = Field(None, description="A file that only the daemon's user may read.")
    env: str | None = Field(None, description="An environment variable.")

    @property
    def where(self) -> str:
        """The place, for messages; never the secret."""
        if self.credential is not None:
            return f"the systemd credential {self.credential!r}"
        return f"the environment variable {self.env}" if self.env is not None else str(self.file)

    def read(self) -> bytes | None:
        """What lies there, or None when nothing does. Raises StartError when it cannot be read, or by everybody."""
        if self.env is not None:
            text = os.environ.get(self.env)
            return None if text is None else text.encode()
        path, folder = self.file, os.environ.get("CREDENTIALS_DIRECTORY")
        if self.credential is not None:
            if folder is None:
                return None
            path = Path(folder) / self.credential
        try:
            # What systemd puts into its folder only this service can reach, whatever the mode.
            handed_over = path and folder and path.is_relative_to(folder)
            if path and path.is_file() and path.stat().st_mode & 0o007 and not handed_over:
                raise StartError(f"{path} can be read by every user of this machine", hint=f"chmod 600 {path}")
            return path.read_bytes() if path else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StartError(f"{path} cannot be read: {error.strerror}", hint="check its owner and mode") from None

    def secret(self) -> SecretText:
        """The secret as text. Raises StartError when nothing lies there."""
        data = self.read()
        if data is None:
            hint = "put the secret there" if self.file is None else "write it there, mode 0600"
            raise StartError(f"{self.where} is not there", hint=hint)
        return SecretText(data.decode("utf-8", "replace").strip())


class Daemon(_Table):
    """Where the daemon keeps its things and listens."""

    state_dir: PathText = Field(description="Folder of everything that syncd writes; made with mode 0700.")
    listen: Listen = Field(("127.0.0.1", 8750), description="HOST:PORT of the HTTP API; port 0 takes any free one.")
    api_socket: PathText = Field(description="Unix socket for shops on this machine.")
    operator_socket: PathText = Field(description="Unix socket for root and the daemon's user; the commands use it.")
    socket_group: str | None = Field(None, description="Group that may connect to api_socket.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    adapters: list[PathText] = Field(
        default=[Path("/etc/syncd/adapters")], description="Folders of drop-in adapters, one file each."
    )
    formats: list[PathText] = Field(default=[], description="Files of key formats; a name stands in one of them.")
    products_csv: PathText | None = Field(None, description="Products as a table, beside those of [products].")
    max_body: Size = Field(64 * 1024, description="Largest API request that is read.")


class Store(_Table):
    """The database."""

    url: str = Field(description="sqlite:///PATH or postgresql://USER@HOST/DATABASE.")
    password: SecretRef | None = Field(None, description="Where PostgreSQL's password lies.")


class Vault(_Table):
    """The encrypted store."""

    kek: SecretRef = Field(description="Where the key-encryption key lies.")


class SyncDefaults(_Table):
    """How suppliers are synced, unless their own table says otherwise."""

    interval: Duration = Field(600.0, description="Time between the starts of two runs.")
    jitter: Duration = Field(30.0, description="A run starts up to this much later, so that runs do not bunch.")
    lease: Duration = Field(60.0, description="How long a run is another daemon's before it may be taken over.")
    settle: Duration = Field(2.0, description="A file is taken when it has not changed for this long.")
    full_every: Duration = Field(86400.0, description="All offers are listed anew at least this often.")
    overlap: Duration = Field(300.0, description="A listing of changes begins this long before the last good one.")
    max_drop: Percent = Field(50.0, description="Percent of offers that may go at once before a listing is held.")
    max_jump: Factor = Field(3.0, description="A price that moves by more than this factor is held.")
    max_jumps: Percent = Field(20.0, description="Percent of prices that may jump before a whole listing is held.")


class Supplier(_Table):
    """One upstream account. Keys that are not listed here are the adapter's own settings."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, hide_input_in_errors=True)

    adapter: str = Field(pattern=NAME_PATTERN, description="Which adapter speaks to it.")
    enabled: bool = Field(default=True, description="Whether it is synced.")
    interval: Duration | None = Field(None, description="Time between two runs; default: sync.interval.")
    jitter: Duration | None = Field(None, description="Default: sync.jitter.")
    timezone: Zone = Field(DEFAULT_TIMEZONE, description="Zone of its dates without a zone.")
    override: bool = Field(default=False, description="Whether a drop-in adapter may shadow a bundled one.")
    full_every: Duration | None = Field(None, description="Default: sync.full_every.")
    overlap: Duration | None = Field(None, description="Default: sync.overlap.")
    max_drop: Percent | None = Field(None, description="Default: sync.max_drop.")
    max_jump: Factor | None = Field(None, description="Default: sync.max_jump.")
    max_jumps: Percent | None = Field(None, description="Default: sync.max_jumps.")
    rate: Rate = Field((5, 1.0), description="Most requests in a time, evenly spread.")
    concurrency: int = Field(4, ge=1, le=64, description="Most requests at the same time.")
    connect_timeout: Timeout = Field(5.0, description="Longest wait for a connection.")
    read_timeout: Timeout = Field(30.0, description="Longest wait for the next byte of an answer.")
    timeout: Timeout = Field(60.0, description="Longest time of one request, from its connection to its last byte.")
    max_answer: Size = Field(32 * 1024**2, description="Largest answer that is read, unpacked.")
    ca_file: PathText | None = Field(
        None, description="Certificates (PEM) that are trusted instead of the public ones."
    )
    proxy: Proxy | None = Field(None, description="An HTTP proxy through which it is reached.")
    allow_http: bool = Field(default=False, description="Whether credentials may travel in clear to other machines.")
    priority: int = Field(0, ge=-100, le=100, description="Preference when buying: a point is worth 1 % of the cost.")
    budget_hour: Price | None = Field(None, description="What it may be paid in any hour.")
    budget_day: Price | None = Field(None, description="What it may be paid in any 24 hours.")
    min_balance: Price | None = Field(None, description="Nothing is bought that would leave less in our account there.")
    poll: Timeout = Field(5.0, description="How soon an order is asked after; then ever more rarely.")
    poll_max: Timeout = Field(600.0, description="The longest time between two such questions.")

    @property
    def settings(self) -> dict[str, Any]:
        """Every other key of the table, as written: the adapter's settings model reads them."""
        return dict(self.model_extra or {})

    @property
    def tz(self) -> ZoneInfo:
        """The supplier's time zone."""
        return ZoneInfo(self.timezone)


class ProductOffer(_Table):
    """A supplier's offer that can serve a product."""

    supplier: str = Field(description="The supplier's name in [suppliers].")
    sku: str = Field(min_length=1, max_length=200, description="The supplier's own name of the offer.")
    refresh: Timeout | None = Field(None, description="How often it is asked for by itself, between two listings.")


class Cache(_Table):
    """How many keys of a product are bought ahead."""

    mode: Literal["popular", "fixed", "none"] = Field(
        "none", description="By demand, always the same number, or not at all."
    )
    min: int = Field(0, ge=0, le=100_000, description="Fewest keys to hold; for fixed, the number.")
    max: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Most keys to hold, 200 if popular; if fixed, up to which it is filled again.",
    )
    service: float = Field(99.5, ge=50, le=99.99, description="Percent of units that are to find a key.")
    budget: Price | None = Field(None, description="What the keys that are held may have cost at most.")

    @property
    def most(self) -> int:
        """The ceiling of a product that is held by demand."""
        return USUAL_MOST if self.max is None else self.max


class Product(_Table):
    """What the shop sells, by its own sku."""

    sku: str = Field(pattern=SKU_PATTERN, exclude=True)
    title: str = Field("", description="Its name, for people.")
    format: str = Field("auto", description="How its keys read: a name in the formats file, auto or opaque.")
    split: str | None = Field(None, description="Which splitter cuts a payload into cards; default: found out.")
    price: Price | None = Field(None, description="Sale price, shown with the stock.")
    min_life: Duration = Field(0.0, description="A key is delivered only while it is good for at least this long.")
    issuer: str = Field("", description="Scope of de-duplication: only keys of one issuer can be the same key.")
    offers: Annotated[list[ProductOffer], BeforeValidator(_offers)] = Field(
        default=[], description="What suppliers list that can serve it."
    )
    cache: Annotated[Cache, BeforeValidator(_cache)] = Field(
        default_factory=lambda: Cache.model_validate({}), description="How many keys are bought ahead."
    )
    max_cost: Price | None = Field(None, description="What one unit may cost at most, in any currency with a rate.")
    max_jump: Factor = Field(2.0, description="Highest factor on the price at which an offer was last bought.")
    min_margin: Percent = Field(0.0, description="Least percent of the sale price that is left after buying.")
    on_shortage: Literal["buy", "wait", "refuse"] = Field(
        "refuse", description="A paid order that finds too few keys: buy them, let it wait for some, or refuse it."
    )
    min_quantity: int = Field(1, ge=1, le=MAX_QUANTITY, description="Fewest keys of one delivery.")
    max_quantity: int = Field(MAX_QUANTITY, ge=1, le=MAX_QUANTITY, description="Most keys of one delivery.")
    display: str = Field(
        "", max_length=2000, description="How the customer sees a key, with {fields}; default: as its format says."
    )
    fields: Literal["merge", "split"] = Field(
        "merge", description="A key of several parts: in one text, or a line each."
    )
    instructions: str = Field(
        "", max_length=4000, description="What the customer is told with each key; may hold {fields}."
    )
    redeem_url: str = Field("", max_length=2000, description="Where the customer redeems a key; may hold {fields}.")
    allow_prose: bool = Field(default=False, description="Its goods are text: what reads as a sentence is a key too.")
    reusable: bool = Field(default=False, description="Always false: a card that is sold again and again is refused.")

    @property
    def takes(self) -> range:
        """The quantities that one delivery may have."""
        return range(self.min_quantity, self.max_quantity + 1)

    @property
    def reads_as(self) -> str:
        """The format by which its keys are read."""
        return PROSE if self.allow_prose else self.format


class Purchasing(_Table):
    """How keys are bought from suppliers that sell by order."""

    budget_hour: Price | None = Field(None, description="What all suppliers together may be paid in any hour.")
    budget_day: Price | None = Field(None, description="What all suppliers together may be paid in any 24 hours.")
    slippage: Percent = Field(5.0, description="Percent by which a unit may cost more than was listed.")
    max_rate_age: Duration = Field(604800.0, description="Older exchange rates buy nothing.")
    min_free: Size = Field(64 * 1024**2, description="Nothing is bought with less free space under state_dir.")
    max_disputes: int = Field(3, ge=1, description="Open disputes at which an offer is not bought from any more.")
    settle: Duration = Field(60.0, description="How long a supplier may take to know an order that it was sent.")
    deadline: Timeout = Field(86400.0, description="An order that was not delivered by then is disputed.")
    cover_unknown_after: Duration | None = Field(
        None, description="Units of unknown outcome are bought again, for orders that wait, after this time."
    )
    cover_budget_day: Price | None = Field(None, description="What such second purchases may cost in any 24 hours.")
    hooks_url: str = Field(
        "",
        pattern=r"^(https?://[^\s?#]+[^\s?#/])?$",
        description="Where suppliers reach this API from outside: their webhooks go to /v1/hooks/NAME below it.",
    )


class Shop(_Table):
    """A storefront."""

    unix_users: list[str] = Field(default=[], description="Users of this machine that speak for it on api_socket.")


class Reservations(_Table):
    """How keys are held for orders that are not paid yet."""

    ttl: Annotated[float, BeforeValidator(_positive), Field(le=MAX_HOLD_S)] = Field(
        900.0, description="How long they are held, unless the shop says how long."
    )
    per_customer: int = Field(10, ge=1, description="Most reservations that one customer of a shop has at a time.")
    per_product: Annotated[float, Field(gt=0, le=100)] = Field(
        80.0, description="Percent of what can be had of a product that reservations may hold in all."
    )


class Deliveries(_Table):
    """How paid orders are served."""

    wait: Annotated[float, BeforeValidator(_duration), Field(le=MAX_WAIT_S)] = Field(
        8.0, description="How long a request waits for keys that are being bought, unless it says how long."
    )
    max_replacements: int = Field(3, ge=0, description="Most keys that a shop may have replaced in one order line.")


class Currency(_Table):
    """What costs are compared in."""

    base: str = Field("CNY", pattern=r"^[A-Z]{3}$", description="The currency that costs are compared in.")
    rates: dict[str, Exchange] = Field(default={}, description="What one unit of another currency costs in it.")
    rates_date: date | None = Field(None, description="Of which day the rates are.")

    def landed(self, price: Money | None) -> Decimal | None:
        """What a price is in the base currency; None without a rate."""
        if price is None:
            return None
        if price.currency == self.base:
            return price.amount
        rate = self.rates.get(price.currency)
        return None if rate is None else price.amount * rate


class Settings(_Table):
    """The whole configuration."""

    file: Path = Field(exclude=True)
    daemon: Daemon
    store: Store
    vault: Vault
    sync: SyncDefaults
    currency: Currency = Field(default_factory=lambda: Currency.model_validate({}))
    purchases: Purchasing = Field(default_factory=lambda: Purchasing.model_validate({}))
    reservations: Reservations = Field(default_factory=lambda: Reservations.model_validate({}))
    deliveries: Deliveries = Field(default_factory=lambda: Deliveries.model_validate({}))
    suppliers: dict[str, Supplier] = {}
    products: dict[str, Product] = {}
    shops: dict[str, Shop] = {}
    _origins: dict[str, Path] = PrivateAttr(default_factory=dict)

    def problem(self, path: str, message: str, fix: str = "") -> Problem:
        """A problem at a dotted path, with the file in which that path was written."""
        return Problem(str(_origin(self._origins, path, self.file)), path, message, fix)

    def of(self, name: str, setting: str) -> float:
        """A setting of `SyncDefaults` as it holds for one supplier."""
        own = getattr(self.suppliers.get(name), setting, None)  # a run may outlive its supplier's configuration
        return float(getattr(self.sync, setting) if own is None else own)

    def interval(self, name: str) -> tuple[float, float]:
        """(interval, jitter) of a supplier, in seconds."""
        one = self.suppliers[name]
        return (
            self.sync.interval if one.interval is None else one.interval,
            self.sync.jitter if one.jitter is None else one.jitter,
        )


def load(path: Path) -> Settings:
    """Read the configuration. Raises ConfigError with every problem there is."""
    settings, problems = examine(path)
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def examine(path: Path) -> tuple[Settings | None, list[Problem]]:
    """(the settings without what is wrong in them, None if nothing is left; every problem there is)."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links out of the folder
    problems: list[Problem] = []
    tree: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for file in (path, *sorted((path.parent / "conf.d").glob("*.toml"))):
        found = read_toml(file, problems)
        if found is not None:
            _merge(tree, found, origins, file, problems)
    if problems and not tree:
        return None, problems
    _refuse_ours(tree, origins, path, problems)
    settings = _validated(tree, origins, path, problems)
    if settings is not None:
        settings._origins.update(origins)  # noqa: SLF001 - the same module's class
        settings = _with_csv(settings, origins, problems)
        problems += _crosscheck(settings)
    return settings, _unique(problems)


def diff(old: Settings, new: Settings) -> list[str]:
    """The dotted paths that changed and take effect only at a restart."""
    changed: list[str] = []
    for part in ("daemon", "store", "vault"):
        before, after = getattr(old, part), getattr(new, part)
        paths = {f"{part}.{name}": getattr(before, name) != getattr(after, name) for name in type(before).model_fields}
        changed += [path for path, differs in paths.items() if differs and path not in _LIVE]
    return changed


# --- reading ----------------------------------------------------------------------------------------------------------


def read_toml(file: Path, problems: list[Problem], parse_float: Callable[[str], Any] = float) -> dict[str, Any] | None:
    """A file's tables; None where it cannot be read, with the reason among the problems."""
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"), parse_float=parse_float)
    except FileNotFoundError:
        problems.append(Problem(str(file), "", "there is no such file", "make one with: syncd init"))
    except UnicodeDecodeError:
        problems.append(Problem(str(file), "", "it is not UTF-8 text", "save it as UTF-8"))
    except tomllib.TOMLDecodeError as error:
        # The message says what and where; it never quotes more than one character of the file.
        problems.append(Problem(str(file), "", f"it is not TOML: {error}", "mend that line"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "its content is out of bounds"
        problems.append(Problem(str(file), "", f"it cannot be read: {why}", "check its owner, mode and content"))
    return None


def _merge(
    tree: dict[str, Any],
    found: Mapping[str, Any],
    origins: dict[str, Path],
    file: Path,
    problems: list[Problem],
    at: str = "",
) -> None:
    """Add one file's tables; a table may be spread over files, a value stands once."""
    for name, value in found.items():
        path = f"{at}.{name}" if at else name
        mine = tree.get(name)
        if isinstance(value, dict) and isinstance(mine, dict):
            _merge(mine, value, origins, file, problems, path)
        elif name in tree:
            first = _origin(origins, path, file)
            problems.append(Problem(str(file), path, f"it is set in {first} already", "keep one of the two"))
        else:
            tree[name] = value
            origins[path] = file
            for inner in _paths(value, path):
                origins[inner] = file


def _paths(value: object, at: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{at}.{name}"
            yield from _paths(inner, f"{at}.{name}")


def _origin(origins: Mapping[str, Path], path: str, default: Path) -> Path:
    while path and path not in origins:
        path = path.rpartition(".")[0]
    return origins.get(path, default)


def _refuse_ours(tree: dict[str, Any], origins: Mapping[str, Path], path: Path, problems: list[Problem]) -> None:
    """Two fields of the models are filled in here, not read: written down, they would be ignored in silence."""
    if tree.pop("file", None) is not None:
        problems.append(Problem(str(_origin(origins, "file", path)), "file", "there is no such setting", "take it out"))
    products = tree.get("products")
    for sku, product in products.items() if isinstance(products, dict) else ():
        if isinstance(product, dict) and product.pop("sku", None) is not None:
            at = f"products.{sku}.sku"
            fix = "a product's sku is its table's name: [products.SKU]"
            problems.append(Problem(str(_origin(origins, at, path)), at, "there is no such setting", fix))


def _validated(
    tree: dict[str, Any], origins: Mapping[str, Path], path: Path, problems: list[Problem]
) -> Settings | None:
    """The settings without what is wrong, so that what is wrong elsewhere is found too; None if nothing is left."""
    for _ in range(3):  # without a wrong value, another one may be missing
        _defaults(tree, path)
        try:
            return Settings.model_validate({**tree, "file": path}, context={"base": path.parent})
        except ValidationError as error:
            items = error.errors(include_url=False, include_input=False)
        fresh = [_explained(item, origins, path) for item in items]
        known = {problem.path for problem in problems}
        problems += [problem for problem in fresh if problem.path not in known]
        for item in items:
            whole = item["type"] == "missing" or item["loc"][-1:] == ("sku",)  # a sku is its table's name
            _take_out(tree, item["loc"][:-1] if whole else item["loc"])
    return None


def _take_out(tree: Any, loc: tuple[int | str, ...]) -> None:
    """Remove the value at a place, or the innermost table or list around it that the place can be found in."""
    at = tree
    for depth, part in enumerate(loc):
        inner = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, dict) and (depth == len(loc) - 1 or not isinstance(inner, dict)):
            at.pop(part, None)
            return
        at = inner


def _defaults(tree: dict[str, Any], path: Path) -> None:
    """What depends on other settings or on systemd's environment."""
    daemon, store, vault = (tree.setdefault(name, {}) for name in ("daemon", "store", "vault"))
    tree.setdefault("sync", {})
    if isinstance(daemon, dict):
        state = daemon.setdefault("state_dir", os.environ.get("STATE_DIRECTORY", "../var").split(":")[0])
        state = str(state)
        sockets = os.environ.get("RUNTIME_DIRECTORY", state).split(":")[0]
        daemon.setdefault("api_socket", f"{sockets}/api.sock")
        daemon.setdefault("operator_socket", f"{sockets}/operator.sock")
        if "formats" not in daemon:
            named = path.parent / "formats.toml"
            daemon["formats"] = [str(named if named.exists() else _bundled("formats.toml"))]
        if isinstance(store, dict):
            store.setdefault("url", f"sqlite:///{os.path.normpath(path.parent / state)}/syncd.db")
            url = store["url"]
            if isinstance(url, str) and url.startswith("postgresql://"):
                store["url"] = url.replace("postgresql://", "postgresql+psycopg://", 1)
            elif isinstance(url, str) and re.match(r"sqlite:///[^/]", url):
                store["url"] = f"sqlite:///{os.path.normpath(path.parent / url.removeprefix('sqlite:///'))}"
        if isinstance(vault, dict):
            vault.setdefault("kek", {"file": f"{state}/kek"})
    products = tree.get("products")
    for sku, product in products.items() if isinstance(products, dict) else ():
        if isinstance(product, dict):
            product["sku"] = sku


def _bundled(name: str) -> Path:
    """A file of config/: inside the wheel, else in the checkout."""
    inside = Path(__file__).parent / "config" / name
    return inside if inside.exists() else Path(__file__).parent.parent / "config" / name


# --- problems ---------------------------------------------------------------------------------------------------------


def explained(item: Any, root: type[BaseModel], what: str, manual: str) -> tuple[str, str]:
    """(what is wrong, what to do) of one item of a ValidationError, in a file of ``what`` that ``manual`` describes."""
    context, message = item.get("ctx", {}), str(item["msg"]).removeprefix("Value error, ")
    match item["type"]:
        case "extra_forbidden":
            return f"there is no such {what}", nearest(str(item["loc"][-1]), words_at(root, item["loc"][:-1]))
        case "missing":
            return "it is missing", "add it"
        case "literal_error":
            return f"it is none of {context['expected']}", "name one of them"
    return message, context.get("fix", f"correct it; {manual} has every {what}")


def _explained(item: Any, origins: Mapping[str, Path], file: Path) -> Problem:
    loc = [str(part) for part in item["loc"]]
    path = ".".join(loc)
    message, fix = explained(item, Settings, "setting", "docs/configuration.md")
    if item["type"] == "model_type" and any(_SECRET_WORDS.search(part) for part in loc[-1:]):
        message = "a secret is never written into the configuration"
        fix = f'{loc[-1]} = {{ credential = "NAME" }}, {{ file = "PATH" }} or {{ env = "NAME" }}'
    elif ":" in message and item["type"] == "value_error":
        message, _, fix = message.partition(": ")
    elif item["type"] == "string_pattern_mismatch":
        message, fix = "this name has characters that it may not have", f"it has to match {item['ctx']['pattern']}"
    return Problem(str(_origin(origins, path, file)), path, message, fix)


def words_at(annotation: Any, loc: Iterable[object]) -> set[str]:
    """The words of the table at a place of a validation error, in models of models, lists and dicts of them."""
    models = list(_models(annotation))
    fields = {field.alias or name: field for model in models for name, field in model.model_fields.items()}
    places = iter(loc)
    for part in places:
        if part in fields:
            return words_at(fields[str(part)].annotation, places)
    return {name for name, field in fields.items() if not field.exclude}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _crosscheck(settings: Settings) -> list[Problem]:
    problems: list[Problem] = []
    for table, pattern in (("suppliers", NAME_PATTERN), ("shops", NAME_PATTERN), ("products", SKU_PATTERN)):
        problems += [
            settings.problem(f"{table}.{name}", "this name has characters that it may not have", f"match {pattern}")
            for name in getattr(settings, table)
            if not re.fullmatch(pattern, name)
        ]
    if RESERVED_SHOP in settings.shops:
        problems.append(settings.problem("shops.operator", "this name is the operator's own", "choose another name"))
    url = settings.store.url
    if not url.startswith(("sqlite:///", "postgresql+psycopg://")):
        problems.append(
            settings.problem("store.url", "this is not a database that syncd uses", "sqlite:///PATH or postgresql://…")
        )
    elif re.search(r"://[^/@]*:[^?]+@|[?&]password=", url):
        problems.append(
            settings.problem("store.url", "a password stands in it", 'take it out and set password = { file = "PATH" }')
        )
    for name in settings.suppliers:
        own = settings.suppliers[name].interval
        if own is not None and own < 1:
            problems.append(settings.problem(f"suppliers.{name}.interval", "it is shorter than 1s", 'write "10m"'))
    problems += _offers_problems(settings)
    problems += [problem for sku in settings.products for problem in _product_problems(settings, sku)]
    for at, least, usual in (("interval", settings.sync.interval, "10m"), ("lease", settings.sync.lease, "60s")):
        if least < 1:
            problems.append(settings.problem(f"sync.{at}", "it is shorter than 1s", f'write "{usual}"'))
    for path, ref in (("vault.kek", settings.vault.kek), ("store.password", settings.store.password)):
        if ref is not None and sum(place is not None for place in (ref.credential, ref.file, ref.env)) != 1:
            problems.append(
                settings.problem(path, "a secret lies in exactly one place", "name one of credential, file, env")
            )
    return problems or _password_problems(settings)


def _password_problems(settings: Settings) -> list[Problem]:
    password = settings.store.password
    try:
        if password is None or password.read() is not None:
            return []
    except StartError as error:
        return [settings.problem("store.password", error.message, error.hint)]
    return [settings.problem("store.password", f"{password.where} is not there", "put the password there")]


def _offers_problems(settings: Settings) -> list[Problem]:
    """What is wrong with the offers of products, and with rates."""
    problems: list[Problem] = []
    for sku, product in settings.products.items():
        at = f"products.{sku}.offers"
        for offer in product.offers:
            if offer.supplier not in settings.suppliers:
                near = difflib.get_close_matches(offer.supplier, settings.suppliers, 1)
                known = ", ".join(sorted(settings.suppliers)) or "none"
                fix = f"did you mean {near[0]}?" if near else f"there are: {known}"
                problems.append(settings.problem(at, f"there is no supplier {offer.supplier!r}", fix))
        named = [(offer.supplier, offer.sku) for offer in product.offers]
        if len(set(named)) < len(named):
            problems.append(settings.problem(at, "an offer stands in it twice", "take one of the two out"))
    currency = settings.currency
    wrong = [name for name in currency.rates if not re.fullmatch(r"[A-Z]{3}", name) or name == currency.base]
    if wrong:
        fix = "name other currencies than the base by their ISO 4217 codes"
        problems.append(settings.problem("currency.rates", f"this is no currency to convert: {wrong[0]}", fix))
    if currency.rates and currency.rates_date is None:
        problems.append(settings.problem("currency.rates_date", "it is missing", "say of which day the rates are"))
    own = settings.purchases
    amounts = {f"purchases.{name}": getattr(own, name) for name in ("budget_hour", "budget_day", "cover_budget_day")}
    for name, supplier in settings.suppliers.items():
        limits = ("budget_hour", "budget_day", "min_balance")
        amounts |= {f"suppliers.{name}.{limit}": getattr(supplier, limit) for limit in limits}
    for at, amount in amounts.items():
        if amount is not None and currency.landed(amount) is None:
            fix = f"write it in {currency.base}, or add a rate to [currency]"
            problems.append(settings.problem(at, f"there is no rate for {amount.currency}", fix))
    if (own.cover_unknown_after is None) != (own.cover_budget_day is None):
        fix = "set both cover_unknown_after and cover_budget_day, or neither"
        problems.append(settings.problem("purchases.cover_unknown_after", "it goes with a budget", fix))
    return problems


def _product_problems(settings: Settings, sku: str) -> list[Problem]:
    product, at = settings.products[sku], f"products.{sku}"
    found: list[Problem] = []
    if product.reusable:
        found.append(
            settings.problem(
                f"{at}.reusable",
                "a reusable card (循环卡密), sold again and again, cannot be delivered exactly once",
                "sell it elsewhere, or give each customer a key of their own and take this setting out",
            )
        )
    found += _cache_problems(settings, sku)
    if product.on_shortage == "buy" and not product.offers:
        found.append(
            settings.problem(
                f"{at}.on_shortage",
                "nobody is named from whom it could be bought",
                'name its offers (syncd products suggest), or write "wait" or "refuse"',
            )
        )
    if product.min_quantity > product.max_quantity:
        found.append(
            settings.problem(
                f"{at}.min_quantity",
                f"it is more than max_quantity, which is {product.max_quantity}",
                "no quantity is left that could be delivered: lower it, or raise max_quantity",
            )
        )
    if product.allow_prose and product.format not in {"auto", "opaque"}:
        found.append(
            settings.problem(
                f"{at}.allow_prose",
                f"a text fits no format, and format is {product.format!r}",
                'take one of the two out, or write format = "opaque"',
            )
        )
    return found


def _cache_problems(settings: Settings, sku: str) -> list[Problem]:
    product, at = settings.products[sku], f"products.{sku}.cache"
    cache = product.cache
    if cache.mode == "none":
        return []
    found = []
    if not product.offers:
        found.append(settings.problem(at, "nothing can be bought of it", "add offers to the product"))
    if cache.mode == "fixed" and not cache.min:
        found.append(
            settings.problem(f"{at}.min", "a fixed number is missing", "write how many keys to hold: min = 20")
        )
    if cache.min > (cache.most if cache.mode == "popular" else cache.max or cache.min):
        most = cache.most if cache.mode == "popular" else cache.max
        found.append(settings.problem(f"{at}.min", f"it is more than max, which is {most}", "lower it, or raise max"))
    if cache.budget is not None and settings.currency.landed(cache.budget) is None:
        fix = f"add {cache.budget.currency} to [currency] rates"
        found.append(settings.problem(f"{at}.budget", f"there is no rate for {cache.budget.currency}", fix))
    return found


def _with_csv(settings: Settings, origins: dict[str, Path], problems: list[Problem]) -> Settings:
    """Add the products of the table that daemon.products_csv names."""
    file = settings.daemon.products_csv
    if file is None:
        return settings
    products = dict(settings.products)
    columns = sorted(words_at(Settings, ["products"]))
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        problems.append(settings.problem("daemon.products_csv", f"{file} cannot be read as UTF-8", "check the file"))
        return settings
    reader = csv.DictReader(text.splitlines())
    unknown = [name for name in reader.fieldnames or [] if name not in {"sku", *columns}]
    if "sku" not in (reader.fieldnames or []) or unknown:
        wrong = f"unknown columns: {', '.join(unknown)}" if unknown else "there is no column sku"
        problems.append(Problem(str(file), "line 1", wrong, f"columns: sku, {', '.join(columns)}"))
        return settings
    for row in reader:
        sku, line = row.get("sku") or "", f"line {reader.line_num}"
        if sku in products:
            first = origins.get(f"products.{sku}", settings.file)
            problems.append(Problem(str(file), line, f"{sku} is set in {first} already", "keep one of the two"))
            continue
        try:
            products[sku] = Product.model_validate_strings({name: cell for name, cell in row.items() if name and cell})
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False):
                found = _explained(item, {}, file)
                problems.append(Problem(str(file), f"{line}, {found.path}", found.message, found.fix))
            continue
        origins[f"products.{sku}"] = file
    merged = settings.model_copy(update={"products": products})
    merged._origins.update(origins)  # noqa: SLF001 - the same module's class
    return merged


def _unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))
