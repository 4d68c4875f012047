"""ServerSettings: what a server allows, and whom."""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

MIB = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """Limits and keys of a server.

    Attributes:
        model_name: What clients call the model.
        api_keys: One of these must come with each request; none: everybody may ask.
        allowed_hosts: The names under which the server may be asked for, which keeps web pages of
            others from reaching it (DNS rebinding); none: any.
        max_body_bytes: Of one request.
        max_pixels: Of one image; told from its header, before it is decoded.
        max_images: Of one conversation.
        max_answers: The largest `n`.
        body_timeout: Seconds in which the next part of a request must come.
        upload_bytes: Of all uploaded images together.
        upload_seconds: How long an uploaded image is kept.

    Raises:
        ValueError: for a limit below 1, or what is no key or no name of a host.
    """

    model_name: str
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 32 * MIB
    max_pixels: int = 25_000_000
    max_images: int = 16
    max_answers: int = 4
    body_timeout: float = 30.0
    upload_bytes: int = 256 * MIB
    upload_seconds: float = 3600.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int | float) and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        for key in self.api_keys:
            if not key or not (key.isascii() and key.isprintable()) or key != key.strip():
                raise ValueError("An API key must be printable ASCII, without blanks around it.")
        for host in self.allowed_hosts:
            if not host_name(host):
                raise ValueError(f"allowed_hosts: {host!r} is no name of a host.")

    def knows_key(self, given: str) -> bool:
        """Tell whether a key is one of ours, in a time that does not depend on how wrong it is."""
        digest = hashlib.sha256(given.encode()).digest()
        known = [hashlib.sha256(key.encode()).digest() for key in self.api_keys]
        return any([hmac.compare_digest(digest, other) for other in known])


def host_name(host: str) -> str:
    """Return the name in a Host header, in lower case and without the port; "" if it has none."""
    if "/" in host:
        return ""
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"  # An IPv6 address, as addresses to listen at are given.
    try:
        return urlsplit("//" + host).hostname or ""
    except ValueError:  # Half an IPv6 address.
        return ""


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
