"""Fetching an image from an address: public hosts alone, a few megabytes, a few seconds, a few redirects.

An address in a message is text that anybody may have written. Without these limits it reads what only this machine can
reach (another service on it, the metadata of a cloud), or fills memory. `POISE_FETCH_IMAGES=0` in the environment turns
fetching off altogether; so do a Space and a server.
"""

import http.client
import ipaddress
import os
import socket
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

MAX_BYTES = 32 << 20
MAX_SECONDS = 20.0
MAX_REDIRECTS = 3
SWITCH = "POISE_FETCH_IMAGES"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def fetch_image_bytes(address: str, argument: str = "image") -> bytes:
    """What an http or https address holds.

    Args:
        address: of an image on a public host.
        argument (`str`, *optional*, defaults to `"image"`): what the error calls the image.

    Raises:
        ValueError: fetching is off, the scheme is another one, the host is not public (before or behind a redirect), it
            takes too long, is too large, or does not answer. The message names the host alone: the rest of an address
            may hold a password.
    """
    name = f"{argument} at {_host(address)!r}"
    if os.environ.get(SWITCH, "1").lower() in ("0", "false", "off", "no"):
        raise ValueError(f"{name}: images are not fetched here ({SWITCH}); send the image itself.")
    if not address.lower().startswith(("http://", "https://")):
        raise ValueError(f"{name} is no http or https address; download the image and name the file.")
    opener = urllib.request.OpenerDirector()
    for handler in (_Http(), _Https(), _Redirects(), urllib.request.HTTPErrorProcessor(),
                    urllib.request.HTTPDefaultErrorHandler()):  # fmt: skip
        opener.add_handler(handler)
    deadline = time.monotonic() + MAX_SECONDS
    content = bytearray()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "poise", "Accept": "image/*"})
        with opener.open(request, timeout=MAX_SECONDS / 2) as answer:
            # `read1` returns what has come, so that a host that drips bytes does not outstay the deadline.
            while part := answer.read1(1 << 16):
                content += part
                if len(content) > MAX_BYTES:
                    raise ValueError(f"{name} has more than {MAX_BYTES >> 20} MB; give a smaller image.")
                if time.monotonic() > deadline:
                    raise ValueError(f"{name} takes longer than {MAX_SECONDS:.0f} s; download it and name the file.")
    except NotPublic as error:
        raise ValueError(f"{name} {error}; download the image and name the file.") from None
    except urllib.error.HTTPError as error:
        raise ValueError(f"{name} could not be fetched (status {error.code}); check the address.") from None
    except (OSError, http.client.HTTPException) as error:
        inner = getattr(error, "reason", error)
        if isinstance(inner, NotPublic):
            raise ValueError(f"{name} {inner}; download the image and name the file.") from None
        raise ValueError(f"{name} could not be fetched ({type(inner).__name__}); check the address.") from None
    return bytes(content)


class NotPublic(OSError):
    """A host, or one that it redirects to, is not on the public internet."""


def is_public(address: str) -> bool:
    """Whether an IP address is reachable by everybody: no loopback, private, link-local or reserved one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = None
    if isinstance(ip, ipaddress.IPv6Address):  # forms that carry an IPv4 address
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast and (inner is None or inner.is_global)


def _connect(address: tuple[str, int], timeout: float | None = None, source_address=None, **kwargs) -> socket.socket:
    """As `socket.create_connection`, to the very address that was checked: a name may change what it means."""
    host, port = address
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(is_public(ip) for ip in found):
        raise NotPublic("leads to an address that is not public")
    return socket.create_connection((found[0], port), timeout, source_address)


class _PlainConnection(http.client.HTTPConnection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_PlainConnection, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_SecureConnection, request)


class _Redirects(urllib.request.HTTPRedirectHandler):  # which knows http, https and ftp alone
    max_redirections = MAX_REDIRECTS


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or address[:20]
    except ValueError:
        return "an address that is none"
