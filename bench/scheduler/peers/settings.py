"""Django's settings for django-celery-beat."""

from bench.pipeline.peers.database import DATABASES  # noqa: F401 - a setting, which Django reads

SECRET_KEY = "none"
USE_TZ = True
INSTALLED_APPS = ["django_celery_beat"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
