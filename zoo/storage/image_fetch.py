"""The bytes of an image behind an http(s) address or in a data URI, within limits of size and time."""

from __future__ import annotations

import base64
import binascii
import contextlib
import http
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse

from zoo.storage.deadline import Deadline

MAX_BYTES = 64 << 20  # of one image, fetched or in a data URI
SECONDS = 20.0  # without an answer from a server
SECONDS_IN_ALL = 120.0  # of one image, however slowly a server sends it
MOST_REDIRECTS = 3
# of public machines; what listens on others (databases, queues, mail) was not made for strangers
PORTS = (80, 443)
_OWN_NETWORK = "if it is your own network, use --allow-private (in Python allow_private=True)"
_IN_ADDRESSES = "%/:=&?~#+!$,;'@()*[]"  # stays as it is


def scheme_of(source: str) -> str:
    """`http`, `data`, ... of an address; empty for a path, also one with a drive letter of Windows."""
    head, colon, _ = source[:12].partition(":")
    return head.lower() if colon and len(head) > 1 and head[0].isalpha() and head.isalnum() else ""


def decode_data_uri(uri: str) -> bytes:
    """The bytes of `data:[type][;base64],...`.

    Raises:
        ValueError: it is too long or malformed.
    """
    if len(uri) > MAX_BYTES * 4 // 3 + 200:
        raise ValueError(f"the data URI has {len(uri)} characters; an image may have {MAX_BYTES} bytes")
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ValueError(f"{uri[:40]!r} is not a data URI: it has no comma; write data:image/png;base64,...")
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(payload)
    try:
        return base64.b64decode(urllib.parse.unquote(payload), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the data URI {uri[:40]!r}... is not valid base64: {error}") from error


def decode_text(image: str) -> bytes:
    """The bytes of a data URI, or of an image in base64.

    Raises:
        ValueError: it is neither.
    """
    if scheme_of(image) == "data":
        return decode_data_uri(image)
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("an image is an http(s) address, a data URI or base64, and this is none") from error


def fetch(
    address: str, *, private: bool = False, most_bytes: int | None = None, seconds: float | None = None
) -> bytes:
    """The bytes behind an http(s) address, of a public machine.

    The name is resolved once, every address that it has is checked, and one of these is connected to: a name cannot
    mean another machine a moment later. So it goes for each redirect. The proxies of the environment are not used:
    what they connect to cannot be checked.

    Args:
        address: with port 80 or 443.
        private: whether machines of the own network, this one, and other ports may be asked too.
        most_bytes: of the image; None for `MAX_BYTES`.
        seconds: in all, however slowly a server sends it; None for `SECONDS_IN_ALL`.

    Raises:
        ConnectionError: no answer, not in time, or an answer that is none; or the machine or port is not public.
        ValueError: it is too large.
    """
    most_bytes = MAX_BYTES if most_bytes is None else most_bytes
    seconds = SECONDS_IN_ALL if seconds is None else seconds
    end, asked = time.monotonic() + seconds, address
    shown = " ".join(address[:200].split())
    try:
        for _ in range(MOST_REDIRECTS + 1):
            content, asked = _answer(asked, private, end, most_bytes)
            if content is not None:
                break
        else:
            raise ConnectionError(f"it redirects more than {MOST_REDIRECTS} times")
    except (OSError, ValueError, http.client.HTTPException) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        if time.monotonic() > end:  # the socket was shut, and reading it ended somehow
            what = f"it is not complete after {seconds:.0f} seconds"
        raise ConnectionError(f"{shown} could not be fetched: {what[:200]}") from error
    if len(content) > most_bytes:
        raise ValueError(f"{shown} is larger than {most_bytes >> 20} MB, which no image here may be")
    return content


def _answer(address: str, private: bool, end: float, most_bytes: int) -> tuple[bytes | None, str]:
    """The body, one byte too long if it is too large; or None and where it redirects to."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConnectionError(f"{address[:60]} is not fetched; only http and https are")
    if parts.username is not None or parts.password is not None:
        raise ConnectionError("a name and password in an address are not sent")
    port = parts.port if parts.port is not None else 443 if parts.scheme == "https" else 80
    if port not in PORTS and not private:
        raise ConnectionError(
            f"port {port} is not asked, only {' and '.join(map(str, PORTS))} are; {_OWN_NETWORK}"
        )
    host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    connection = _Pinned(host, port, _public(host, port, private, end), parts.scheme == "https")
    path = urllib.parse.quote(parts.path or "/", safe=_IN_ADDRESSES)
    path += f"?{urllib.parse.quote(parts.query, safe=_IN_ADDRESSES)}" if parts.query else ""
    alarm = threading.Timer(max(0.0, end - time.monotonic()), connection.shut)
    alarm.daemon = True
    alarm.start()
    try:
        connection.request("GET", path, headers={"User-Agent": "detr-zoo", "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308):
            return None, urllib.parse.urljoin(address, answer.headers.get("Location") or "missing:")
        if answer.status != http.HTTPStatus.OK:
            raise ConnectionError(f"it answers {answer.status} {answer.reason}")
        content = answer.read(most_bytes + 1)
        if time.monotonic() > end:  # what was shut looks like a body that ends
            raise TimeoutError
        if answer.length and len(content) <= most_bytes:
            raise ConnectionError(f"it ends after {len(content)} of {len(content) + answer.length} bytes")
        return content, address
    finally:
        alarm.cancel()
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to one address of a host; with TLS its certificate is that of the host."""

    def __init__(self, host: str, port: int, address: str, tls: bool) -> None:
        super().__init__(host, port, timeout=SECONDS)
        self.default_port = 443 if tls else 80
        self._address = address
        self._tls = tls
        self._wire: socket.socket | None = None  # `sock` forgets it where an answer ends with the connection

    def connect(self) -> None:
        """Connects to the address that was checked."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
        self._wire = self.sock
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()  # apart, so that `shut` reaches it

    def shut(self) -> None:
        """Ends whatever waits for the other side."""
        if self._wire is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)


def _public(host: str, port: int, private: bool, end: float) -> str:
    """The address of a host to connect to.

    Raises:
        ConnectionError: it has none, or one that is not public.
        TimeoutError: nobody says in time.
    """
    seconds = max(0.01, min(SECONDS, end - time.monotonic()))
    try:  # it has no timeout of its own
        answers = Deadline().call(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), seconds)
    except TimeoutError:
        raise TimeoutError(f"nobody says in time where {host[:80]} is") from None
    except (OSError, UnicodeError) as error:
        raise ConnectionError(f"{host[:80]} is not known ({error})") from None
    addresses = [str(address[0]) for *_, address in answers]
    if not private:
        refused = [address for address in addresses if not is_public(address)]
        if refused or not addresses:
            raise ConnectionError(
                f"{host[:80]} is {', '.join(refused[:3]) or 'nowhere'}, which is no public address; {_OWN_NETWORK}"
            )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is that of a machine on the internet, and not of this one, its network or its cloud."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:  # 6to4, Teredo, NAT64, unique local ... lead to other networks
            return ip in _GLOBAL_V6 and ip.is_global and not any(ip in network for network in _WRAPPED_V6)
        ip = ip.ipv4_mapped
    return ip.is_global and not (ip.is_multicast or ip.is_reserved) and str(ip) not in _METADATA


_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_WRAPPED_V6 = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))
_METADATA = ("168.63.129.16", "192.88.99.1")  # Azure's, in a public range; the relay of 6to4
