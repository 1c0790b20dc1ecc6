"""What goes wrong between here and the Hugging Face Hub, in one clear line. The client itself calls again where that is safe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..core.errors import UserError

# The client speaks through requests (0.x) or httpx (1.x and later): what its own error is made of is what that library raises.
# The requests' errors of a broken connection are OSErrors; uploads in threads wrap theirs in a RuntimeError.
CLIENT_ERRORS = (*HfHubHTTPError.__bases__, OSError, RuntimeError, json.JSONDecodeError)
AGAIN = "run the same command again; what has arrived is not sent again"
MEANINGS = {
    401: "the Hub does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN to a valid one",
    403: "the token may not write to {where} (403): use one that has write access to it",
    404: "the Hub has no {where}, or the token may not see it (404)",
    409: "{where} is being changed at the same time (409): run the same command again",
    412: "{where} was changed since it was compared (412): run the same command again",
    429: f"the Hub has had too many requests (429) for {{where}}: wait five minutes, then {AGAIN}",
}


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
    except CLIENT_ERRORS as error:
        if isinstance(error, OSError) and error.filename is not None:  # of a local file
            raise
        # Neither the token, nor the signatures that addresses of the storage carry.
        text = re.sub(r"\?[^\s'\")]+", "?...", " ".join(meaning(error, where).split()))
        raise HubError(text.replace(token, "***") if token else text) from None


def status_of(error: BaseException | None) -> int | None:
    """HTTP status of an error, or of the one that an upload in a thread was wrapped around; None without an answer."""
    while error is not None:
        response = getattr(
            error, "response", None
        )  # of the client's errors, and of those of requests and httpx that it lets through
        if response is not None:
            return response.status_code
        error = error.__cause__
    return None


def meaning(error: BaseException, where: str) -> str:
    """What an error of the client means for the one who pushes."""
    status = status_of(error)
    if status in MEANINGS:
        return MEANINGS[status].format(where=where)
    if status is not None and status >= 500:
        return f"the Hub fails ({status}) for {where}: {AGAIN}"
    if status is not None:
        return f"the Hub refuses {where} ({status}): {(isinstance(error, HfHubHTTPError) and error.server_message) or error}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{where} cannot be reached: HF_HUB_OFFLINE is set"
    if isinstance(error, json.JSONDecodeError):
        return f"the Hub's answer for {where} is no JSON: is HF_ENDPOINT ({constants.ENDPOINT}) a Hub? If so, {AGAIN}"
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    return f"the connection to the Hub ({constants.ENDPOINT}) failed for {where} ({type(cause).__name__}: {cause}): {AGAIN}"
