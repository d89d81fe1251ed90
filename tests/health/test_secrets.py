"""No secret is left in a text, whatever form it came in; and the search takes no longer than reading."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilient.health.secrets import masked

SECRET = "Zq7hunter2"

# All that may stand in a password that nobody has encoded, but for what ends a word.
ANYTHING = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, blacklist_categories=["Zs", "Cc"]), max_size=30
)
# What ends a setting is not in it.
PLAIN = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, blacklist_characters="&;'\"{}\\"), max_size=30
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://shop:Zq7@db:5432/x", "postgresql://shop:***@db:5432/x"),
        ("redis://:Zq7@cache/0", "redis://:***@cache/0"),
        ("postgresql://shop:Zq@7/@db/x", "postgresql://shop:***@db/x"),
        ("https://Zq7@github.com/x.git", "https://***@github.com/x.git"),
        ("postgresql://postgres@127.0.0.1/x", "postgresql://postgres@127.0.0.1/x"),
        ("shop:Zq7@tcp(db:3306)/x", "shop:***@tcp(db:3306)/x"),
        ("host=db password=Zq7 user=shop", "host=db password=*** user=shop"),
        ("host=db password='Zq 7\\' x' user=shop", "host=db password='***' user=shop"),
        ('{"password": "Zq7", "n": 1}', '{"password": "***", "n": 1}'),
        ("{'db_passwd': b'Zq7', 'n': 1}", "{'db_passwd': b'***', 'n': 1}"),
        ("Server=db;PWD={Z;q7};UID=shop", "Server=db;PWD={***};UID=shop"),
        ("Server=db;Pwd=Zq7;UID=shop", "Server=db;Pwd=***;UID=shop"),
        ("GET /x?api_key=Zq7&n=1", "GET /x?api_key=***&n=1"),
        ("GET /x?key=Zq7&n=1", "GET /x?key=***&n=1"),
        ("AWS_SECRET_ACCESS_KEY=Zq7", "AWS_SECRET_ACCESS_KEY=***"),
        ("Authorization: Bearer Zq7", "Authorization: Bearer ***"),
        ("token: Zq7", "token: ***"),
        ("got Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "got Bearer ***"),
        ("password='cut off Zq7", "password='***'"),
    ],
)
def test_secret_goes_and_the_rest_stays(text: str, expected: str) -> None:
    """The text still says what failed, where."""
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "connection to server at 127.0.0.1, port 5432 failed: Connection refused",
        'password authentication failed for user "shop"',
        "WRONGPASS invalid username-password pair or user is disabled.",
        "pass: 12, fail: 3",
        "write to ops@example.com",
        "the certificate of api.example.com:443 ends in 12 days",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Ordinary texts of drivers are not mutilated."""
    assert masked(text) == text


@given(ANYTHING)
@example("@:/")
def test_no_address_keeps_its_password(rest: str) -> None:
    """A password in an address may have anything in it, encoded or not."""
    for text in (
        f"cannot reach amqp://shop:{SECRET}{rest}@mq:5672/x now",
        f"redis://:{SECRET}{rest}@cache:6379",
        f"shop:{SECRET}{rest}@db/x",
    ):
        assert SECRET not in masked(text)
        assert masked(text).endswith(text.rpartition("@")[2])


@given(PLAIN)
def test_no_setting_keeps_its_value(rest: str) -> None:
    """A setting is one by its name, whatever stands around it."""
    for text in (
        f"host=db password={SECRET}{rest} port=1",
        f"Pwd={SECRET}{rest};UID=1",
        f"/x?n=1&access_token={SECRET}{rest}&m=1",
        f"Secret: {SECRET}{rest}",
        f'"passphrase":"{SECRET}{rest}"',
        f"'api-key': '{SECRET}{rest}'",
        f"AUTHORIZATION: Basic {SECRET}{rest}",
    ):
        assert SECRET not in masked(text), text


@given(
    st.text()
    | st.lists(
        st.sampled_from(["password", "=", "'", '"', "://", ":", "@", " ", "\\", "{", "&", ";", "a"])
    ).map("".join)
)
def test_masking_twice_is_masking_once(text: str) -> None:
    """A text that went through two hands, such as a remote service's, does not change any more."""
    once = masked(text)
    assert masked(once) == once


@pytest.mark.parametrize(
    "part",
    [
        "password='",
        "password=",
        "a:",
        "://",
        "@",
        "key=\\",
        "basic ",
        "password=&a",
        "authorization: ",
        "b'",
        "pwd={",
        "password \t",
    ],
)
def test_takes_time_in_proportion(part: str) -> None:
    """A megabyte made to be slow takes a fraction of a second; with backtracking it would take hours."""
    begun = time.monotonic()
    masked(part * (1_000_000 // len(part)) + "@")
    assert time.monotonic() - begun < 10.0
