"""Accounts: sources of names and passwords, and protection against password guessing."""

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
#: Wrong passwords per address without a delay, and the longest delay in seconds after further ones.
FREE_TRIES, LONGEST_WAIT = 5, 60.0
#: Addresses with wrong passwords that are remembered.
_ADDRESSES = 1000


def read_accounts(entries: Sequence[str] = (), file: Path | None = None) -> list[tuple[str, str]]:
    """Return the (name, password) pairs of the command line, the environment variable and a file together.

    Args:
        entries: USER:PASSWORD entries of the command line.
        file: file with one USER:PASSWORD per line; empty lines and lines that begin with # are skipped.

    Raises:
        SettingsError: the file cannot be read or contains no account, or a name or password is empty.
    """
    lines = [(line, "--auth") for line in entries]
    lines += [(line, ENVIRONMENT) for line in os.environ.get(ENVIRONMENT, "").splitlines() if line.strip()]
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"The file of passwords '{file}' cannot be read ({error}).") from None
        file_lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not file_lines:
            raise SettingsError(f"The file of passwords '{file}' names nobody; write USER:PASSWORD a line.")
        lines += [(line, f"A line of '{file}'") for line in file_lines]
    pairs = []
    for line, source in lines:
        name, _, password = line.partition(":")
        if not name or not password:
            raise SettingsError(f"{source} is written USER:PASSWORD, neither of them empty.")
        pairs.append((name, password))
    return pairs


class Accounts:
    """Accounts of users, with a lockout after wrong passwords.

    Keyed hashes are compared in constant time, so that the timing reveals neither the length of a password
    nor which names exist. An address that has sent several wrong passwords must wait before the next attempt;
    attempts during the wait are refused unchecked.

    Args:
        pairs: (name, password) of each account.
        clock: function that returns the time in seconds.
    """

    def __init__(
        self, pairs: Sequence[tuple[str, str]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = secrets.token_bytes(32)
        self._digests = [self._hash(f"{name}:{password}".encode()) for name, password in pairs]
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # count, end of the wait

    def must_wait(self, address: str) -> float:
        """Return the seconds until an address may try again; 0 if it may try now."""
        _, until = self._wrong.get(address, (0, 0.0))
        return max(0.0, until - self._clock())

    def authenticate(self, authorization: str, address: str) -> str | None:
        """Return the name in an Authorization header; None if name and password are wrong or missing.

        A wrong password counts against the address.
        """
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "basic":
            return None  # no password was sent, so this is not an attempt
        try:
            credentials = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            credentials = b""
        digest = self._hash(credentials)
        # Compare with all accounts: an early exit would reveal which one matched.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if any(matches):
            self._wrong.pop(address, None)
            return credentials.decode().partition(":")[0]
        count = self._wrong.pop(address, (0, 0.0))[0] + 1
        excess = count - FREE_TRIES
        wait = min(LONGEST_WAIT, 2.0 ** min(excess, 10)) if excess > 0 else 0.0
        self._wrong[address] = count, self._clock() + wait
        while len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)
        return None

    def _hash(self, credentials: bytes) -> bytes:
        return hmac.new(self._key, credentials, hashlib.sha256).digest()
