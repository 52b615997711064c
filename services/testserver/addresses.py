"""Addresses of clients: how they are written, whose they are, and what kind."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

SHARED = ip_network("100.64.0.0/10")
"""What a provider gives to several customers behind one address (RFC 6598)."""
UNIQUE_LOCAL = ip_network("fc00::/7")
PRIVATE = tuple(ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))


def plain(address: str) -> str:
    """Return an address without a zone, and IPv4 as IPv4 even where it came in an IPv6 socket."""
    parsed = _parse(address)
    return str(parsed)


def owner(address: str) -> str:
    """Return whom a limit counts: an IPv4 address, or the /64 of an IPv6 one, because everybody has all of that."""
    parsed = ip_address(address)
    return str(IPv6Network((parsed, 64), strict=False)) if parsed.version == 6 else address


def kind(address: str) -> str | None:
    """Return what kind of address it is, in LibreSpeed's words; None for one of the internet."""
    parsed = ip_address(address)
    version = f"IPv{parsed.version} access"
    if parsed.is_loopback:
        return f"localhost {version}"
    if parsed.is_link_local:
        return f"link-local {version}"
    if parsed in SHARED:
        return f"CGNAT {version}"
    return f"private {version}" if parsed in UNIQUE_LOCAL or any(parsed in each for each in PRIVATE) else None


def _parse(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address.partition("%")[0])
    return (isinstance(parsed, IPv6Address) and parsed.ipv4_mapped) or parsed
