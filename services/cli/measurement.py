"""A measurement in words: what `probe` and `run-now` show when a test has ended."""

from collections.abc import Mapping
from typing import Any

from services.cli.output import megabits, milliseconds

Json = Mapping[str, Any]


def describe(measured: Json) -> dict[str, str]:
    """Return names and values of what is known, in the form of the API's result or of a measurement."""
    return {
        "download": _rate(measured.get("download_bps"), measured.get("download_bytes")),
        "upload": _rate(measured.get("upload_bps"), measured.get("upload_bytes")),
        "latency": _time(measured.get("latency_s")),
        "jitter": _time(measured.get("jitter_s")),
        "packet loss": "" if measured.get("packet_loss") is None else f"{measured['packet_loss']:.1%}",
        "under load": _under_load(measured),
        "limited by": measured.get("limited_by") or "",
        "confidence": measured.get("confidence") or "",
        "server": server(measured.get("server")),
        "client": _joined(measured.get("client"), "isp", "address"),
    }


def server(far_end: Json | None) -> str:
    """Return who and where the far end is, in a few words; empty when nothing is known."""
    words = _joined(far_end, "sponsor", "name", "country_code") or _joined(far_end, "host")
    distance = (far_end or {}).get("distance_m")
    return f"{words}, {distance / 1_000:,.0f} km away" if words and distance is not None else words


def _rate(rate_bps: float | None, transferred: int | None) -> str:
    if rate_bps is None:
        return ""
    return f"{megabits(rate_bps)} Mbit/s" + ("" if transferred is None else f" ({transferred / 1e6:,.1f} MB)")


def _time(time_s: float | None) -> str:
    return "" if time_s is None else f"{milliseconds(time_s)} ms"


def _under_load(measured: Json) -> str:
    """Return latencies, round trips per minute and grade, as far as they are known."""
    parts = [f"{way} {_time(measured.get(f'{way}_latency_s'))}" for way in ("download", "upload") if measured.get(f"{way}_latency_s")]
    if rate := measured.get("responsiveness_rpm"):
        parts.append(f"{rate:,.0f} round trips a minute")
    if grade := measured.get("bufferbloat_grade"):
        parts.append(f"grade {grade}")
    return ", ".join(parts)


def _joined(values: Json | None, *names: str) -> str:
    return ", ".join(str(values[name]) for name in names if values.get(name)) if values else ""
