"""PUBLIC: the one module that an adapter imports; what lies inside of this package is of no concern to it.

An adapter is a file with one subclass of `Adapter`. It says what the supplier's protocol says, and nothing more: it
never splits, cleans or reads a key (K14), and retries, limits, leases, sealing and reports are the core's.
``adapters/README.md`` is the guide.

What a supplier can do is seen from the methods that its adapter implements. A feed implements `pull_keys`. A supplier
that sells by order implements `list_offers`, `place_order` and `get_order`, and whatever else its protocol has. What
cannot be seen from a method, the adapter promises in `Adapter.promises`.
"""

from syncd.adapter.errors import (
    AdapterError,
    Auth,
    BadResponse,
    Config,
    Forged,
    InsufficientBalance,
    NotForSale,
    NotSent,
    OutcomeUnknown,
    OutOfStock,
    PriceChanged,
    RateLimited,
    Refused,
    Transient,
)
from syncd.adapter.feeds import Consignment, Media, Pull, Seal
from syncd.adapter.http import (
    Answer,
    ApiKey,
    Authentication,
    Basic,
    Bearer,
    Connect,
    Hint,
    Http,
    OAuth2,
    Request,
    Signer,
    Webhook,
)
from syncd.adapter.pages import Part, by_cursor, by_number, by_offset
from syncd.adapter.settings import FolderPath, Secret, Settings, Url
from syncd.adapter.signing import Signed, aes_256_ecb, hmac_sha256_hex, md5_hex, same, sha1_hex, verify
from syncd.adapter.values import (
    Check,
    Offer,
    Order,
    OrderRequest,
    OrderStatus,
    Page,
    Promises,
    RawKey,
    Stock,
    instant,
    money,
    reading,
    select,
)
from syncd.adapter.verbs import READING as READING  # these three are for the core alone
from syncd.adapter.verbs import VERBS as VERBS
from syncd.adapter.verbs import Adapter, Context
from syncd.adapter.verbs import capabilities as capabilities
from syncd.model import Money, SecretText

__all__ = [
    "Adapter",
    "AdapterError",
    "Answer",
    "ApiKey",
    "Auth",
    "Authentication",
    "BadResponse",
    "Basic",
    "Bearer",
    "Check",
    "Config",
    "Connect",
    "Consignment",
    "Context",
    "FolderPath",
    "Forged",
    "Hint",
    "Http",
    "InsufficientBalance",
    "Media",
    "Money",
    "NotForSale",
    "NotSent",
    "OAuth2",
    "Offer",
    "Order",
    "OrderRequest",
    "OrderStatus",
    "OutOfStock",
    "OutcomeUnknown",
    "Page",
    "Part",
    "PriceChanged",
    "Promises",
    "Pull",
    "RateLimited",
    "RawKey",
    "Refused",
    "Request",
    "Seal",
    "Secret",
    "SecretText",
    "Settings",
    "Signed",
    "Signer",
    "Stock",
    "Transient",
    "Url",
    "Webhook",
    "aes_256_ecb",
    "by_cursor",
    "by_number",
    "by_offset",
    "hmac_sha256_hex",
    "instant",
    "md5_hex",
    "money",
    "reading",
    "same",
    "select",
    "sha1_hex",
    "verify",
]
