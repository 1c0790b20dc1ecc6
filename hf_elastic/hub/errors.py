"""What goes wrong between here and the Hugging Face Hub, in one clear line; and patience where the Hub asks for it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..core.errors import UserError

Result = TypeVar("Result")

# The client speaks through requests (0.x) or httpx (1.x and later): what its own error is made of is what that library raises.
# The requests' errors of a broken connection are OSErrors; uploads in threads wrap theirs in a RuntimeError.
CLIENT_ERRORS = (*HfHubHTTPError.__bases__, OSError, RuntimeError, json.JSONDecodeError)
# Too many requests, and servers that have a bad moment.
TRANSIENT = (429, 500, 502, 503, 504)
# Patience with one call, beyond what the client has by itself (seconds).
LONGEST_WAIT = 120.0

MEANINGS = {
    401: "the Hub does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN to a valid one",
    403: "the token may not write to {where} (403): use one that has write access to it",
    404: "the Hub has no {where}, or the token may not see it (404)",
    409: "{where} is being changed at the same time (409): run the same command again",
    412: "{where} was changed since it was compared (412): run the same command again",
    413: "the Hub finds the upload to {where} too large (413)",
}
AGAIN = "run the same command again; what has arrived is not sent again"


class HubError(UserError, OSError):
    """The Hub refuses, fails or cannot be reached; the message is one line and never holds the token."""


@contextmanager
def explained(where: str, token: str | None) -> Iterator[None]:
    """Turn what the client raises into a `HubError`.

    Args:
        where: what is read or written, such as "user/model".
        token: kept out of every message, whatever the server says.

    Raises:
        HubError: instead of any error of the client, of HTTP or of the network.
    """
    try:
        yield
    except HubError:
        raise
    except CLIENT_ERRORS as error:
        if isinstance(error, OSError) and error.filename is not None:  # of a local file
            raise
        raise HubError(_without(token, " ".join(meaning(error, where).split()))) from None


def patiently(call: Callable[[], Result], *, sleep: Callable[[float], None] = time.sleep) -> Result:
    """Call, and call again while the Hub has too many requests or a bad moment.

    Waits as long as the server's `Retry-After` or `RateLimit` says, else 1, 2, 4, 8, 8, ... seconds, together at most
    `LONGEST_WAIT`.

    Args:
        call: safe to repeat.
        sleep: how to wait.
    """
    waited, pause = 0.0, 1.0
    while True:
        try:
            return call()
        except CLIENT_ERRORS as error:
            if status_of(error) not in TRANSIENT:
                raise
            wanted = retry_after(error)
            wait = pause if wanted is None else wanted
            if waited + wait > LONGEST_WAIT:
                raise
        sleep(wait)
        waited, pause = waited + wait, min(2 * pause, 8.0)


def _answer_behind(error: BaseException | None) -> HfHubHTTPError | None:
    """The error that holds the server's answer: itself, or what an upload in a thread was wrapped around."""
    while error is not None and not (isinstance(error, HfHubHTTPError) and error.response is not None):
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """HTTP status of an error of the client, or of the one behind it; None without one."""
    answer = _answer_behind(error)
    return None if answer is None else answer.response.status_code


def retry_after(error: BaseException) -> float | None:
    """Seconds that the server asks to wait: `Retry-After` (seconds or a date), or the `t` of a used-up `RateLimit`."""
    answer = _answer_behind(error)
    if answer is None:
        return None
    value = (answer.response.headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
        except (TypeError, ValueError):
            return None
    limit = re.search(r"\br=0;\s*t=(\d+)", answer.response.headers.get("RateLimit") or "")
    return float(limit[1]) if limit else None


def meaning(error: BaseException, where: str) -> str:
    """What an error of the client means for the one who pushes."""
    status = status_of(error)
    if status in MEANINGS:
        return MEANINGS[status].format(where=where)
    if status == 429:
        wait = retry_after(error)
        return f"the Hub has had too many requests (429) for {where}; {f'in {wait:.0f} seconds, ' if wait else ''}{AGAIN}"
    if status is not None and status >= 500:
        return f"the Hub fails ({status}) for {where}: {AGAIN}"
    if status is not None:
        said = error.server_message if isinstance(error, HfHubHTTPError) else None
        return f"the Hub refuses {where} ({status}): {said or error}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{where} cannot be reached: HF_HUB_OFFLINE is set"
    if isinstance(error, json.JSONDecodeError):
        return f"the Hub's answer for {where} is no JSON: is HF_ENDPOINT ({constants.ENDPOINT}) a Hub? If so, {AGAIN}"
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    return f"the connection to the Hub ({constants.ENDPOINT}) failed for {where} ({type(cause).__name__}: {cause}): {AGAIN}"


def _without(token: str | None, text: str) -> str:
    """A text without the token, and without the signatures that addresses of the storage carry."""
    text = re.sub(r"\?[^\s'\")]+", "?...", text)
    return text.replace(token, "***") if token else text
