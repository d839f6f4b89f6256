"""The names under which suppliers hand over the parts of a card: column headers and labels, and what each means.

Used by the survey (what is this payload?) and the reader (which field is this?). A role is the meaning of a name,
before a product's format says which of its fields takes it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

from syncd.inventory.formats.text import ZERO_WIDTH_CLASS, mask_links, strip

KEY_ROLES: Final = ("number", "serial", "account", "link", "pin", "password", "code", "access", "email")
EXPIRES: Final = "expires"
NOTE: Final = "note"

# Latin names are written with spaces where a space, an underscore, a hyphen or nothing may stand.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "number": (
        "卡号", "卡号码", "充值卡号", "卡片号码", "卡号账号", "号码", "card", "card no", "card number", "card num",
        "card id", "number", "cardno number", "voucher number",
    ),
    "serial": (
        "序列号", "流水号", "串号", "卡序列号", "serial", "serial no", "serial number", "sn", "s n",
    ),
    "pin": (
        "卡密", "卡密码", "充值密码", "充值卡密", "充值卡密码", "卡片密码", "pin", "pin code", "pin number",
        "card pin", "card password", "card pwd", "card pass", "card secret",
    ),
    "password": (
        "密码", "登录密码", "账号密码", "口令", "password", "passwd", "pwd", "pass",
    ),
    "code": (
        "兑换码", "激活码", "礼品码", "礼包码", "充值码", "券码", "卡券码", "注册码", "密钥", "激活密钥", "产品密钥",
        "许可证", "许可证密钥", "授权码", "CDK", "CDKEY", "CD KEY", "secret", "code", "codes", "key", "keys",
        "product key", "license key", "licence key", "license", "licence", "activation code", "activation key",
        "redeem code", "redemption code", "gift code", "gift card code", "voucher", "vouchers", "voucher code",
        "coupon", "coupon code", "game key", "steam key", "claim code", "card code", "serial key",
    ),
    "account": (
        "账号", "帐号", "账户", "帐户", "用户名", "登录名", "游戏账号", "登录账号", "account", "account name",
        "username", "user name", "user", "login",
    ),
    "link": (
        "链接", "兑换链接", "兑换地址", "领取链接", "卡券链接", "短链接", "网址", "link", "url", "redeem link",
        "redeem url", "short url",
    ),
    "access": (
        "提取码", "访问码", "取件码", "access code", "extraction code",
    ),
    "expires": (
        "有效期", "有效期至", "有效期限", "有效日期", "有效时间", "有效截止日期", "到期", "到期日", "到期日期",
        "到期时间", "截止", "截止日期", "截止时间", "过期", "过期时间", "过期日期", "失效时间", "失效日期", "expires",
        "expires at", "expire", "expire at", "expire date", "expire time", "expiry", "expiry date", "expires on",
        "expiration", "expiration date", "exp", "exp date", "valid until", "valid till", "valid to", "validity",
        "end time", "end date", "card deadline", "deadline",
    ),
    "note": (
        "面值", "面额", "金额", "商品", "商品名", "商品名称", "产品", "产品名称", "名称", "类型", "卡类型", "卡种",
        "备注", "说明", "序号", "编号", "订单号", "订单编号", "数量", "价格", "单价", "成本", "品牌", "地区", "区服",
        "状态", "规格", "日期", "创建时间", "购买时间", "product", "product name", "item", "title", "type",
        "card type", "note", "notes", "remark", "remarks", "value", "face value", "amount", "price", "cost",
        "currency", "order", "order no", "order id", "order number", "id", "index", "no", "region", "status", "sku",
        "brand", "batch", "created at", "date", "draft", "premium",
    ),
    "email": (
        "email", "e mail", "mail", "邮箱", "邮箱账号", "绑定邮箱", "电子邮箱",
    ),
}  # fmt: skip

_SQUEEZE: Final = re.compile(f"[\\s_.#/{ZERO_WIDTH_CLASS}-]+")
MAX_NAME: Final = 40


def normal(name: str) -> str:
    """A header or label as it is compared: NFKC, lower case, without spaces, underscores, dots and hyphens."""
    return _SQUEEZE.sub("", unicodedata.normalize("NFKC", name[:MAX_NAME])).casefold().strip("*:\"'()[]【】")


ROLES: Final[dict[str, str]] = {normal(name): role for role, names in _NAMES.items() for name in names}


def role_of(name: str, fields: tuple[str, ...] = ()) -> str:
    """What a normalised name means: a role, the field of the format that has this very name, or "" if it is not
    known.
    """
    if name in ROLES:
        return ROLES[name]
    return next((field for field in fields if normal(field) == name), "")


def header_columns(cells: list[str] | tuple[str, ...]) -> tuple[str, ...] | None:
    """The normalised names of a header row, or None if it is none: a header names at least one key part, and every
    cell is a word (known or not) without digits in a row.
    """
    names = tuple(normal(cell) for cell in cells)
    if not any(ROLES.get(name) in KEY_ROLES for name in names):
        return None
    if any(name not in ROLES and re.search(r"\d{3}", name) for name in names):
        return None
    return names


class Item(NamedTuple):
    """One labelled value: the role (notes keep their own name, so that two kinds of note are not one), and the text."""

    role: str
    text: str


def _label_pattern() -> re.Pattern[str]:
    cjk, latin = [], []
    for names in _NAMES.values():
        for name in names:
            if name.isascii():
                latin.append(r"[ _.\-]{0,2}".join(map(re.escape, name.lower().split(" "))))
            else:
                cjk.append(re.escape(name))
    cjk.sort(key=len, reverse=True)
    latin.sort(key=len, reverse=True)
    gap = f"[\\s{ZERO_WIDTH_CLASS}]{{0,8}}"
    return re.compile(
        f"(?P<open>[【\\[(]?){gap}(?:"
        f"(?<![\u4e00-\u9fff])(?P<cjk>{'|'.join(cjk)}){gap}(?P<close>[】\\])]?){gap}(?:[:=]|(?=[A-Za-z0-9]))"
        f"|(?<![A-Za-z0-9_@./\\-])(?P<latin>{'|'.join(latin)})[.#]?{gap}[\\])]?{gap}:)",
        re.IGNORECASE,
    )


_LABEL: Final = _label_pattern()
# One for one, so that positions in the folded text are positions in the text itself.
_SAME_LENGTH: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0xA0: 0x20}
_INDEX: Final = re.compile(f"[\\s{ZERO_WIDTH_CLASS}•·*>#-]*(?:第?\\d{{1,5}}(?:[.、)\\]】]|[张个条组份])[\\s:]*)?")
_FULL_STOPS: Final = "，；。、｜"
_MAYBE: Final = re.compile(r"[:：=]|[\u5230-\u9762]")


def find_labels(text: str) -> list[Item] | None:
    """The labelled values of one line in order, an empty list if it has no label, None if text stands before the first.

    A value reaches to the next label or to the end. Links are passed over: ``?code=…`` in one is not a label.
    """
    if not _MAYBE.search(text):
        return []
    searched = mask_links(text.translate(_SAME_LENGTH))
    matches = list(_LABEL.finditer(searched))
    if not matches:
        return []
    if not _INDEX.fullmatch(searched[: matches[0].start()]):
        return None
    items = []
    for match, after in zip(matches, [*matches[1:], None], strict=True):
        name = normal(match["cjk"] or match["latin"])
        role = ROLES[name]
        value = strip(strip(text[match.end() : after.start() if after else None]).rstrip(_FULL_STOPS))
        items.append(Item(f"{NOTE}:{name}" if role == NOTE else role, value))
    return items
