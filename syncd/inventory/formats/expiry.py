"""Expiry dates as suppliers write them. Used by the reader for columns and labels that hold one."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

from syncd.model import NEVER

if TYPE_CHECKING:
    from datetime import tzinfo

_NEVER_WORDS: Final = frozenset(
    {
        "",
        "-",
        "0000-00-00",
        "0000-00-00 00:00:00",
        "永久",
        "永久有效",
        "长期",
        "长期有效",
        "无",
        "无期限",
        "不限",
        "never",
        "none",
        "permanent",
        "lifetime",
        "unlimited",
    }
)
_AFTER_USE: Final = re.compile(
    r"(?:自|从)?(?:激活|使用|兑换|充值|开通|登录|绑定)(?:之日)?(?:起|后|之后|开始) ?"
    r"\d{1,4} ?(?:天|日|个月|月|年)(?:内)?(?:有效)?"
    r"|\d{1,4} (?:days?|months?|years?) (?:after|from) (?:activation|redemption|first use)",
    re.IGNORECASE,
)
"""A time that begins when the customer uses the key: until then it does not expire."""
_DATE: Final = re.compile(
    r"(?P<y>\d{4})(?:(?P<sep>[-/.])(?P<m>\d{1,2})(?P=sep)(?P<d>\d{1,2})|年 ?(?P<cm>\d{1,2}) ?月 ?(?P<cd>\d{1,2}) ?日?)"
    r"(?:(?:T| {1,3})?(?P<H>\d{1,2})[:时点](?P<M>\d{1,2})(?:[:分](?P<S>\d{1,2})(?:\.\d{1,9})?秒?|分)?"
    r" ?(?P<zone>Z|[+-]\d\d:?\d\d)?)?"
)
DATED: Final = re.compile(
    r"(?<![\d./-])(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{4}年 ?\d{1,2} ?月 ?\d{1,2} ?日?)(?![\d/-])"
    r"(?:(?:T| {1,3})?\d{1,2}:\d\d(?::\d\d)?)?"
)
"""A date with a four-digit year, with or without a time, in the midst of a text."""
_UNSURE: Final = re.compile(
    r"(?<![\d./-])\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}(?![\d/-])|(?<!\d)\d{8}(?!\d)|\d{1,2}月\d{1,2}"
    r"|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]{0,6}\.? \d",
    re.IGNORECASE,
)
_MONTH_NAME: Final = "(?:jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]{0,6}"
_WRITTEN: Final = (
    r"\d{4}(?:-\d{1,2}-|/\d{1,2}/|\.\d{1,2}\.)\d{1,2}|\d{4}年 ?\d{1,2} ?月(?: ?\d{1,2} ?日?)?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d\d)"
    r"|(?:0?[1-9]|1[0-2])/(?:20\d\d|2[4-9]|[3-9]\d)|20\d\d[-/.](?:0[1-9]|1[0-2])"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?[ -]{_MONTH_NAME}\.?,?[ -]\d{{2,4}}"
    rf"|{_MONTH_NAME}\.?[ -]\d{{1,2}}(?:st|nd|rd|th)?,?[ -]\d{{4}}|{_MONTH_NAME}\.?[ -]\d{{4}}"
)
WRITTEN: Final = rf"(?:{_WRITTEN})(?:(?:T| {{1,3}})?\d{{1,2}}:\d\d(?::\d\d)?)?"
"""A pattern of dates as people write them, those that are not certain (``12/27``) too."""
_ANY: Final = re.compile(
    rf"(?<![A-Za-z\d./-])(?:{WRITTEN})(?![\d/-])|(?<!\d)20\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{{6}})?(?!\d)"
    r"|\d{1,2}月 ?\d{1,2}[日号]",
    re.IGNORECASE,
)
_ALONE: Final = re.compile(WRITTEN, re.IGNORECASE)
_VAGUE: Final = re.compile(
    r"20\d\d ?年? ?(?:底|末|内|前|之前|到期|过期|失效)|年底|年末|月底|月末|明年|次年|下个?月|本月"
    r"|[〇零一二三四五六七八九十]{4} ?年"
    r"|\b(?:until|till|expir\w*|valid|before|by|of) (?:the )?(?:end of )?20\d\d"
    r"|end of (?:the |this |next )?(?:year|month)|next year",
    re.IGNORECASE,
)
"""A time that people say, and that no date is."""
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAMED: Final = re.compile(
    r"(?:(?P<day>\d{1,2})(?:st|nd|rd|th)?[ -](?P<month>[a-z]{3,9})\.?,?[ -](?P<year>\d{4})"
    r"|(?P<month2>[a-z]{3,9})\.? (?P<day2>\d{1,2})(?:st|nd|rd|th)?,? (?P<year2>\d{4}))"
)
_MONTH: Final = re.compile(
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_RANGE: Final = re.compile(r"\s*(?:至|到|~|[\u2013\u2014]| - | to )\s*")
_DOTTED: Final = re.compile(r"\d{4}[./]\d{1,2}[./]\d{1,2} ?- ?(\d{4}[./]\d{1,2}[./]\d{1,2})")
_DAY_FIRST: Final = re.compile(r"(1[3-9]|2\d|3[01])([-/.])(\d{1,2})\2(\d{4})")
_MONTH_FIRST: Final = re.compile(r"(0?[1-9]|1[0-2])([-/])(1[3-9]|2\d|3[01])\2(\d{4})")
_UNIX: Final = re.compile(r"[1-4]\d{9}(?:\d{3})?")
_DIGITS: Final = re.compile(r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)(?:(?P<H>\d\d)(?P<M>\d\d)(?P<S>\d\d))?")
_AROUND: Final = re.compile(r"^(?:截止|至|到|until|till)\s*|\s*(?:之前|以前|前|止|到期)$", re.IGNORECASE)
_REMARK: Final = re.compile(
    r"(?<=[\d日])\s?[,;.。(](?!.*(?:激活|起|准|延|改|或|从|after|from|or\b))[^\d]{2,40}$"
)  # behind a date, without one of its own
_LONGEST: Final = 64
_YEARS: Final = range(1970, 10000)


def parse_expiry(text: str, zone: tzinfo) -> int | None:
    """Unix seconds of an expiry, NEVER for "no expiry", None if it cannot be read with certainty.

    A date without a time means the last second of that day in ``zone``; a time without an offset is in ``zone``.
    Day-first (``31.12.2027``) and month-first (``12/31/2027``) are read only where a number above 12 tells the day;
    two-digit years are not certain, and so not read.
    """
    if len(text) > _LONGEST:
        return None
    folded = unicodedata.normalize("NFKC", text).strip()
    if folded.casefold() in _NEVER_WORDS or _AFTER_USE.fullmatch(folded):
        return NEVER
    folded = _AROUND.sub("", _REMARK.sub("", folded))
    if dotted := _DOTTED.fullmatch(folded):
        folded = dotted[1]
    if len(ends := _RANGE.split(folded)) == 2 and looks_like_date(ends[0]):  # noqa: PLR2004 -- from … to …
        folded = ends[1]
    if _UNIX.fullmatch(folded):
        return _unix(folded)
    if day_first := _DAY_FIRST.fullmatch(folded):  # no month has this number
        folded = f"{day_first[4]}-{day_first[3]}-{day_first[1]}"
    if month_first := _MONTH_FIRST.fullmatch(folded):  # nor this
        folded = f"{month_first[4]}-{month_first[1]}-{month_first[3]}"
    match = _DATE.fullmatch(folded) or _DIGITS.fullmatch(folded) or _DATE.fullmatch(_spelled_out(folded))
    if match is None:
        return None
    part = match.groupdict()
    year, month, day = int(part["y"]), int(part["m"] or part["cm"]), int(part["d"] or part["cd"])
    if year not in _YEARS:
        return None
    clock = (23, 59, 59) if part["H"] is None else (int(part["H"]), int(part["M"]), int(part["S"] or 0))
    try:
        moment = datetime(year, month, day, *clock, tzinfo=_offset(part.get("zone")) or zone)
        return min(int(moment.timestamp()), NEVER)
    except (ValueError, OverflowError):
        return None


def expiry_in(text: str) -> str:
    """The expiry that a line of prose gives for the cards around it: the text of its date, "?" if that is not certain,
    "" if there is none. Asked of lines that have a word for it.
    """
    text = unicodedata.normalize("NFKC", text)
    dates = list(DATED.finditer(text))
    if len(dates) == 2 and _RANGE.fullmatch(text[dates[0].end() : dates[1].start()]):  # noqa: PLR2004 -- from … to …
        dates = dates[1:]
    if len(dates) == 1:
        return dates[0][0]
    written = list(_ANY.finditer(text))
    if len(written) == 1 and not written[0][0].isdigit():
        return written[0][0]
    return "?" if dates or _UNSURE.search(text) or _VAGUE.search(text) else ""


def _unix(digits: str) -> int | None:
    """Unix seconds or milliseconds, unless the digits could be a date and an hour as well."""
    if len(digits) == 10 and 1 <= int(digits[4:6]) <= 12 and 1 <= int(digits[6:8]) <= 31 and digits[0] != "1":  # noqa: PLR2004
        return None
    return int(digits[:10])


def _spelled_out(text: str) -> str:
    """A date with its month's English name as year-month-day; "" if it is none."""
    match = _NAMED.fullmatch(text.lower())
    if match is None:
        return ""
    month = match["month"] or match["month2"]
    if not _MONTH.fullmatch(month):
        return ""
    number = _MONTHS.index(month[:3]) + 1
    return f"{match['year'] or match['year2']}-{number}-{match['day'] or match['day2']}"


def looks_like_date(text: str) -> bool:
    """Whether the text is written as a date (with separators): a sign that a part is not a key."""
    return _DATE.fullmatch(text) is not None or _ALONE.fullmatch(text) is not None


def may_be_date(text: str) -> bool:
    """Whether the text may be a date, however it is written: what is dropped as a note is none."""
    return _ANY.search(unicodedata.normalize("NFKC", text)) is not None


def _offset(text: str | None) -> tzinfo | None:
    if not text:
        return None
    if text == "Z":
        return timezone.utc  # noqa: UP017 -- `timezone` is imported for offsets anyway
    sign = -1 if text[0] == "-" else 1
    digits = text[1:].replace(":", "")
    return timezone(sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:])))
