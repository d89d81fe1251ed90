"""What must not go into a report: passwords and tokens in addresses, settings and texts of exceptions."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["masked"]

_MASK: Final = "***"

# A value in quotes ends with them; any other with white space, or where the next setting begins. Brackets and
# commas are taken along: passwords have them, and more is better gone than less.
_VALUE: Final = r"""
    (?: (?P<single> b?' ) (?: [^'\\] | \\. )* '?
      | (?P<double> b?" ) (?: [^"\\] | \\. )* "?
      | (?P<brace> \{ ) [^}]* \}?
      | (?: [^\s&;] | [&;] (?! \s? [\w%.-]{1,40} = ) )+
    )
"""

_SETTING: Final = re.compile(
    rf"""
    (?P<name>
        (?: passw(?:or)?d | passphrase | pwd | secret | token | credentials? | signature
          | (?: api | access | private | account | shared | license )[-_]?key
        ) (?: [-_] (?: id | key | value | hash ) )?
        ["']? \s{{0,4}} (?: => | [:=] ) \s{{0,4}}
      | (?: pass | key | sig | auth ) ["']? \s{{0,4}} = \s{{0,4}}
      | authorization ["']? \s{{0,4}} [:=] \s{{0,4}}
        (?: ["']? (?: basic | bearer | digest | token ) \s{{1,4}} )?
      | \b (?: basic | bearer ) \s{{1,4}} (?= [\w+/~.-]{{12}} )
    )
    {_VALUE}
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

# What is a secret wherever it stands.
_TOKEN: Final = re.compile(
    r"""
    \b eyJ [\w-]{8,} \. [\w-]{8,} \. [\w-]*  # a JSON Web Token
    | \b (?: gh[opsru]_ | github_pat_ | glpat- | xox[abeprs]- | sk_live_ | sk_test_ ) [\w-]{10,}
    | \b (?: AKIA | ASIA ) [0-9A-Z]{16} \b
    """,
    re.VERBOSE,
)
_COOKIE: Final = re.compile(r"""(\b(?:set-)?cookie["']?\s{0,4}[:=]\s{0,4})[^\n]+""", re.IGNORECASE)

# Without any of these there is no secret that the others would find, as in most texts.
_SUSPICIOUS: Final = re.compile(
    r"[=:@]|eyJ|gh[opsru]_|github_pat_|glpat-|xox|sk_|AKIA|ASIA|(?i:basic|bearer)\s"
)

_WORD: Final = re.compile(r"\S+")
_NAMELESS: Final = ("http", "https")


def masked(text: str) -> str:
    """Replace the secrets in *text* by asterisks.

    They are known by where they stand: the password in `scheme://user:password@host` and in
    `user:password@host`, the user where a web address has no password, and what follows `password=`,
    `token:`, `key=`, `Bearer`, `Cookie:` and the like, in addresses, connection strings, JSON and text for
    people; and some by what they are: JSON Web Tokens, and those of a few well-known services. A password
    that stands alone, as among the arguments of a call, is known to nobody. Rather too much is masked than
    too little.

    Args:
        text: any text, such as that of an exception.

    Returns:
        The text without them; one that was masked before stays as it is.

    Concurrency: takes time in proportion to the length of the text, whatever is in it.
    """
    if _SUSPICIOUS.search(text) is None:
        return text
    text = _COOKIE.sub(rf"\1{_MASK}", _TOKEN.sub(_MASK, text))
    text = _SETTING.sub(_without_value, text)
    return _WORD.sub(_without_password, text) if "@" in text else text


def _without_value(match: re.Match[str]) -> str:
    opening = match["single"] or match["double"] or match["brace"] or ""
    closing = "}" if opening == "{" else opening[-1:]  # also where the text was cut off before
    return f"{match['name']}{opening}{_MASK}{closing}"


def _without_password(match: re.Match[str]) -> str:
    """Mask what stands before the last @ of a word: passwords may have one in them, and slashes, too."""
    word = match[0]
    at = word.rfind("@")
    if at < 0:
        return word
    scheme, slashes, _ = word[:at].partition("://")
    begin = len(scheme) + len(slashes) if slashes else 0
    user, colon, _ = word[begin:at].partition(":")
    if colon:
        return f"{word[:begin]}{user}:{_MASK}{word[at:]}"
    if slashes and scheme.lower().endswith(_NAMELESS):
        return f"{word[:begin]}{_MASK}{word[at:]}"
    return word
