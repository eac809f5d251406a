"""Names that a shell completes: of models, targets, precisions and devices. They are asked for when Tab is pressed.

edgesmith --install-completion
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def _begin(names: Iterable[str], incomplete: str) -> Iterator[str]:
    return (name for name in sorted(names) if name.startswith(incomplete))


def models(incomplete: str) -> Iterator[str]:
    """Yield models of the registry and of edgesmith.toml that begin so."""
    from edgesmith.exporters.own import settings
    from edgesmith.models.registry import all_models

    return _begin({*all_models(), *settings.names()}, incomplete)


def targets(incomplete: str) -> Iterator[str]:
    """Yield targets that begin so."""
    from edgesmith.exporters.targets import all_targets

    return _begin(all_targets(), incomplete)


def precisions(incomplete: str) -> Iterator[str]:
    """Yield precisions that begin so."""
    from edgesmith.exporters.precision.table import all_precisions

    return _begin(all_precisions(), incomplete)


def devices(incomplete: str) -> Iterator[str]:
    """Yield devices that have a profile and begin so."""
    from edgesmith.profiles.device import all_devices

    return _begin(all_devices(), incomplete)


def languages(incomplete: str) -> Iterator[str]:
    """Yield languages of programs that begin so."""
    from edgesmith.exporters.usage.source import LANGUAGES

    return _begin(LANGUAGES, incomplete)
