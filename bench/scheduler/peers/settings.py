"""Django's settings for django-celery-beat."""

import os
from urllib.parse import urlsplit

_where = urlsplit(os.environ["BENCH_DATABASE_URL"])
SECRET_KEY = "none"
USE_TZ = True
INSTALLED_APPS = ["django_celery_beat"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
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
