"""The database of Django's ORM, as its settings have it."""

import os
from urllib.parse import urlsplit

_where = urlsplit(os.environ["BENCH_DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _where.path.lstrip("/"),
        "USER": _where.username,
        "PASSWORD": _where.password,
        "HOST": _where.hostname,
        "PORT": _where.port,
        "CONN_MAX_AGE": None,  # connections are reused for ever
    }
}
