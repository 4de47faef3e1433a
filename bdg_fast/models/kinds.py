"""Kinds of networks: ours by name, and a user's own class, which is imported only where the user names it."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass

from .backbone import Backbone, BackboneConfig
from .diffusers_unet import DiffusersConfig, DiffusersUNet
from .unet import UNet, UNetConfig

KINDS: dict[str, type[Backbone]] = {"unet": UNet, "diffusers": DiffusersUNet}
"""Ours: what settings and checkpoints may name without anybody's consent."""
NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """A user's own class and its configuration, where settings ask for a network.

    Attributes:
        kind: the class.
        options: its configuration; default: that of no arguments.
    """

    kind: type[Backbone]
    options: BackboneConfig | None = None

    def __post_init__(self) -> None:
        """Refuse what is no network, by name."""
        if not (isinstance(self.kind, type) and issubclass(self.kind, Backbone)):
            raise ValueError(f"kind must be a subclass of bdg_fast.Backbone, got {self.kind!r}")
        if self.options is None:
            object.__setattr__(self, "options", self.kind.config_class())
        if not isinstance(self.options, self.kind.config_class):
            raise ValueError(f"options must be a {self.kind.config_class.__name__}, got {self.options!r}")


NetworkConfig = BackboneConfig | ModuleConfig
"""What settings hold of a network."""


def own_config(config: NetworkConfig) -> BackboneConfig:
    """The network's own configuration."""
    if isinstance(config, ModuleConfig):
        assert config.options is not None
        return config.options
    return config


def new_network(config: NetworkConfig) -> Backbone:
    """A network of random weights.

    Raises:
        TypeError: a configuration of no network of ours, which needs ``ModuleConfig(kind=...)``.
    """
    if isinstance(config, UNetConfig):
        return UNet(config)
    if isinstance(config, DiffusersConfig):
        return DiffusersUNet(config)
    if not isinstance(config, ModuleConfig):
        raise TypeError(f"network must be a UNetConfig, a DiffusersConfig or a ModuleConfig, got {config!r}")
    found = config.kind(own_config(config))
    for name, hint in (("feature_channels", "channels of its features"), ("config", "what it was made with")):
        if not hasattr(found, name):
            raise TypeError(f"{kind_of(config.kind)} must have {name}, the {hint}")
    return found


def kind_of(backbone: type[Backbone]) -> str:
    """``"unet"``, ``"diffusers"``, or ``"package.module:Class"``, also of a subclass of ours."""
    own = f"{backbone.__module__}:{backbone.__qualname__}"
    return next((kind for kind, ours in KINDS.items() if backbone is ours), own)


def find_backbone(kind: str) -> type[Backbone]:
    """The class of a kind; a user's own is imported: only for a name that the user has given.

    Raises:
        ValueError: no kind of ours and no ``package.module:Class``, nothing to import by that name, or no `Backbone`.
    """
    if kind in KINDS:
        return KINDS[kind]
    ours = f"must be one of {', '.join(map(repr, KINDS))}, or 'package.module:Class'"
    if not isinstance(kind, str) or not NAME.fullmatch(kind):
        raise ValueError(f"kind {ours}, got {kind!r}")
    module, _, name = kind.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"kind {ours} that can be imported (installed, or in a folder of PYTHONPATH), got {kind!r}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Backbone)):
        raise ValueError(f"kind {ours}, a subclass of bdg_fast.Backbone, got {kind!r}, which is none")
    return found
