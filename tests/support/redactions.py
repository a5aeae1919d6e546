"""What is taken out before anything is shown, and what stays: for the rule in Python and for that of the database."""

from __future__ import annotations

from typing import Any

HIDES = (
    "password", "PASSWORD", "db_password", "password_hash", "passwd", "passphrase", "passcode", "pwd", "smtp-pwd",
    "dbpass", "secret", "client-secret", "token", "X-Auth-Token", "jwt", "id_jwt", "bearer", "auth-bearer",
    "Authorization", "proxy-authorization", "credentials", "Set-Cookie", "api_key", "api-key", "X-Api-Key", "apiKey",
    "private-key", "private_key", "privatekey", "access_key", "access-key", "AccessKeyId", "signing key", "audit_keys",
)  # fmt: skip
KEEPS = (
    "passport", "passed", "passenger", "passive", "bearer_count", "bearers", "key", "key_id", "primary_key",
    "concurrency_key", "keyboard", "access", "access_count", "api", "api_version", "private", "audit", "author",
    "workflow", "comment", "cwd", "",
)  # fmt: skip

# What is written, and what of it is shown.
CASES: tuple[tuple[Any, Any], ...] = (
    *(({name: "x", "n": [1]}, {name: "***", "n": [1]}) for name in HIDES),
    *(({name: "x"}, {name: "x"}) for name in KEEPS),
    ("redis://:pw@h:1/0 and postgresql://u:pw@h/db", "redis://:***@h:1/0 and postgresql://u:***@h/db"),
    ("redis://:p@ss/word@h:1/0", "redis://:***@h:1/0"),
    ("as ann:\npostgres://u:pw@h\tand\nhttps://h:80/a b@c", "as ann:\npostgres://u:***@h\tand\nhttps://h:80/a b@c"),
    ("zażółć postgres://żółw:gęś@h/ł", "zażółć postgres://żółw:***@h/ł"),
    ("://u:" + "p" * 500 + "@h", "://u:***@h"),
    ("://" + "u" * 200 + ":p@h", "://" + "u" * 200 + ":***@h"),
    ("https://h/x?token=abc&n=1", "https://h/x?token=***&n=1"),
    ("https://h/x?n=1&access_token=abc;api-key=d", "https://h/x?n=1&access_token=***;api-key=***"),
    ("host=h user=u password=hunter2 dbname=d", "host=h user=u password=*** dbname=d"),
    ("password='hun ter2' host=h", "password=*** host=h"),
    ("Server=h;Uid=u;Pwd=hunter2;", "Server=h;Uid=u;Pwd=***;"),
    ("it's token='abc and so on", "it's token=***"),
    ("passport=1 tokens=7 a=b password = is what it says", "passport=1 tokens=7 a=b password = is what it says"),
    ("no secret, no token: ann@example.com at 10:30", "no secret, no token: ann@example.com at 10:30"),
    ([{"deep": [{"api_key": "z"}, "a://b:c@d"]}], [{"deep": [{"api_key": "***"}, "a://b:***@d"]}]),
    ({"password": {"any": ["thing"]}, "pin": {"a": 1}}, {"password": "***", "pin": {"a": 1}}),
    ({"Authorization": "Bearer x", "token_count": None}, {"Authorization": "***", "token_count": None}),
    ({"a": {}, "b": [], "c": "", "d": 1.5, "e": True}, {"a": {}, "b": [], "c": "", "d": 1.5, "e": True}),
    (7, 7),
    (None, None),
)  # fmt: skip
