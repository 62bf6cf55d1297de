"""Who may look: whoever has the token that the verb printed, or whom an Envoy has let in by his key.

Every answer forbids what a page of ours never does: scripts and styles of others or inside the page, frames, guesses at
types. Only a page of ours may change anything: the cookie stays on this site, the request must come from it, and it
must bring what only our forms hold.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import OptionError
from serving.envoy.keys import KEY_NAME, LONGEST_NAME

TOKEN, CSRF = "token", "csrf"
SAFE = ("GET", "HEAD")
HTTP_PORT, HTTPS_PORT = 80, 443
_NAME = re.compile(r"(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, kw_only=True)
class Door:
    """How people come in. `hosts` are the names, with ports and in small letters, that the console answers to: others
    are attempts to reach it through a foreign name. `keyed` says that an Envoy stands before it and names the reviewer.
    """

    hosts: frozenset[str]
    port: int
    reviewer: str
    keyed: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def cookie(self) -> str:
        """Cookies know hosts and no ports, and there may be two consoles on one."""
        return f"fieldmark_review_{self.port}"

    def csrf(self, reviewer: str) -> str:
        """What our forms hold and nobody else's; where keys say who somebody is, one reviewer's are not another's."""
        owner = reviewer if self.keyed else ""  # a name that one gives oneself may change while pages are open
        return hmac.new(self.secret, f"csrf {owner}".encode(), hashlib.sha256).hexdigest()

    def issued(self, csrf: str, reviewer: str) -> bool:
        """Whether a form is one of ours, made for this reviewer."""
        return _equal(csrf, self.csrf(reviewer))

    def admits(self, token: str) -> bool:
        """Whether somebody has shown the token."""
        return _equal(token, self.token)


class Access:
    """Stands before every page: refuses with a sentence, or lets a request through."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        if headers.get("host", "").lower() not in self.door.hosts:
            return _sentence("This console does not answer to that name: use the address that it printed.", 421)
        if scope["method"] not in SAFE and not self._is_ours(headers):
            return _sentence("This request comes from another site, and nothing was changed.", 403)
        if is_foreign(headers) and headers.get("sec-fetch-mode") != "navigate":
            return _sentence("A page of another site may lead here, and show or use nothing of this one.", 403)
        if self.door.keyed:
            return _misnamed(headers.get(KEY_NAME, ""))
        if TOKEN in query and scope["method"] in SAFE and self.door.admits(query[TOKEN]):
            return self._let_in(scope, query)
        if not self.door.admits(_cookies(headers).get(self.door.cookie, "")):
            return _sentence("Open the address that 'fieldmark review' printed: it ends in a token.", 401)
        return None

    def _let_in(self, scope: Scope, query: QueryParams) -> Response:
        """Into a cookie with the token, out of the address, which stays in histories."""
        rest = urlencode([(name, value) for name, value in query.multi_items() if name != TOKEN])
        answer = RedirectResponse(quote(scope["path"]) + (f"?{rest}" if rest else ""), status_code=303)
        answer.set_cookie(self.door.cookie, self.door.token, httponly=True, samesite="strict", path="/")
        return answer

    def _is_ours(self, headers: Headers) -> bool:
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        origin = headers.get("origin")
        try:
            return origin is None or urlsplit(origin.lower()).netloc == headers.get("host", "").lower()
        except ValueError:  # it is no address
            return False


def is_foreign(headers: Headers) -> bool:
    """Whether a browser says that a page of another site asks: one of another port, too."""
    return headers.get("sec-fetch-site") in ("cross-site", "same-site")


def reviewer_of(request: Request, door: Door) -> str:
    """Who decides: the name of the key, or what was written into the page, or who started the console."""
    if door.keyed:
        return clean_name(request.headers.get(KEY_NAME, "")) or "?"
    return clean_name(unquote(_cookies(request.headers).get(f"{door.cookie}_name", ""))) or door.reviewer


def clean_name(name: str) -> str:
    """A name as it is kept: one line, not too long."""
    return " ".join("".join(each if each.isprintable() else " " for each in name).split())[:LONGEST_NAME]


def hosts_of(host: str, port: int, others: Iterable[str]) -> frozenset[str]:
    """The names that a console on this address answers to. `others` are HOST[:PORT] of an Envoy before it, over TLS;
    raises OptionError for one that no browser would call.
    """
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
    plain = names if port == HTTP_PORT else set()  # browsers leave the port out where it is the scheme's own
    return frozenset({f"{name}:{port}" for name in names} | plain).union(*map(_as_called, others))


def _as_called(name: str) -> set[str]:
    """What browsers may write for HOST[:PORT] over TLS: small letters, and HTTPS' own port or none."""
    found = _NAME.fullmatch(name.lower())
    if found is None or not 0 < int(found["port"] or HTTPS_PORT) < 65536:
        raise OptionError(
            f"--behind-envoy {name!r} is no name that browsers call",
            hint="Give HOST or HOST:PORT as it stands in their address, such as review.example:8443.",
        )
    given, port = found["host"], int(found["port"] or HTTPS_PORT)
    return {f"{given}:{port}"} | ({given} if port == HTTPS_PORT else set())


def _misnamed(name: str) -> Response | None:
    """The refusal of a key without a name, or with one that would not be kept whole: it might become another's."""
    if not name:
        return _sentence("Nobody said whose key this is: come in through Envoy.", 401)
    if clean_name(name) != name:
        return _sentence(f"The name of this key is not one line of at most {LONGEST_NAME} characters.", 403)
    return None


def _equal(given: str, secret: str) -> bool:
    """Whether they are the same, in a time that does not tell where they begin to differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _cookies(headers: Headers) -> dict[str, str]:
    """Ours need no quotes, which the standard library takes off in a time that grows with the square of them: a
    stranger's header could hold up everybody.
    """
    pairs = (part.partition("=") for part in headers.get("cookie", "").split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _sentence(text: str, status: int) -> Response:
    return Response(f"{text}\n", status_code=status, media_type="text/plain")
