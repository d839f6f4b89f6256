"""What an adapter raises, named by what happens next.

A message says what is wrong, ``hint`` what to do. Neither may hold a key, a credential or a line of a payload. What an
adapter raises besides these is mapped by the core: in `place_order` to OutcomeUnknown once anything was sent that may
have bought something, elsewhere to BadResponse.
"""

from __future__ import annotations

from syncd.errors import SyncdError


class AdapterError(SyncdError):
    """The supplier could not be read this time: recorded in the run, tried again at the next one."""

    code = "supplier_failed"
    status = 502


class NotSent(AdapterError):
    """Nothing left this machine (DNS, refused or timed-out connect, TLS, pool, open breaker): nothing was bought.

    A purchase closes as refused, and another supplier may be asked (K9).
    """

    code = "supplier_not_reached"


class Transient(AdapterError):
    """It failed now and may work in a moment: reading is tried again."""

    code = "supplier_transient"


class RateLimited(Transient):
    """Too many requests. ``retry_after`` in seconds, where the supplier says it."""

    code = "supplier_rate_limited"

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Auth(AdapterError):
    """Our credentials are refused: this supplier is not asked again until its configuration changes; one alert."""

    code = "supplier_auth"


class Refused(AdapterError):
    """The supplier says no, with certainty: nothing was bought. Another supplier may be asked."""

    code = "supplier_refused"


class OutOfStock(Refused):
    """There is not enough of it."""

    code = "supplier_out_of_stock"


class PriceChanged(Refused):
    """It costs more than the limit that was sent."""

    code = "supplier_price_changed"


class InsufficientBalance(Refused):
    """Our account at the supplier does not cover it."""

    code = "supplier_insufficient_balance"


class NotForSale(Refused):
    """The offer is gone, paused, or not for us."""

    code = "supplier_not_for_sale"


class OutcomeUnknown(AdapterError):
    """It was sent, and nobody can say whether it was bought. Never repeated blindly, never failed over (M1)."""

    code = "supplier_outcome_unknown"


class BadResponse(AdapterError):
    """The answer is not what the protocol says (HTML, ``{}``, cut off): the last good data is kept (P1)."""

    code = "supplier_bad_response"


class Config(AdapterError):
    """The configuration cannot work: said once, and not tried again until it changes."""

    code = "supplier_misconfigured"


class Forged(AdapterError):
    """A webhook's signature is wrong, or is too old. It is answered with 401 and has no effect."""

    code = "webhook_forged"
    status = 401
