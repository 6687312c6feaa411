"""Single images by http(s), never from this machine or its link.

Rows of a manifest are fetched by every node, also by those inside a network that strangers cannot
reach: services on loopback, and clouds' metadata with its credentials on link-local addresses. So
the address that a name resolves to is looked at on every connection, redirects included, and the
connection goes to the very address that was looked at.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import socket
import urllib.error
import urllib.request

from pipelines.storage.files import UnfitFileError

_TIMEOUT_S = 30.0
_GONE = (404, 410)
_FORBIDDEN = (401, 403, 407, 451)
_PASSING = (408, 425, 429)  # and all from 500 on: the same question may be answered later


class RefusedAddressError(UnfitFileError):
    """A name leads into this machine or its neighborhood."""


def is_http(name: str) -> bool:
    """Whether a URI is fetched by http or https."""
    return name.lower().startswith(("http://", "https://"))


def read(url: str, *, max_bytes: int) -> bytes:
    """Content behind a URL.

    Raises:
        RefusedAddressError: a loopback, link-local or otherwise special address.
        FileNotFoundError: the server has no such file.
        PermissionError: it does not give it to us.
        UnfitFileError: more than `max_bytes`, or what no server can answer.
        OSError: no answer, half of one, or an error that may pass.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.UnknownHandler(),
        _Http(),
        _Https(),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read(max_bytes + 1)
            missing: int = answer.length or 0  # of the length that was announced
    except urllib.error.HTTPError as error:
        raise _answered(error.code, url) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise error.reason from error
        raise UnfitFileError(errno.EINVAL, str(error.reason), url) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise UnfitFileError(errno.EINVAL, str(error), url) from error
    except http.client.HTTPException as error:
        raise OSError(errno.EIO, str(error) or type(error).__name__, url) from error
    if len(data) > max_bytes:
        raise UnfitFileError(errno.EFBIG, "Larger than an image may be", url)
    if missing:
        whole = len(data) + missing
        raise OSError(errno.EIO, f"The answer ended after {len(data)} of {whole} bytes", url)
    return data


def _answered(code: int, url: str) -> OSError:
    """What an answer other than the file means: its class says whether to ask again."""
    said = f"The server answers {code}"
    if code in _GONE:
        return FileNotFoundError(errno.ENOENT, said, url)
    if code in _FORBIDDEN:
        return PermissionError(errno.EACCES, said, url)
    if code in _PASSING or code >= 500:
        return OSError(errno.EIO, said, url)
    return UnfitFileError(errno.EINVAL, said, url)


def _connect(
    address: tuple[str, int],
    timeout: float | None = None,
    source: tuple[str, int] | None = None,
) -> socket.socket:
    """Like `socket.create_connection`, but for special addresses."""
    host, port = address
    fit = []
    for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if _is_special(str(place[0])):
            raise RefusedAddressError(
                13, f"{host} is {place[0]}, an address of this machine or its link: refused", host
            )
        fit.append(str(place[0]))
    return socket.create_connection((fit[0], port), timeout, source)


def _is_special(address: str) -> bool:
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        number = number.ipv4_mapped or number
    special = number.is_loopback or number.is_link_local or number.is_unspecified
    return (
        special
        or number.is_multicast
        or number.is_reserved
        or not (number.is_global or number.is_private)  # shared space, where clouds keep metadata
        or str(number) == "fd00:ec2::254"  # metadata of a cloud
    )


class _HttpConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self._create_connection = _connect
        super().connect()


class _HttpsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        self._create_connection = _connect
        super().connect()


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, request)
