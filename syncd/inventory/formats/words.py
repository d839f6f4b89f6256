"""The names under which suppliers hand over the parts of a card: column headers and labels, and what each means.

Used by the survey (what is this payload?) and the reader (which field is this?). A role is the meaning of a name,
before a product's format says which of its fields takes it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final, NamedTuple

from syncd.inventory.formats.expiry import DATED, WRITTEN, expiry_in
from syncd.inventory.formats.text import LINK, ZERO_WIDTH_CLASS, denies, is_link, is_prose, mask_links, strip

KEY_ROLES: Final = (
    "number",
    "serial",
    "account",
    "link",
    "pin",
    "password",
    "code",
    "access",
    "email",
    "email_password",
    "secret",
    "unzip",
    "image",
)
EXPIRES: Final = "expires"
NOTE: Final = "note"

# Latin names are written with spaces where a space, an underscore, a hyphen or nothing may stand.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "number": (
        "卡号", "卡号码", "充值卡号", "卡片号码", "卡号账号", "号码", "card", "card no", "card number",
        "egift card number", "e gift card number", "card num",
        "card id", "number", "cardno number", "voucher number", "kahao", "ka hao", "ka no", "gift card number",
        "卡片编号", "礼品卡号", "充值账号", "kartennummer", "numéro de carte", "número de tarjeta",
        "número do cartão", "номер карты", "номер", "カード番号", "카드번호", "số thẻ", "no kartu",
    ),
    "serial": (
        "序列号", "流水号", "串号", "卡序列号", "序列", "充值卡序列号", "seriennummer", "numéro de série",
        "número de serie", "número de série", "серийный номер", "シリアル番号", "일련번호", "số seri", "seri",
        "serial", "serial no", "serial number", "sn", "s n",
    ),
    "pin": (
        "卡密", "卡密码", "充值密码", "充值卡密", "充值卡密码", "卡片密码", "pin", "pin code", "pin number",
        "card pin", "card password", "card pwd", "card pass", "card secret", "kami", "ka mi", "card key",
        "gift card pin", "scratch code", "cvv", "cvv2", "cvc", "security code", "安全码", "gift card password",
        "kapw", "пин", "пин код", "暗証番号",
    ),
    "password": (
        "密码", "登录密码", "登入密码", "steam密码", "密鑰", "登陆密码", "游戏密码", "passwort", "kennwort",
        "mot de passe", "contraseña",
        "senha", "пароль", "パスワード", "비밀번호", "mật khẩu", "kata sandi", "账号密码", "口令", "password",
        "passwd", "pwd", "pass",
    ),
    "code": (
        "兑换码", "激活码", "卡密信息", "卡券信息", "发货内容", "发货信息", "卡密内容", "兑换卷", "兑换券", "兑换券码",
        "优惠码", "优惠券码", "邀请码", "序号码", "激活序列号",
        "游戏激活码", "steam激活码", "gutscheincode", "gutschein", "schlüssel", "aktivierungscode", "code cadeau",
        "clé", "clé d'activation", "código", "clave", "código de activación", "código de ativação", "chave", "codice",
        "ключ", "код", "код активации", "промокод", "コード", "ギフトコード", "シリアルコード", "コード番号", "코드",
        "쿠폰번호", "mã thẻ", "mã", "kode", "kode voucher", "steam code", "xbox code", "psn code", "windows key",
        "office key", "origin key", "uplay key", "gog key", "epic key", "microsoft key", "redeem key code", "epin",
        "e pin", "gift key", "game code", "serial code", "key code", "license code", "cdk code", "prepaid code",
        "top up code", "recharge code", "unlock code", "礼品码", "礼包码", "充值码", "券码", "卡券码", "注册码",
        "密钥", "激活密钥", "产品密钥", "许可证", "许可证密钥", "授权码", "卡券密码", "券密", "CDK", "CDKEY",
        "CD KEY", "secret", "code", "codes", "key", "keys", "product key", "license key", "licence key", "license",
        "licence", "activation code", "activation key", "redeem code", "redemption code", "gift code",
        "gift card code", "voucher", "vouchers", "voucher code", "coupon", "coupon code", "game key", "steam key",
        "claim code", "card code", "serial key", "pass code", "digital code", "download code", "redeem key",
        "cd keys", "serials",
    ),
    "account": (
        "账号", "帐号", "账户", "登录邮箱", "登录账户", "steam账号", "steam帐号", "帐户", "用户名", "登陆账号",
        "登陆名",
        "会员账号", "游戏帐号", "benutzername",
        "konto", "identifiant", "usuario", "cuenta", "usuário", "логин", "аккаунт", "アカウント", "ユーザー名",
        "계정", "아이디", "login name", "login id", "user id", "登录名", "游戏账号", "登录账号", "account",
        "account name", "username", "user name", "user", "login",
    ),
    "link": (
        "链接", "兑换链接", "兑换地址", "领取链接", "卡券链接", "短链接", "网址", "link", "url", "redeem link",
        "redeem url", "short url", "redemption url", "redemption link", "activation url", "activation link",
        "claim url", "claim link", "share url", "链接地址", "下载链接", "分享链接", "网盘链接", "领取地址",
        "领取网址", "兑换网址", "ссылка", "リンク", "lien", "enlace", "download link", "download url", "card url",
        "card link",
    ),
    "access": (
        "提取码", "验证码", "核销码",
        "访问码", "取件码", "提取密码", "访问密码", "提取碼", "分享密码", "access code", "extraction code",
        "extract code", "fetch code",
    ),
    "expires": (
        "有效期", "有效期至", "有效期止", "有效期限", "有效日期", "有效时间", "有效截止日期", "到期", "到期日",
        "到期日期", "到期时间", "截止", "截止日期", "截止时间", "过期", "过期时间", "过期日期", "失效时间", "失效日期",
        "expires",
        "使用期限", "激活期限", "兑换期限",
        "充值期限", "有效日", "有效截止", "截止有效期", "最后使用日期", "使用截止", "兑换截止日期", "兑换截止时间",
        "激活截止日期", "gültig bis", "ablaufdatum", "verfallsdatum", "date d'expiration", "valable jusqu'au",
        "fecha de caducidad", "vence", "válido hasta", "válido até", "validade", "срок действия", "действует до",
        "годен до", "有効期限", "유효기간", "hạn sử dụng", "hsd", "best before", "use by", "use before", "redeem by",
        "redeem before", "valid thru", "valid through", "until", "till", "use until", "usable until", "ends at",
        "ends on", "expires by", "expiring", "expiring date", "exp time", "date of expiry", "date of expiration",
        "有效期到",
        "有效至", "可用至", "质保到期", "good through", "expired at", "expired date", "expiration time",
        "expires in", "expiry time", "valid date", "expires at", "expire", "expire at",
        "expire date", "expire time", "expiry", "expiry date", "expires on", "expiration", "expiration date", "exp",
        "exp date", "valid until", "valid till", "valid to", "validity", "end time", "end date", "card deadline",
        "deadline",
    ),
    "note": (
        "produkt", "artikel", "wert", "betrag", "preis", "währung", "menge", "land", "bestellnummer", "bezeichnung",
        "hinweis", "produit", "article", "valeur", "montant", "prix", "devise", "pays", "producto", "artículo",
        "valor", "importe", "precio", "moneda", "país", "produto", "preço", "товар", "продукт", "номинал", "цена",
        "валюта", "количество", "регион", "заказ", "название", "примечание", "статус", "商品コード", "価格", "金額",
        "通貨", "数量コード", "備考", "注文番号", "상품명", "상품", "금액", "가격", "비고", "sản phẩm", "mệnh giá",
        "giá", "面值", "面额", "金额", "商品", "商品名", "充值卡", "语言", "版本", "供货商", "渠道", "发货人",
        "操作员", "卡名称", "卡名", "卡面值", "卡片类型", "货币", "币种", "运营商", "省份", "时间", "用途", "限制",
        "有效状态", "是否使用", "使用状态", "兑换网站", "兑换步骤", "兑换教程", "使用教程", "使用步骤", "公告",
        "通知", "官网地址", "商品编号", "商品编码", "商品id", "货号", "批次", "批次号", "入库时间", "出库时间",
        "提卡时间", "发卡时间", "生成时间", "销售时间", "创建日期", "订单时间", "交易号", "流水单号", "支付时间",
        "购买日期", "买家", "收货人", "会员", "等级", "区域", "国家", "大区", "line", "row", "seq", "sequence",
        "language", "edition", "version", "comment", "comments", "memo", "seller", "vendor", "supplier", "buyer",
        "customer", "model", "face", "face amount", "unit price", "nominal", "package", "plan", "os", "release date",
        "date added", "added", "purchase date", "order date", "delivered at", "delivery date", "sold at", "bought at",
        "ordered at", "invoice", "invoice no", "reference", "ref", "ref no", "transaction", "po", "po number",
        "line no", "item no", "item id", "item name", "offer id", "offer", "kinguin id", "game title", "game name",
        "product title", "ean", "upc", "territory", "market", "zone", "date of purchase", "owner", "kind", "path",
        "method", "trace", "balance", "initial balance", "余额", "issuer", "provider", "store name", "发卡方",
        "商品名称", "产品", "产品名称", "名称", "类型", "卡类型", "卡种", "备注", "说明", "序号", "编号", "订单号",
        "订单编号", "数量", "价格", "单价", "成本", "品牌", "地区", "区服", "状态", "规格", "日期", "创建时间",
        "购买时间", "product", "product name", "item", "title", "type", "card type", "note", "notes", "remark",
        "remarks", "value", "face value", "amount", "price", "cost", "currency", "order", "order no", "order id",
        "order number", "id", "index", "no", "region", "status", "sku", "brand", "batch", "created at", "date",
        "draft", "premium", "QQ", "QQ群", "客服", "客服QQ", "微信", "客服微信", "联系电话", "电话", "手机", "旺旺",
        "官网", "店铺", "温馨提示", "提示", "注意", "注意事项", "使用方法", "使用说明", "兑换方式", "兑换方法",
        "教程", "购买数量", "订单", "单号", "下单时间", "发货时间", "售后", "品名", "套餐", "游戏", "平台", "服务器",
        "规格型号", "商家", "供应商", "tel", "phone", "wechat", "telegram", "contact", "support", "website", "shop",
        "store", "tips", "tip", "warning", "instructions", "how to redeem", "how to use", "game", "platform",
        "quantity", "qty", "description", "desc", "name", "country", "country code", "product code", "product id",
        "sku id", "order code", "purchased at", "category", "denomination", "file name", "code type", "code id",
        "code status", "card status", "card id number", "message", "msg", "error", "error code", "status code",
        "success", "currency code", "region code", "trade no", "out trade no", "transaction id", "request id",
        "trace id", "timestamp", "time", "sign", "sign type", "nonce", "page", "page size", "total", "count",
        "mime type", "media type", "content type", "card value", "card amount", "card name", "key type", "card title",
        "state", "active", "is active", "enabled", "available", "used at", "used by", "redeemed", "redeemed at",
        "redeemed by", "is used", "claimed", "使用时间", "使用人", "核销时间", "开卡日期", "开卡时间",
        "制卡日期", "生效日期", "生效时间", "起始日期", "开始日期", "开始时间", "开通日期", "发行日期", "valid from",
        "start date", "issue date", "issued at", "issued on", "issued", "created",
        "updated at", "create time", "update time", "add time", "pay time", "buy time", "sent", "used",
    ),
    "email_password": (
        "邮箱密码", "信箱密码", "邮箱登录密码", "辅助邮箱密码", "绑定邮箱密码", "邮箱登陆密码", "mail pwd", "email pwd",
        "recovery email password", "recovery password", "mail pass", "辅邮密码", "email password", "mail password",
        "email pass",
    ),
    "secret": (
        "2fa", "2fa secret", "2fa key", "2fa code", "2fa密钥", "2fa秘钥", "totp", "totp secret", "two factor secret",
        "two factor key", "otp secret", "authenticator key", "authenticator secret", "两步验证", "两步验证密钥",
        "二步验证", "二步验证密钥", "二次验证密钥", "谷歌验证密钥", "验证密钥", "双重验证密钥",
    ),
    "unzip": (
        "解压密码", "解压码", "压缩包密码", "解压口令", "archive password", "unzip password", "zip password",
        "rar password", "extraction password",
    ),
    "image": (
        "图片", "卡图", "卡片图片", "二维码", "image", "picture", "qr", "qr code", "card image",
    ),
    "email": (
        "email", "e mail", "mail", "邮箱",
        "信箱", "恢复邮箱", "辅助信箱", "邮箱账号", "绑定邮箱", "电子邮箱", "邮箱地址", "辅助邮箱", "密保邮箱",
        "安全邮箱", "备用邮箱", "recovery email", "recovery mail", "backup email", "email address", "mail address",
        "辅邮",
    ),
}  # fmt: skip

_TRADITIONAL: Final = str.maketrans(
    "號碼密帳戶兌換啟動鏈連結郵箱應證書產儲點數額價貨單訂購買時間過無訪問開獲領網碟盤類類種註備說",
    "号码密帐户兑换启动链连结邮箱应证书产储点数额价货单订购买时间过无访问开获领网碟盘类类种注备说",
)
_SQUEEZE: Final = re.compile(f"[\\s_.#/{ZERO_WIDTH_CLASS}-]+")
MAX_NAME: Final = 40


def normal(name: str) -> str:
    """A header or label as it is compared: NFKC, lower case, without spaces, underscores, dots and hyphens."""
    return _normal(name[:MAX_NAME])


@lru_cache(4096)
def _normal(name: str) -> str:
    plain = _SQUEEZE.sub("", unicodedata.normalize("NFKC", name)).casefold().strip("*:\"'()[]【】")
    return plain if plain.isascii() else plain.translate(_TRADITIONAL)


def _compounds() -> dict[str, str]:
    """Names as programs write them, which are labels to nobody: ``voucherNo``, ``giftCardPin``, ``kmList``."""
    kinds = ("card", "voucher", "coupon", "gift card", "ticket", "epin", "recharge card", "prepaid card", "kami")
    last = {
        "number": ("no", "number", "num", "nbr"),
        "serial": ("serial", "serial no", "serial number", "sn", "serial num"),
        "pin": ("pin", "pin code", "password", "pwd", "pass", "passwd", "psw", "secret", "pin number"),
        "code": ("code", "codes", "key", "keys"),
        "link": ("url", "link"),
        "expires": (
            "expiry", "expire", "expires", "expire time", "expire date", "expiry date", "expiration", "expiration date",
            "valid to", "valid till", "valid until", "end date", "end time", "deadline", "exp date",
        ),
    }  # fmt: skip
    found = {normal(f"{kind} {name}"): role for kind in kinds for role, names in last.items() for name in names}
    short = {
        "pin": ("km", "kms", "kmlist", "cami", "carmi", "cardmm", "pincode", "pins"),
        "password": ("psw", "mima"),
        "number": ("kh",),
        "code": ("cdkeys", "cdks", "activationcodes", "redeemcodes", "vouchercodes", "productkeys", "licensekeys"),
        "expires": (
            "expdate", "exptime", "validtill", "validdate", "overtime", "invalidtime", "expirationat", "validendtime",
            "enddate",
        ),
    }  # fmt: skip
    return found | {name: role for role, names in short.items() for name in names}


ROLES: Final[dict[str, str]] = _compounds() | {normal(name): role for role, names in _NAMES.items() for name in names}


def role_of(name: str, fields: tuple[str, ...] = ()) -> str:
    """What a normalised name means: a role, the field of the format that has this very name, or "" if it is not
    known.
    """
    if name in ROLES:
        return ROLES[name]
    return next((field for field in fields if normal(field) == name), "")


_BRACKETED: Final = re.compile(r"(?<=\S) ?[(（\[][^()（）\[\]]{0,20}[)）\]]$")
EXPIRY_WORDS: Final = re.compile(
    "有效期?(?:至|限|截止)?|过期|到期|截止(?:日期|时间)?|失效|前(?:使用|兑换|激活|充值)|期限"
    r"|expir\w*|valid(?:ity)?(?: until| till| to| thr(?:u|ough))?"
    r"|\bexp\b\.?|(?:use|redeem|activate|best) (?:by|before)"
    r"|\b(?:before|until|till|no later than|by) (?=\d{1,4}[-/. ])|gültig bis|caduc|действ",
    re.IGNORECASE,
)
"""Words that say that a date is an expiry."""
_HAPPENED: Final = re.compile(
    "创建|生成|购|买|下单|订单|入库|出库|提卡|提取|发|售|支付|付款|更新|修改|添加|录入|导入|导出|上架|制|开始|起始|生效|起|注册|使用时|激活时|上传|交易|到账"
    "|creat|updat|modif|chang|purchas|order|sold|sale|buy|bought|add|deliver|ship|issu|generat|paid|pay|releas|start|begin"
    "|from|sent|send|upload|import|export|log|regist|print|made|birth|activated|redeemed|usedat|usedon|invoice|transact|batch",
    re.IGNORECASE,
)


_TO_COME: Final = re.compile("until|till|end|last|due|截止|最后", re.IGNORECASE)


def dates_the_past(name: str) -> bool:
    """Whether a name says that its date is not an expiry, but of something that has happened: ``purchased_on``."""
    return _HAPPENED.search(name) is not None and not (EXPIRY_WORDS.search(name) or _TO_COME.search(name))


UNSURE_DATES: Final = frozenset({"date", "日期"})
"""Names of columns that are known, and do not say what their date is of."""

_WORD: Final = re.compile(r"[^\W\d]{1,40}(?:[ /-][^\W\d]{1,40}){0,5}[*:：]?")


def header_columns(cells: list[str] | tuple[str, ...]) -> tuple[str, ...] | None:
    """The normalised names of a header row, or None if it is none.

    A header names at least one part of a key. Those that are not known (a date of the past is) are Chinese words, or of
    more than two columns words beside two that are known: the first card of an account named "user" is no header.
    """
    names = tuple(normal(_BRACKETED.sub("", cell)) for cell in cells)
    if not any(ROLES.get(name) in KEY_ROLES for name in names):
        return None
    strange = [
        cell
        for cell, name in zip(cells, names, strict=True)
        if name and name not in ROLES and not (dates_the_past(name) and _WORD.fullmatch(name))
    ]
    known = len(names) - len(strange)
    if not strange:
        return names
    chinese = all(not cell.isascii() for cell in strange)
    words = all(_WORD.fullmatch(strip(cell)) for cell in strange)
    return names if words and (chinese or (len(names) > 2 and known > 1)) else None  # noqa: PLR2004


class Item(NamedTuple):
    """One labelled value: the role (notes keep their own name, so that two kinds of note are not one), and the text."""

    role: str
    text: str


_IDEOGRAPH: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_BRAND: Final = (
    "(?:中国)?(?:电信|移动|联通|盛大|骏网|京东|天猫|苏宁|美团|携程|腾讯|网易|完美|巨人|征途|任天堂"
    "|Q币|Steam|PSN|Xbox|Apple|QB)(?:一卡通|卡)?"
)
_LEAD: Final = "(?:您|你)?(?:本次)?购买"


def _any_of(names: list[str], between: str) -> str:
    """A pattern of these names, the longest first, by their first characters: a text is tried against few of them."""
    heads: dict[str, list[str]] = {}
    for name in names:
        heads.setdefault(name[:1], []).append(name[1:])
    found = []
    for head, rests in sorted(heads.items()):
        more = [rest for rest in dict.fromkeys(rests) if rest]
        gap = r"[ _.\-]{0,2}" if head == " " else ""
        tail = f"(?:{between}{_any_of(more, between)})" if more else ""
        if more and "" in rests:
            tail += "?"
        found.append((gap or re.escape(head)) + tail)
    return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"


def _label_pattern() -> re.Pattern[str]:
    cjk, latin = [], []
    inside = f"[\\s{ZERO_WIDTH_CLASS}]{{0,3}}"  # 卡 号, as people space it out
    for names in _NAMES.values():
        for name in names:
            if _IDEOGRAPH.search(name):
                cjk.append(name)
            else:
                latin.append(name.lower())
    # One look at the first character spares most places the whole alternation.
    first = [
        "".join(sorted({re.escape(char) for name in names for char in (name[0].lower(), name[0].upper())}))
        for names in ([*cjk, *"您你本购中电移联盛骏京天苏美携腾网完巨征任QSPXA"], latin)
    ]
    either = [_any_of(cjk, inside), _any_of(latin, "")]
    gap = f"[\\s{ZERO_WIDTH_CLASS}]{{0,8}}"
    says = "(?:[:=→]|->)"
    other = r"\([^()\d]{1,12}\)\s?"  # its name in another language, or what it is for
    count = f"\\d{{1,3}}(?={gap}[】\\])]?{gap}[:=])"  # the cards of a list: 卡号1, 卡号2
    return re.compile(
        f"(?P<open>[【\\[({{]?){gap}(?:"
        f"(?<![\u4e00-\u9fff])(?=[{first[0]}])(?:[您你]的|{_LEAD}的?)?(?:{_BRAND}的?)?(?P<cjk>{either[0]})(?:{count}|为|是)?{gap}(?:{other})?(?P<close>[】\\])]?){gap}(?:{says}|(?=[A-Za-z0-9]))"
        f"|(?<![\\w@./\\-])(?=[{first[1]}])(?P<latin>{either[1]})[.#]?(?: ?{count}| is| are)?{gap}"
        f"(?:{other})?[\\])]?{gap}{says})",
        re.IGNORECASE,
    )


_LABEL: Final = _label_pattern()
# One for one, so that positions in the folded text are positions in the text itself.
_SAME_LENGTH: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0xA0: 0x20}
_SEARCHED: Final = _SAME_LENGTH | _TRADITIONAL
_CIRCLED: Final = "\u2460-\u2473\u24f5-\u24fe\u2776-\u2793"
_ORDINAL: Final = (
    f"(?:[{_CIRCLED}]|(?:no\\.?|卡|第|card|key|#)? ?#?\\d{{1,5}} ?(?:[张个条组份]卡?[.、:)\\]】]?|[.、:)\\]】])"
    "|[(\\[【#]\\d{1,5}[)\\]】]?)"
)
_INDEX: Final = re.compile(f"[\\s{ZERO_WIDTH_CLASS}•·*>#-]*(?:{_ORDINAL}[\\s:]*)?", re.IGNORECASE)
_ONLY_INDEX: Final = re.compile(rf"{_ORDINAL}\s*", re.IGNORECASE)
_HEADING: Final = re.compile(r"(?:(?:gift )?card|voucher|item|key) ?#?\d{1,3}\s?[.:]?", re.IGNORECASE)
_NUMBERED: Final = re.compile(
    rf"(?:(?P<circled>[{_CIRCLED}])|(?P<word>(?:no\.?|№|#|第|卡密?|code|key|card|item|激活码|兑换码|序号|编号) ?#?)?"
    r"[(\[【]?(?P<digits>\d{1,5})"
    r"(?P<mark> ?[张个条组份]?[.、)\]】:\t]{1,3}| ?[张个条组份](?= )| [-\u2013—](?= )|(?= )))\s{0,8}(?=\S)",
    re.IGNORECASE,
)
_UNITS: Final = ("", *"一二三四五六七八九")
_IN_WORDS: Final = {
    f"{ten}{unit}": 10 * tens + units
    for tens, ten in enumerate(("", "十", "二十", "三十"))
    for units, unit in enumerate(_UNITS)
    if ten or unit
}
_COUNTED: Final = re.compile(r"([一二三四五六七八九十]{1,3})([、.)）])\s{0,8}(?=\S)")
_FULL_STOPS: Final = "，；。、｜："
_MAYBE: Final = re.compile(r"[:：=→]|->|[\u3040-\u9fff\uac00-\ud7af]")


def plain_width(text: str) -> str:
    """The text with full-width letters, digits and marks as ASCII, character for character: positions stay."""
    return text if text.isascii() else text.translate(_SAME_LENGTH)


def is_index(text: str) -> bool:
    """Whether a line only counts the cards: ``1.``, ``①``, ``第2张：``, ``Card 2``."""
    plain = plain_width(text)
    return len(text) <= MAX_NAME and (_ONLY_INDEX.fullmatch(plain) or _HEADING.fullmatch(plain)) is not None


def numbering(text: str) -> tuple[int, int]:
    """(the number with which a line of a numbered list begins, characters to skip); (-1, 0) if there is none."""
    if (counted := _COUNTED.match(text)) and counted.end() < len(text) and counted[1] in _IN_WORDS:
        return _IN_WORDS[counted[1]], counted.end()
    match = _NUMBERED.match(plain_width(text[:32]))
    if match is None or match.end() >= len(text):
        return -1, 0
    if match["circled"]:
        return int(unicodedata.numeric(match["circled"])), match.end()
    return int(match["digits"]), match.end()


def number_mark(text: str, size: int) -> str:
    """The mark behind a number that ``numbering`` found: one for all lines of a list."""
    if counted := _COUNTED.match(text):
        return f"{counted[2]} in words"
    match = _NUMBERED.match(plain_width(text[:size] + "x"))
    if match is None:
        return ""
    if match["circled"]:
        return "①"
    return strip(match["word"] or "").lower() + ((match["mark"].strip(" ") or " ")[0])


_WHOLE: Final = frozenset({"number", "serial", "account", "code", "link"})
AMOUNT: Final = re.compile(
    r"【[^【】]{1,40}】|\[[^\[\]]{1,40}\]|\d{1,4} ?(?:元|块|点|币|天|个月|月|年|张|USD|CNY|RMB|\$)|"
    r"\b(?:steam|xbox|psn|playstation|nintendo|eshop|itunes|apple|google play|amazon|razer|gold|wallet|gift card"
    r"|netflix|spotify|windows|office|microsoft|battle\.?net|ubisoft|roblox|qb?)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_NO_TITLE: Final = re.compile(
    r"@|--|[:=]|[A-Za-z0-9]{3}|(?<![\u3400-\u9fff])[A-Za-z0-9]|[A-Za-z0-9](?![\u3400-\u9fff])"
)


def _is_title(head: str) -> bool:
    """Whether what stands before the labels of a whole card is a title (``【中国移动】``, ``京东E卡``)."""
    return len(head) <= MAX_NAME and _NO_TITLE.search(AMOUNT.sub("", without_index(head))) is None


def without_index(text: str) -> str:
    """The line without the number of a list at its beginning."""
    match = _INDEX.match(text)
    return text[match.end() :] if match else text


def labels_in(text: str) -> tuple[str, list[Item]]:
    """(what stands before the first label, the labelled values in order) of one line.

    A value reaches to the next label or to the end. Links are passed over: ``?code=…`` in one is not a label; but a
    link at the beginning is the value of a label that is not written. An index (``1.``) is nothing.
    """
    if not _MAYBE.search(text):
        return text, []
    searched = mask_links(text)
    searched = searched if searched.isascii() else searched.translate(_SEARCHED)
    matches = [match for match in _LABEL.finditer(searched) if _is_label(match)]
    if not matches:
        return text, []
    head = text[: matches[0].start()]
    items = []
    roles = {ROLES[normal(match["cjk"] or match["latin"])] for match in matches}
    if _INDEX.fullmatch(plain_width(head)) or (roles & _WHOLE and _is_title(head)):
        head = ""
    elif (
        roles == {"access"}
        and (last := LINK.search(head))
        and not LINK.sub("", strip(head).rstrip(_FULL_STOPS)).count("--")
    ):
        head, items = (
            "",
            [
                Item("link", last[0].rstrip(",;(")),
                *([] if LINK.search(head, last.end()) is None else [Item("link", "")]),
            ],
        )
    elif is_link(link := strip(strip(head).rstrip(_FULL_STOPS + ",;(（【[|"))):
        head, items = "", [Item("link", link)]
    for match, after in zip(matches, [*matches[1:], None], strict=True):
        name = normal(match["cjk"] or match["latin"])
        role = ROLES[name]
        if after and _says_twice(text[match.start() : after.start()], match, after):
            continue
        value = strip(strip(text[match.end() : after.start() if after else None]).rstrip(_FULL_STOPS))
        if match["open"] and not match["close"]:
            value = value.rstrip(")）]】}")
        if (
            not after
            and matches[0]["open"]
            and not matches[0]["close"]
            and value[-1:] in set(")]】}") - set(value[:-1])
        ):
            value = strip(value[:-1])  # the bracket around the whole card
        if after and value.endswith(("--", "—")):
            value = strip(value.rstrip("-—"))
        items.append(Item(f"{NOTE}:{name}" if role == NOTE else role, value))
    return head, items


_ALIKE: Final = (frozenset({"pin", "password"}), frozenset({"email"}), frozenset({"code"}), frozenset({"number"}))


def _says_twice(between: str, match: re.Match[str], after: re.Match[str]) -> bool:
    """Whether a label is but the same name in another language, in front of it: ``卡号 Card No：``."""
    roles = {ROLES[normal(found["cjk"] or found["latin"])] for found in (match, after)}
    bare = match[0][-1:] not in ":=" and not between[len(match[0]) :].strip(" /(")
    return bare and after["latin"] is not None and any(roles <= alike for alike in _ALIKE)


def _is_label(match: re.Match[str]) -> bool:
    """Without a colon, a name is only a label of a part or an expiry."""
    role = ROLES.get(normal(match["cjk"] or match["latin"]), "")
    return role != "" and (role != NOTE or match[0][-1:] in ":=")


def find_labels(text: str) -> list[Item] | None:
    """The labelled values of a line in order: none if it has no label, None if text stands before the first."""
    head, items = labels_in(text)
    return None if items and head else items


def cut_notes(text: str) -> tuple[str, list[Item]]:
    """(the key, its labelled expiry and notes) of a line such as ``CODE 有效期：2027-12-31``; (the text, []) if the
    line does not end so.
    """
    for aside in (_REGION, _PRICED):
        found = aside.search(plain_width(text))
        text = text[: found.start()] if found and found.start() and not denies(found[0]) else text
    head, items = labels_in(text)
    if not items and (match := _ASIDE.search(text)) and _is_title(match[1]) and not hides_a_key(match[1]):
        return strip(text[: match.start()]), [Item(f"{NOTE}:{normal('备注')}", match[1])]
    if not items or not head or any(item.role != EXPIRES and not item.role.startswith(NOTE) for item in items):
        return text, []
    bare = strip(head).rstrip(_TAIL)
    return (bare.rstrip("- ") if bare.endswith("--") else bare), items


_MAY_BE_CODE: Final = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z]*\d)(?!20\d\d(?![A-Za-z0-9]))[A-Za-z0-9]{4,}")
_UNTIL: Final = re.compile(
    r"[\s,;|(（\[，；-]{1,4}(?:(?:exp(?:\.|iry|ires?|iration)?(?: date| on| at)?"
    r"|valid (?:until|till|to|thru|through)|(?:use|redeem|activate|best) (?:by|before)|until|till)[\s:.]{1,3}"
    rf"(?P<date>{WRITTEN})"
    r"|(?:有效期|有效日期|截止|到期|请|须|务必|限)?(?:至|到|为|于|在)?\s?"
    rf"(?P<day>{WRITTEN})\s?(?:之?前(?:有效|使用|兑换|激活|充值)|到期|过期|截止|失效))[)）\]]?$",
    re.IGNORECASE,
)


def expiry_said(text: str) -> str:
    """The expiry that a note gives in words: the text of its date, "?" if that is not certain, "" if it says none."""
    return expiry_in(text) if EXPIRY_WORDS.search(text) else ""


def cut_expiry(text: str) -> tuple[str, str]:
    """(the key, the text of its expiry) of a line such as ``CODE exp 2027-12-31``; (the text, "") if it is none."""
    match = _UNTIL.search(plain_width(text))
    if not match or not has_code(text[: match.start()]) or (text.isascii() and is_prose(text)):
        return text, ""
    return text[: match.start()], match["date"] or match["day"]


def has_code(text: str) -> bool:
    """Whether a line has what may be a part of a key: letters and digits in one run."""
    return _MAY_BE_CODE.search(DATED.sub(" ", text)) is not None


_REGION: Final = re.compile(r"\s{0,3}\((?:[A-Z]{2,3}|[Gg]lobal|GLOBAL|Asia|Europe)(?: only| region| key| version)?\)$")
_PRICED: Final = re.compile(
    r"(?:\s{1,3}(?:面值|面额|成本|价格|售价|单价|金额)\s?[¥￥$]?\d{1,6}(?:\.\d{1,2})?\s?(?:元|块)?){1,3}$"
)
_ASIDE: Final = re.compile(r"(?<=\S)\s{0,4}[(（【]([^()（）【】]{1,40})[)）】]$")
_BULLET: Final = re.compile(r"[-*•·●>]\s{1,8}(?=\S)")


def without_bullet(text: str) -> str:
    """The line without the bullet of a list."""
    match = _BULLET.match(text)
    return text[match.end() :] if match else text


_ABSENT: Final = frozenset(
    {"无", "没有", "无需", "不需要", "未绑定", "未开启", "未设置", "-", "--", "none", "n/a", "not required"}
)


def is_absent(text: str) -> bool:
    """Whether a value says that there is no such part."""
    return strip(text).casefold() in _ABSENT


_LEGEND: Final = re.compile(r"(?:[\u4e00-\u9fff]{0,4}格式(?:为|是)?|format)\s{0,3}[:：]\s{0,3}(?=\S)", re.IGNORECASE)


def without_legend(text: str) -> str:
    """The names of the parts in a line that says how the others are laid out: ``格式：账号----密码``."""
    match = _LEGEND.match(text)
    return text[match.end() :] if match else text


_TAIL: Final = " \t,;|/，；、。｜—\xa0\u3000"


_HIDES: Final = re.compile(
    r"pin|pwd|pass|code|key|secret|card|serial|cvv|token|kami|卡|密|码|号|链接|link|url", re.IGNORECASE
)


def hides_a_key(name: str) -> bool:
    """Whether a name that is not known may stand for a part of a key, so that nothing is dropped as a note."""
    return normal(name) not in ROLES and _HIDES.search(name) is not None


_UNKNOWN: Final = re.compile(r"([^:：=]{1,16})[:：=]\s{0,8}[!-~]{3,}")
_SERVICE: Final = re.compile("客服|售后|联系|店|官|QQ|微信|群|网址|电话|手机|订单|流水|单号|面值|服务", re.IGNORECASE)


def names_a_part(text: str) -> bool:
    """Whether a line has a name that is not known, with a value, that may be one more part of the card before it."""
    match = _UNKNOWN.fullmatch(text)
    return match is not None and hides_a_key(match[1]) and not _SERVICE.search(match[1])


_OF_ALL: Final = re.compile(
    r"以[上下]|全部|所有|[两三四五六七八九十]张|均为?|都|相同|统一|\b(?:all|both|each|every)\b", re.IGNORECASE
)
_COMMON: Final = re.compile(
    r"[^:：=]{0,24}(?:密码|口令|提取码|passwords?|passcodes?|pwd|pins?)\s?"
    r"(?:都|均|全部|统一|相同|一样|for [a-z ]{3,20})?(?:是|为| is| are)?\s?[:：=]\s{0,8}[!-~]{3,}",
    re.IGNORECASE,
)


def is_of_all(text: str) -> bool:
    """Whether a text speaks of all cards of a payload."""
    return _OF_ALL.search(text) is not None


def gives_all_a_part(text: str) -> bool:
    """Whether a line gives all cards one password, without which none of them is whole: ``密码均为：123456``."""
    return _COMMON.fullmatch(text) is not None and is_of_all(text)


_STATES: Final = frozenset({
    "status", "cardstatus", "codestatus", "keystatus", "voucherstatus", "redeemstatus", "state", "cardstate", "状态",
    "卡状态", "使用状态", "有效状态", "备注", "说明", "note", "notes", "remark", "remarks",
})  # fmt: skip
_FLAGS: Final = frozenset(
    f"{lead}{flag}"
    for flag in (
        "used", "sold", "redeemed", "expired", "revoked", "void", "blocked", "disabled", "deleted", "refunded",
        "consumed", "claimed", "locked", "invalid",
    )
    for lead in ("", "is", "was", "already")
) | {"是否使用", "已使用", "是否已使用", "是否已用", "已售", "是否售出", "是否过期", "是否失效"}  # fmt: skip
_GOOD: Final = frozenset(
    f"{lead}{flag}" for flag in ("valid", "active", "enabled", "available", "usable", "unused") for lead in ("", "is")
) | {"有效", "是否有效", "可用", "是否可用"}
_BY_WHOM: Final = re.compile(
    "(?:used|redeem|redeemed|consumed|claimed|redemption)(?:at|on|by|time|date)|使用时间|使用人|使用者|核销时间|兑换时间|兑换人"
)
_YES: Final = frozenset({"1", "true", "yes", "y", "t", "是", "已"})
_NO: Final = frozenset({"0", "false", "no", "n", "f", "否", "未"})
_NOTHING: Final = frozenset(
    {"", "-", "--", "null", "none", "n/a", "na", "nil", "无", "未使用", "unused", "never", *_NO}
)
_SPENT: Final = re.compile(
    r"已使用|已用|已失效|失效|作废|已过期|过期|已售|已兑换|无效|冻结|锁定"
    r"|(?<!un)(?<!not )\b(?:inactive|disabled|deactivated|suspended|locked)\b"
    r"|(?<!un)(?<!not )\b(?:used|redeemed|expired|invalid|void|revoked|blocked|cancell?ed|refunded|sold)\b",
    re.IGNORECASE,
)


def is_flag(name: str) -> bool:
    """Whether a name asks whether the card is still good, so that its value is a yes or no."""
    return name in _FLAGS or name in _GOOD


def says_spent(name: str, value: object) -> bool:
    """Whether what stands under a name says that the card is no good any more: ``used: true``, ``valid: false``,
    ``状态：已使用``, a day under ``redeemed_at``.
    """
    said = "true" if value is True else "false" if value is False else value
    if not isinstance(said, str):
        return False
    said = strip(said)
    word = said.casefold()
    if name in _FLAGS:
        return word in _YES or _SPENT.search(said) is not None
    if name in _GOOD:
        return word in _NO or _SPENT.search(said) is not None
    if _BY_WHOM.fullmatch(name):
        return word not in _NOTHING
    return name in _STATES and _SPENT.search(said) is not None
