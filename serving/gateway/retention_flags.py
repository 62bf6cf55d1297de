"""The flags of what is kept of requests: `fieldmark gateway` has all of them, `fieldmark serve` those with a place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bundle.errors import OptionError
from serving.gateway.audit import AuditOptions
from serving.quarantine.options import QuarantineOptions

if TYPE_CHECKING:
    from serving.gateway.retention import RetentionOptions

_PANEL = "What is kept of requests"
_NOWHERE = Path("-")
QUARANTINE_DEFAULTS = QuarantineOptions(root="-")
AUDIT_DEFAULTS = AuditOptions(path=_NOWHERE)


def _setting(text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=_PANEL, **more)


Place = Annotated[
    str | None,
    _setting("Keep flagged images here; a URL is fsspec's, such as s3://bucket/place.", metavar="FOLDER|URL"),
]
Sample = Annotated[float, _setting("Share of all images that is kept, too, whatever the flag.", metavar="SHARE")]
Bytes = Annotated[int, _setting("Most bytes of the quarantine; the oldest images go first.")]
Days = Annotated[float, _setting("Days after which an image goes from the quarantine.")]
AuditFile = Annotated[Path | None, _setting("One JSON line for each request.", metavar="FILE")]
AuditBytes = Annotated[int, _setting("Most bytes of the audit log before it is rotated.")]
AuditFiles = Annotated[int, _setting("Audit logs that are kept, with the one written to.")]


def retention_options(given: dict[str, Any]) -> "RetentionOptions":
    """What is to be kept, its places looked at; raises OptionError. `given` has the flags by name."""
    from serving.gateway.retention import RetentionOptions

    _refuse_alone(given, "quarantine", QUARANTINE_DEFAULTS, ("sample", "bytes", "days"))
    _refuse_alone(given, "audit_log", AUDIT_DEFAULTS, ("bytes", "files"))
    try:
        quarantine = None
        if given["quarantine"] is not None:
            settings = {name: given[f"quarantine_{name}"] for name in ("sample", "bytes", "days")}
            quarantine = QuarantineOptions(root=given["quarantine"], **settings)
        audit = None
        if given["audit_log"] is not None:
            audit = AuditOptions(path=given["audit_log"], bytes=given["audit_bytes"], files=given["audit_files"])
    except ValueError as problem:
        raise OptionError(str(problem)) from None
    options = RetentionOptions(quarantine=quarantine, audit=audit)
    options.check()
    return options


def _refuse_alone(given: dict[str, Any], place: str, defaults: object, names: tuple[str, ...]) -> None:
    """Raise OptionError where something is set on what is not asked for."""
    if given[place] is not None:
        return
    kind = place.partition("_")[0]
    for name in names:
        if given[f"{kind}_{name}"] != getattr(defaults, name):
            flag = place.replace("_", "-")
            raise OptionError(f"--{kind}-{name} is given and --{flag} is not", hint=f"Say where: --{flag}.")
