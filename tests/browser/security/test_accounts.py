"""Accounts: sources of names and passwords, and delays after wrong passwords."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from medsam_app.browser.security.accounts import (
    ENVIRONMENT,
    FREE_TRIES,
    LONGEST_WAIT,
    Accounts,
    read_accounts,
)
from medsam_app.errors import SettingsError


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_accounts_of_all_sources_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passwords"
    file.write_text("# who\n\nann:a:b\nbö:pä ss\n", encoding="utf-8")
    monkeypatch.setenv(ENVIRONMENT, "eve:1\n\nmax:2")
    assert read_accounts(["joe:x"], file) == [
        ("joe", "x"), ("eve", "1"), ("max", "2"), ("ann", "a:b"), ("bö", "pä ss")
    ]  # fmt: skip
    monkeypatch.delenv(ENVIRONMENT)
    assert read_accounts() == []


@pytest.mark.parametrize("text", ["", "# nobody\n", "ann", "ann:", ":secret", "\udcff"])
def test_a_file_without_accounts_is_refused(tmp_path: Path, text: str) -> None:
    """An empty file must not disable the login."""
    file = tmp_path / "passwords"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError, match="passwords"):
        read_accounts([], file)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_accounts([], tmp_path / "nowhere")


def test_guessing_delays_only_the_address_that_guesses() -> None:
    now = [0.0]
    accounts = Accounts([("ann", "secret"), ("bob", "other")], clock=lambda: now[0])
    assert accounts.authenticate(basic("ann:secret"), "1.1.1.1") == "ann" and accounts.authenticate(
        basic("bob:other"), "1.1.1.1"
    )
    for wrong in ("ann:other", "ann:", "ann:secret2", "secret", "bob:secret")[:FREE_TRIES]:
        assert not accounts.authenticate(basic(wrong), "6.6.6.6")
    assert accounts.must_wait("6.6.6.6") == 0
    waits = []
    for _ in range(9):
        assert not accounts.authenticate(basic("ann:wrong"), "6.6.6.6")
        waits.append(accounts.must_wait("6.6.6.6"))
        now[0] += waits[-1]
    assert waits[:4] == [2, 4, 8, 16] and waits[-1] == LONGEST_WAIT
    assert accounts.must_wait("1.1.1.1") == 0
    assert accounts.authenticate(basic("ann:secret"), "6.6.6.6") and accounts.must_wait("6.6.6.6") == 0
    # A request without password is no attempt, and the number of remembered addresses is bounded.
    for _ in range(99):
        assert not accounts.authenticate("", "7.7.7.7")
    assert accounts.must_wait("7.7.7.7") == 0
    for n in range(3000):
        accounts.authenticate(basic("x:y"), str(n))
    assert len(accounts._wrong) <= 1000
