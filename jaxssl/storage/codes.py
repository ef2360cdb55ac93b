"""What an HTTP code of a store means for who asks it."""

from http.client import responses

from jaxssl.storage.objects import Missing, Refused
from jaxssl.storage.patience import Passing

AGAIN = frozenset({408, 429, *range(500, 600)})


def meaning(code: int, reason: str) -> Exception:
    """Return the exception of `objects.Server` that an answer stands for; `reason` says what the store told of it."""
    if code in AGAIN:
        return Passing(f"{code} {responses.get(code, '')}".strip())
    if code == 404:
        return Missing("no such bucket or object; correct the URL")
    if code == 412:
        return Refused("was written anew while it was read; start again")
    if code == 416:
        return Refused("ends before what is read of it; it was written anew, start again")
    if code in (401, 403):
        return Refused(f"access refused ({reason}); give the account rights to list, read and write objects there")
    return Refused(f"not accepted ({reason})")
