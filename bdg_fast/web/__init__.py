"""A web page that reports how a picture is degraded and restores it: ``bdg-fast demo --web`` (extra ``web``)."""

from .limits import Limits
from .server import serve

__all__ = ["Limits", "serve"]
