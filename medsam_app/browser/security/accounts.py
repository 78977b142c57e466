"""Accounts: sources of names and passwords, and protection against guessing."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from medsam_app.errors import SettingsError

#: Environment variable with accounts, one USER:PASSWORD per line.
ENVIRONMENT = "MEDSAM_APP_AUTH"
#: Wrong passwords of an address that cost nothing, and the longest wait in seconds that follows the next.
FREE_TRIES, LONGEST_WAIT = 5, 60.0
_ADDRESSES = 1000


def read_accounts(given: Sequence[str] = (), file: Path | None = None) -> list[tuple[str, str]]:
    """(name, password) pairs of the command line, of a file, and of the environment variable, all together.

    Args:
        given: USER:PASSWORD each.
        file: one USER:PASSWORD a line; empty lines and those that begin with # are left out.

    Raises:
        SettingsError: the file cannot be read or has no accounts, or a name or password is empty.
    """
    lines = [(line, "--auth") for line in given]
    lines += [(line, ENVIRONMENT) for line in os.environ.get(ENVIRONMENT, "").splitlines() if line.strip()]
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"The file of passwords '{file}' cannot be read ({error}).") from None
        held = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not held:
            raise SettingsError(f"The file of passwords '{file}' names nobody; write USER:PASSWORD a line.")
        lines += [(line, f"A line of '{file}'") for line in held]
    pairs = []
    for line, source in lines:
        name, _, password = line.partition(":")
        if not name or not password:
            raise SettingsError(f"{source} is written USER:PASSWORD, neither of them empty.")
        pairs.append((name, password))
    return pairs


class Accounts:
    """Accounts of users, with a lockout after wrong passwords.

    Passwords are compared in constant time, and as keyed hashes, so that neither their length nor which name
    exists shows. An address that sent some wrong ones must wait; what it sends meanwhile is ignored.

    Args:
        pairs: (name, password) of each.
        clock: seconds.
    """

    def __init__(
        self, pairs: Sequence[tuple[str, str]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = secrets.token_bytes(32)
        self._known = [self._hash(f"{name}:{password}".encode()) for name, password in pairs]
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how often, and until when

    def must_wait(self, address: str) -> float:
        """Seconds until an address may try again."""
        _, until = self._wrong.get(address, (0, 0.0))
        return max(0.0, until - self._clock())

    def who(self, authorization: str, address: str) -> str | None:
        """The name in an Authorization header, None where it is wrong, which is remembered of its address."""
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "basic":
            return None  # nothing was tried
        try:
            given = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            given = b""
        digest = self._hash(given)
        same = [hmac.compare_digest(digest, known) for known in self._known]  # all of them are compared
        if any(same):
            self._wrong.pop(address, None)
            return given.decode().partition(":")[0]
        count = self._wrong.pop(address, (0, 0.0))[0] + 1
        over = count - FREE_TRIES
        wait = min(LONGEST_WAIT, 2.0 ** min(over, 10)) if over > 0 else 0.0
        self._wrong[address] = count, self._clock() + wait
        while len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)
        return None

    def _hash(self, given: bytes) -> bytes:
        return hmac.new(self._key, given, hashlib.sha256).digest()
