"""What schemathesis cannot know from the OpenAPI document: read by its command line (see test_api_openapi.py)."""

import itertools
from typing import Any

import schemathesis
from hypothesis import strategies as st

# Formats whose values are a small part of all strings. Cursors are only what the API gave, so there is one of its own.
schemathesis.openapi.format("cursor", st.just("AAYf3ZkqLhALbvDUTlpeDop6D2uKPB1S"))
schemathesis.openapi.format("time-zone", st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia"]))
schemathesis.openapi.format("cron", st.sampled_from(["* * * * *", "24 * * * *", "*/5 3 1-7 * MON", "0 0 29 2 *"]))
# RFC 3339 reaches from the year 0 to 9999; the API takes 1970 to 2199 and says so otherwise
schemathesis.openapi.format(
    "date-time",
    st.builds(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z".format,
        *(st.integers(*each) for each in ((1970, 2199), (1, 12), (1, 28), (0, 23), (0, 59), (0, 59))),
    ),
)

_waits = itertools.count()


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Name the present revision, whatever it is, where the example of one stands; wait for a few runs, a second each."""
    if case.headers.get("If-Match") == '"17"':
        case.headers["If-Match"] = "*"
    if case.path == "/api/v1/runs" and str(case.query.get("wait")).lower() in {"true", "1", "on", "yes", "t", "y"}:
        if next(_waits) >= 5:
            case.query["wait"] = False
        elif str(case.query.get("timeout_s", 1)).isdecimal():
            case.query["timeout_s"] = 1
